"""The diffusion decoder: a CLIP image embedding -> an image that has it (DALL·E 2, arXiv 2204.06125, section 2.1).

GLIDE's U-Net (arXiv 2112.10741, after ADM, arXiv 2105.05233), which is told the image embedding in two ways: added to
the timestep embedding, and as four extra tokens beside the caption's in the context that attention reads.

Ours departs from the paper in that the caption's tokens come encoded by CLIP, not by a text transformer of the decoder's
own, and that the network does not predict the variance.

B batch, C image channels, H image height and width, E size of CLIP's embeddings, T text tokens, D context width.
"""

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from diffusion import Diffusion, check_diffusion, drop_condition, guided, timestep_encoding
from einops import rearrange
from torch import Tensor, nn

NUM_IMAGE_TOKENS = 4  # section 2.1


@dataclass
class DecoderConfig:
    """Sizes of the U-Net; the defaults are the `cpu` preset.

    Raises ValueError if a number is out of range, the image cannot be halved once for each level but the first, or the
    heads do not divide the width of a level with attention.
    """

    image_size: int = 28  # H
    image_channels: int = 1  # C
    extra_channels: int = 0  # of x_t's input, say a low-resolution image's for an up-sampler
    clip_embed_dim: int = 64  # E
    clip_text_width: int = 64  # of CLIP's token encodings
    clip_text_seq_len: int = 7  # T
    width: int = 16  # channels at full resolution; 512 in the paper
    width_multipliers: tuple[int, ...] = (1, 2, 4)  # one for each level; 1, 2, 3, 4 in the paper
    num_blocks: int = 1  # residual blocks a level; 3 in the paper
    num_attention_levels: int = 1  # how many of the lowest levels have attention; 3 in the paper
    head_dim: int = 32  # 64 in the paper
    image_dropout: float = 0.1  # fraction of image embeddings dropped in training, for guidance
    caption_dropout: float = 0.5  # fraction of captions dropped
    num_timesteps: int = 1000
    schedule: str = "cosine"
    prediction: str = "v"  # eps in the paper; the x_0 that follows from v does not blow up where t is large

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type is int and not (f.name != "extra_channels") <= value < 10**9:
                raise ValueError(f"{f.name} {value} is not a whole number from 1 up.")
            if f.type is float and not 0 <= value <= 1:
                raise ValueError(f"{f.name} {value} is not in [0, 1].")
        if min(self.width_multipliers) < 1 or self.num_blocks > 100:
            raise ValueError("width_multipliers are 1 or more, and num_blocks 100 or less.")
        if not 1 <= self.num_attention_levels <= len(self.width_multipliers):
            raise ValueError(f"num_attention_levels is 1 to {len(self.width_multipliers)}, the number of levels.")
        check_diffusion(self.num_timesteps, self.schedule, self.prediction)
        halvings = len(self.width_multipliers) - 1
        if self.image_size % 2**halvings:
            raise ValueError(f"image_size {self.image_size} is not a multiple of {2**halvings}.")
        attending = self.width_multipliers[-self.num_attention_levels :]
        if self.width % 2 or any(self.width * multiplier % self.head_dim for multiplier in attending):
            raise ValueError(f"width {self.width} is odd or does not divide into heads of {self.head_dim}.")


DECODER_PRESETS = {
    "cpu": DecoderConfig(),
    "gpu": DecoderConfig(width=64, num_blocks=2, num_attention_levels=2),
    "paper": DecoderConfig(  # appendix C
        image_size=64,
        image_channels=3,
        clip_embed_dim=1024,
        clip_text_width=1024,
        clip_text_seq_len=256,
        width=512,
        width_multipliers=(1, 2, 3, 4),
        num_blocks=3,
        num_attention_levels=3,
        head_dim=64,
        prediction="eps",
    ),
}


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(1, channels)  # 32 groups in ADM; one is ten times as fast on a CPU


class ResBlock(nn.Module):
    """Two convolutions; the time embedding scales and shifts what goes into the second."""

    def __init__(self, in_channels: int, out_channels: int, time_dim: int):
        super().__init__()
        self.norm_1 = norm(in_channels)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.to_scale_and_shift = nn.Linear(time_dim, 2 * out_channels)
        self.norm_2 = norm(out_channels)
        self.conv_2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv_1(F.silu(self.norm_1(x)))
        scale, shift = self.to_scale_and_shift(F.silu(time))[:, :, None, None].chunk(2, dim=1)
        h = self.conv_2(F.silu(self.norm_2(h) * (1 + scale) + shift))
        return self.skip(x) + h


class Attention(nn.Module):
    """Every position attends to all positions and to the context (GLIDE, section 4.1: both in one softmax)."""

    def __init__(self, channels: int, context_dim: int, head_dim: int):
        super().__init__()
        self.head_dim = head_dim
        self.norm = norm(channels)
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.context_to_kv = nn.Linear(context_dim, 2 * channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        height = x.shape[2]
        positions = rearrange(self.norm(x), "b c h w -> b (h w) c")
        q, k, v = self.to_qkv(positions).chunk(3, dim=-1)
        context_k, context_v = self.context_to_kv(context).chunk(2, dim=-1)
        k, v = torch.cat([context_k, k], dim=1), torch.cat([context_v, v], dim=1)
        q, k, v = (rearrange(y, "b s (n d) -> b n s d", d=self.head_dim) for y in (q, k, v))
        weights = ((q / math.sqrt(self.head_dim)) @ k.transpose(-1, -2)).softmax(dim=-1)
        out = rearrange(weights.to(v.dtype) @ v, "b n s d -> b s (n d)")
        return x + rearrange(self.to_out(out), "b (h w) c -> b c h w", h=height)


class Layer(nn.Module):
    """A residual block, and attention after it on the levels that have it."""

    def __init__(self, c: DecoderConfig, in_channels: int, out_channels: int, attends: bool, halves: bool = False):
        super().__init__()
        self.pool = nn.AvgPool2d(2) if halves else nn.Identity()
        self.block = ResBlock(in_channels, out_channels, 4 * c.width)
        self.attention = Attention(out_channels, 4 * c.width, c.head_dim) if attends else None

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        x = self.block(self.pool(x), time)
        return x if self.attention is None else self.attention(x, context)


class Decoder(nn.Module):
    """The U-Net: from x_t, t, the image embedding and the caption to what diffusion.py wants predicted."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        c = config
        self.diffusion = Diffusion(c.num_timesteps, c.schedule, c.prediction)
        dim = 4 * c.width  # of the time embedding and the context
        self.embed_time = nn.Sequential(nn.Linear(c.width, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.image_to_time = nn.Linear(c.clip_embed_dim, dim)
        self.image_to_tokens = nn.Linear(c.clip_embed_dim, NUM_IMAGE_TOKENS * dim)
        self.encodings_to_tokens = nn.Linear(c.clip_text_width, dim)
        # What stands in for a dropped image embedding and a dropped caption.
        self.null_image_embed = nn.Parameter(torch.empty(c.clip_embed_dim))
        self.null_caption = nn.Parameter(torch.empty(c.clip_text_seq_len, c.clip_text_width))

        widths = [c.width * multiplier for multiplier in c.width_multipliers]
        attends = [level >= len(widths) - c.num_attention_levels for level in range(len(widths))]
        self.stem = nn.Conv2d(c.image_channels + c.extra_channels, c.width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips = [(c.width, widths[0], attends[0])]  # channels of each skip, and what its layer on the way up is to be
        channels = c.width
        for level, width in enumerate(widths):
            for block in range(c.num_blocks):
                self.down.append(Layer(c, channels, width, attends[level], halves=level > 0 and block == 0))
                channels = width
                skips.append((channels, width, attends[level]))
        self.middle = nn.ModuleList([Layer(c, channels, channels, True), Layer(c, channels, channels, False)])
        for skip_channels, width, attends_too in reversed(skips):
            self.up.append(Layer(c, channels + skip_channels, width, attends_too))
            channels = width
        self.norm = norm(channels)
        self.to_out = nn.Conv2d(channels, c.image_channels, 3, padding=1)
        self.apply(self.init_weights)

    def init_weights(self, module: nn.Module) -> None:
        """The first weights of one of the model's modules, where PyTorch's own are not wanted: each residual path, and so
        the whole, adds nothing when training starts."""
        if isinstance(module, ResBlock):
            zero(module.conv_2)
        if isinstance(module, Attention):
            zero(module.to_out)
        if module is self:
            zero(self.to_out)
            nn.init.normal_(self.null_image_embed, std=self.config.clip_embed_dim**-0.5)  # of length 1, about
            nn.init.normal_(self.null_caption)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        image_embed: Tensor,
        text_encodings: Tensor | None = None,
        conditional: bool = True,
    ) -> Tensor:
        """Noised images (B, C + extra channels, H, H) at timesteps t (B,) to a prediction (B, C, H, H).

        image_embed (B, E) of length 1 and text_encodings (B, T, text width) are CLIP's; without a caption the null
        caption takes its place. Where `conditional` is False, learned nulls take the places of both, and in training
        mode those of a fraction `image_dropout` of the embeddings and `caption_dropout` of the captions.
        """
        time, context = self.condition(t, image_embed, text_encodings, conditional)
        h = self.stem(x_t)
        skips = [h]
        for layer in self.down:
            h = layer(h, time, context)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, time, context)
        for layer in self.up:
            skip = skips.pop()
            h = F.interpolate(h, size=skip.shape[2:])  # doubles it where a level ends
            h = layer(torch.cat([h, skip], dim=1), time, context)
        return self.to_out(F.silu(self.norm(h)))

    def condition(
        self, t: Tensor, image_embed: Tensor, text_encodings: Tensor | None, conditional: bool
    ) -> tuple[Tensor, Tensor]:
        """What the layers are told: the time embedding (B, D) and the context (B, 4 + T, D)."""
        c = self.config
        if text_encodings is None:
            text_encodings = self.null_caption.expand(len(t), -1, -1)
        image_dropout, caption_dropout = (c.image_dropout, c.caption_dropout) if self.training else (0.0, 0.0)
        if not conditional:
            image_dropout = caption_dropout = 1.0
        image_embed = drop_condition(image_embed, self.null_image_embed, image_dropout)
        text_encodings = drop_condition(text_encodings, self.null_caption, caption_dropout)
        image_embed = image_embed * math.sqrt(c.clip_embed_dim)  # of length 1 before; now components are about 1
        time = self.embed_time(timestep_encoding(t, c.width)) + self.image_to_time(image_embed)
        image_tokens = rearrange(self.image_to_tokens(image_embed), "b (n d) -> b n d", n=NUM_IMAGE_TOKENS)
        return time, torch.cat([image_tokens, self.encodings_to_tokens(text_encodings)], dim=1)


def zero(module: nn.Conv2d | nn.Linear) -> None:
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)


@torch.no_grad()
def decode_image_embed(
    decoder: Decoder,
    image_embed: Tensor,
    text_encodings: Tensor | None,
    x_T: Tensor,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    num_steps: int = 20,
    x_0_range: float = 1.0,
    **sampler,
) -> Tensor:
    """Images (B, C, H, H) in [0, 1] of CLIP image embeddings (B, E) of length 1, from noise x_T (B, C, H, H).

    text_encodings (B, T, width) of their captions, or None; guidance_interval: the fractions of T, from and to, between which
    there is guidance; `sampler` goes to Diffusion.sample.
    """
    low, high = (fraction * decoder.diffusion.num_timesteps for fraction in guidance_interval)
    network = guided(decoder, guidance_scale, image_embed, text_encodings, interval=(low, high))
    x_0 = decoder.diffusion.sample(network, x_T, num_steps, x_0_range=x_0_range, **sampler)
    return from_x_0(x_0)


def to_x_0(images: Tensor) -> Tensor:
    """Images in [0, 1] to the range that the decoder works in, [-1, 1]."""
    return 2 * images - 1


def from_x_0(x_0: Tensor) -> Tensor:
    """The inverse of to_x_0, cut off to [0, 1]."""
    return ((x_0 + 1) / 2).clamp(0, 1)
