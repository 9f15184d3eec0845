"""The diffusion decoder: a CLIP image embedding -> an image that has it (DALL·E 2, arXiv 2204.06125, section 2.1).

GLIDE's U-Net (unet.py) reads a caption in two ways: the encoding of its last position is added to the timestep embedding,
and those of all positions are the context that attention reads (arXiv 2112.10741, section 4.1). The decoder adds the
image embedding to both: to the timestep embedding, and as four extra tokens. Ours departs from the paper in that CLIP
encodes the caption's tokens, not a text transformer of the decoder's own; that training adds noise to the image embedding
and draws more of the noisy timesteps; and that the network does not predict the variance.

B batch, C image channels, H image height and width, E size of CLIP's embeddings, T text tokens, D context width.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from lesson_17.clip import check_numbers
from lesson_17.diffusion import Diffusion, check_diffusion, drop_condition, guided, timestep_encoding
from lesson_17.unet import UNet, check_unet
from torch import Tensor, nn

NUM_IMAGE_TOKENS = 4  # section 2.1


@dataclass
class DecoderConfig:
    """Sizes of the U-Net; the defaults are the `small` preset. Raises ValueError for sizes that do not work."""

    image_size: int = 28  # H
    image_channels: int = 1  # C
    clip_embed_dim: int = 64  # E
    clip_text_width: int = 64  # of CLIP's token encodings
    clip_text_seq_len: int = 7  # T
    width: int = 16  # channels at full resolution; 512 in the paper
    width_multipliers: tuple[int, ...] = (1, 2, 4)  # one for each level; 1, 2, 3, 4 in the paper
    num_blocks: int = 1  # residual blocks a level; 3 in the paper
    num_attention_levels: int = 1  # how many of the lowest levels have attention; 3 in the paper
    head_dim: int = 32  # 64 in the paper
    image_dropout: float = 0.25  # fraction of image embeddings dropped in training, for guidance; 0.1 in the paper
    caption_dropout: float = 0.25  # fraction of captions dropped; 0.5 in the paper
    image_noise: float = 1.0  # length of the noise that training adds to embeddings, of length 1
    num_timesteps: int = 1000
    noisy_timesteps: bool = True  # training draws more of the large t, where the digit is decided; no in the paper
    schedule: str = "cosine"
    prediction: str = "v"  # eps in the paper; the x_0 that follows from v does not blow up where t is large

    def __post_init__(self):
        check_numbers(self)
        check_unet(self.width, self.width_multipliers, self.num_blocks)
        check_diffusion(self.num_timesteps, self.schedule, self.prediction)
        if self.num_attention_levels > len(self.width_multipliers):
            raise ValueError(f"num_attention_levels is 1 to {len(self.width_multipliers)}, the number of levels.")
        for multiplier in self.width_multipliers[-self.num_attention_levels :]:
            if self.width * multiplier % self.head_dim:
                raise ValueError(f"head_dim {self.head_dim} does not divide {self.width * multiplier} channels.")


DECODER_PRESETS = {
    "small": DecoderConfig(),
    "large": DecoderConfig(width=64, num_blocks=2, num_attention_levels=2),
    "paper": DecoderConfig(  # appendix C
        image_size=64, image_channels=3, clip_embed_dim=1024, clip_text_width=1024, clip_text_seq_len=256, width=512,
        width_multipliers=(1, 2, 3, 4), num_blocks=3, num_attention_levels=3, head_dim=64, image_dropout=0.1,
        caption_dropout=0.5, image_noise=0.0, noisy_timesteps=False, prediction="eps",
    ),
}  # fmt: skip


class Decoder(nn.Module):
    """The U-Net: from x_t, t, the image embedding and the caption to what `prediction` names."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        c = config
        self.diffusion = Diffusion(c.num_timesteps, c.schedule, c.prediction)
        dim = 4 * c.width  # of the time embedding and the context
        self.embed_time = nn.Sequential(nn.Linear(c.width, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.image_to_time = nn.Linear(c.clip_embed_dim, dim)
        self.caption_to_time = nn.Linear(c.clip_text_width, dim)
        self.image_to_tokens = nn.Linear(c.clip_embed_dim, NUM_IMAGE_TOKENS * dim)
        self.encodings_to_tokens = nn.Linear(c.clip_text_width, dim)
        # These replace a dropped image embedding, of length 1, and a dropped caption.
        self.null_image_embed = nn.Parameter(c.clip_embed_dim**-0.5 * torch.randn(c.clip_embed_dim))
        self.null_caption = nn.Parameter(torch.randn(c.clip_text_seq_len, c.clip_text_width))
        levels = c.width, c.width_multipliers, c.num_blocks, c.num_attention_levels, c.head_dim
        self.unet = UNet(c.image_channels, c.image_channels, dim, *levels)

    def forward(
        self, x_t: Tensor, t: Tensor, image_embed: Tensor, text_encodings: Tensor | None = None, conditional=True
    ) -> Tensor:
        """Noised images (B, C, H, H) at timesteps t (B,) to a prediction (B, C, H, H).

        image_embed (B, E) of length 1 and text_encodings (B, T, text width) are CLIP's; None is the null caption.
        Learned nulls replace both where `conditional` is False, and in training mode a fraction `image_dropout` of the
        embeddings and `caption_dropout` of the captions. In training mode, noise of about the length `image_noise` turns
        the embeddings (conditioning augmentation, arXiv 2106.15282, section 3).
        """
        time, context = self.condition(t, image_embed, text_encodings, conditional)
        return self.unet(x_t, time, context)

    def condition(
        self, t: Tensor, image_embed: Tensor, text_encodings: Tensor | None, conditional: bool
    ) -> tuple[Tensor, Tensor]:
        """What the U-Net's layers read: the time embedding (B, D) and the context (B, 4 + T, D)."""
        c = self.config
        if text_encodings is None:
            text_encodings = self.null_caption.expand(len(t), -1, -1)
        image_dropout, caption_dropout = (c.image_dropout, c.caption_dropout) if self.training else (0.0, 0.0)
        if self.training:  # an embedding that is blurred leaves the caption something to say
            noise = c.image_noise * c.clip_embed_dim**-0.5 * torch.randn_like(image_embed)
            image_embed = F.normalize(image_embed + noise, dim=-1)
        if not conditional:
            image_dropout = caption_dropout = 1.0
        image_embed = drop_condition(image_embed, self.null_image_embed, image_dropout)
        text_encodings = drop_condition(text_encodings, self.null_caption, caption_dropout)
        image_embed = image_embed * math.sqrt(c.clip_embed_dim)  # of length 1 before; now components are about 1
        time = self.embed_time(timestep_encoding(t, c.width))
        time = time + self.image_to_time(image_embed) + self.caption_to_time(text_encodings[:, -1])
        image_tokens = rearrange(self.image_to_tokens(image_embed), "b (n d) -> b n d", n=NUM_IMAGE_TOKENS)
        return time, torch.cat([image_tokens, self.encodings_to_tokens(text_encodings)], dim=1)


@torch.no_grad()
def decode_image_embed(
    decoder: Decoder, image_embed: Tensor, text_encodings: Tensor | None, x_T: Tensor,
    guidance_scale: float = 1.0, num_steps: int = 20, x_0_range: float = 1.0, **noise,
) -> Tensor:  # fmt: skip
    """Decode CLIP image embeddings (B, E) of length 1, with their captions' text_encodings (B, T, text width) or None,
    from noise x_T (B, C, H, H) to images (B, C, H, H) in [0, 1]. `noise`, eta and randn, goes to
    Diffusion.sample."""
    network = guided(decoder, guidance_scale, image_embed, text_encodings)
    return from_x_0(decoder.diffusion.sample(network, x_T, num_steps, x_0_range=x_0_range, **noise))


def shrink(images: Tensor, size: int) -> Tensor:
    """Images (B, C, H, H) to (B, C, size, size), each pixel the mean of those that it covers."""
    return F.interpolate(images, size=(size, size), mode="area")


def to_x_0(images: Tensor) -> Tensor:
    """Images in [0, 1] to the range that the decoder works in, [-1, 1]."""
    return 2 * images - 1


def from_x_0(x_0: Tensor) -> Tensor:
    """The inverse of to_x_0, cut off to [0, 1]."""
    return ((x_0 + 1) / 2).clamp(0, 1)
