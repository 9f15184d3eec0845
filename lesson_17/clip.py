"""CLIP: images and captions as neighbors in one space (arXiv 2103.00020; in DALL·E 2, arXiv 2204.06125, section 2).

One transformer reads images and one reads captions. They learn to embed an image and its caption in the same direction,
away from all others of the batch. DALL·E 2 then works in that space.

Ours departs from the paper where captions repeat within a batch, as those of digits do: every valid caption of an image
is a right answer, not only the one that it came with. Where no caption repeats, this is the paper's loss.

B batch, K captions of an image, C image channels, H image height and width, N patches, T text tokens, E embedding size,
D width.
"""

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

MAX_LOGIT_SCALE = 100.0  # section 2.5 of the CLIP paper


def check_numbers(config) -> None:
    """Raises ValueError if a size of a config is not 1 or more, or a fraction not in [0, 1]."""
    for f in fields(config):
        value = getattr(config, f.name)
        least = 0 if f.name == "pad_id" else 1
        if type(f.default) is int and not least <= value < 10**9:
            raise ValueError(f"{f.name} {value} is not a whole number from {least} up.")
        if type(f.default) is float and not 0 <= value <= 1:
            raise ValueError(f"{f.name} {value} is not in [0, 1].")


@dataclass
class CLIPConfig:
    """Sizes of both encoders; the defaults are the `small` preset. Raises ValueError for sizes that do not work."""

    image_size: int = 28  # H
    image_channels: int = 1  # C
    patch_size: int = 7  # 16 patches
    image_width: int = 128
    image_layers: int = 3
    image_heads: int = 2
    text_vocab_size: int = 1024  # at most, for a training
    pad_id: int = 0  # the tokenizer's; the first one behind a caption is the end of the text
    text_seq_len: int = 7  # T, with the end of text; 76 in the CLIP paper
    text_width: int = 64
    text_layers: int = 2
    text_heads: int = 2
    embed_dim: int = 64  # E

    def __post_init__(self):
        check_numbers(self)
        if max(self.image_layers, self.text_layers) > 1000 or self.pad_id >= self.text_vocab_size:
            raise ValueError("image_layers and text_layers are 1,000 or less, and pad_id less than text_vocab_size.")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} does not divide into patches of {self.patch_size}.")
        if self.image_width % self.image_heads or self.text_width % self.text_heads:
            raise ValueError("image_heads and text_heads have to divide image_width and text_width.")


CLIP_PRESETS = {
    "small": CLIPConfig(),
    "large": CLIPConfig(
        patch_size=4, image_width=192, image_layers=6, image_heads=4,
        text_vocab_size=4096, text_width=128, text_heads=4, embed_dim=128,
    ),
    "paper": CLIPConfig(  # the CLIP of DALL·E 2, a ViT-H/16 (appendix C)
        image_size=256, image_channels=3, patch_size=16, image_width=1280, image_layers=32, image_heads=16,
        text_vocab_size=49408, text_seq_len=76, text_width=1024, text_layers=24, text_heads=16, embed_dim=1024,
    ),
}  # fmt: skip


def linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """A linear layer with first weights of unit gain and a bias of zeros."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    nn.init.normal_(layer.weight, std=in_features**-0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class Attention(nn.Module):
    """Multi-head attention. Written out, as PyTorch's fused one is slower on a CPU at these lengths."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = linear(dim, 3 * dim)
        self.to_out = linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = rearrange(self.to_qkv(x), "b s (three h d) -> three b h s d", three=3, h=self.num_heads)
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        out = scores.softmax(dim=-1).to(v.dtype) @ v
        return self.to_out(rearrange(out, "b h s d -> b s (h d)"))


class QuickGELU(nn.Module):
    """CLIP's approximation of the GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """Attention and a feed-forward network, each normalized first and added to the residual stream."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.norm_1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads)
        self.norm_2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(linear(dim, 4 * dim), QuickGELU(), linear(4 * dim, dim))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm_1(x), mask)
        return x + self.mlp(self.norm_2(x))


class ImageEncoder(nn.Module):
    """A vision transformer (arXiv 2010.11929); the feature of its class token is the image's."""

    def __init__(self, c: CLIPConfig):
        super().__init__()
        width, num_patches = c.image_width, (c.image_size // c.patch_size) ** 2
        self.embed_patches = nn.Conv2d(c.image_channels, width, c.patch_size, stride=c.patch_size, bias=False)
        self.class_token = nn.Parameter(0.02 * torch.randn(width))
        self.positions = nn.Parameter(0.02 * torch.randn(1 + num_patches, width))
        self.norm_before = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, c.image_heads) for _ in range(c.image_layers))
        self.norm_after = nn.LayerNorm(width)
        self.projection = linear(width, c.embed_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = rearrange(self.embed_patches(x), "b d h w -> b (h w) d")
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1)  # (B, 1 + N, D)
        x = self.norm_before(x + self.positions)
        for block in self.blocks:
            x = block(x)
        return self.projection(self.norm_after(x[:, 0]))  # (B, E)


class TextEncoder(nn.Module):
    """A causal transformer; the feature of the end of the text is the caption's."""

    def __init__(self, c: CLIPConfig):
        super().__init__()
        self.pad_id = c.pad_id
        token_weights = 0.02 * torch.randn(c.text_vocab_size, c.text_width)
        self.embed_token = nn.Embedding.from_pretrained(token_weights, freeze=False)
        self.positions = nn.Parameter(0.01 * torch.randn(c.text_seq_len, c.text_width))
        self.blocks = nn.ModuleList(Block(c.text_width, c.text_heads) for _ in range(c.text_layers))
        self.norm = nn.LayerNorm(c.text_width)
        self.projection = linear(c.text_width, c.embed_dim, bias=False)
        causal = torch.ones(c.text_seq_len, c.text_seq_len, dtype=torch.bool).tril()
        self.register_buffer("mask", causal, persistent=False)

    def forward(self, text_tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed_token(text_tokens) + self.positions
        for block in self.blocks:
            x = block(x, self.mask)
        encodings = self.norm(x)  # (B, T, D)
        end = (text_tokens == self.pad_id).int().argmax(dim=1)  # the first one
        return self.projection(encodings[torch.arange(len(x), device=x.device), end]), encodings


class CLIP(nn.Module):
    """Both encoders and the temperature of their comparison; `forward` is the training loss."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config)
        self.text_encoder = TextEncoder(config)
        # The logarithm of 1 / temperature; the temperature starts at 0.07 (section 2.5 of the CLIP paper).
        self.logit_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))

    def encode_image(self, images: Tensor) -> Tensor:
        """Images (B, C, H, H) in [0, 1], or of another size, or gray for C = 3, to embeddings of length 1, (B, E)."""
        size, channels = self.config.image_size, self.config.image_channels
        if images.shape[1:] != (channels, size, size):
            images = F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
            images = images.expand(-1, channels, -1, -1)
        return F.normalize(self.image_encoder(2 * images - 1).float(), dim=-1)

    def encode_text(self, text_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Captions (B, T), each followed by at least one pad, to embeddings of length 1, (B, E), and the encodings of
        their tokens, (B, T, D), which the prior and the decoder read too."""
        features, encodings = self.text_encoder(text_tokens)
        return F.normalize(features.float(), dim=-1), encodings.float()

    def logits_per_image(self, image_embed: Tensor, text_embed: Tensor) -> Tensor:
        """Similarity of each image (B, E) to each caption (B', E), (B, B'): their cosine over the temperature."""
        with torch.autocast(image_embed.device.type, enabled=False):  # bfloat16 cannot tell 60 from 60.2
            return self.logit_scale.exp() * image_embed @ text_embed.T

    def forward(self, images: Tensor, text_tokens: Tensor, caption: Tensor, caption_ids: Tensor) -> tuple[Tensor, dict]:
        """The contrastive loss (figure 3 of the CLIP paper) of images (B, C, H, H) in [0, 1] and captions (B, T).

        caption (B,): the index of each caption. caption_ids (B, K): the indices of each image's valid captions.
        Returns the loss, its attainable `floor`, both in nats, and the `logit_scale`.
        """
        text_embed, _ = self.encode_text(text_tokens)
        image_embed = self.encode_image(images)
        if torch.distributed.is_initialized():  # several processes compare all of their images and captions
            image_embed, text_embed, caption, caption_ids = map(gather, (image_embed, text_embed, caption, caption_ids))
        logits = self.logits_per_image(image_embed, text_embed)  # (B, B)
        loss, floor = contrastive_loss(logits, valid_pairs(caption, caption_ids))
        return loss, {"floor": floor, "logit_scale": self.logit_scale.exp().squeeze()}

    @torch.no_grad()
    def clip_logit_scale(self) -> None:
        """Keep the scale at MAX_LOGIT_SCALE or less, after each update; a clamp in `forward` would stop its gradient."""
        self.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))


def gather(x: Tensor) -> Tensor:
    """x (B, ...) of all processes, concatenated; gradients go back to the process they came from."""
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(x))


def valid_pairs(caption: Tensor, caption_ids: Tensor) -> Tensor:
    """Whether each of the captions (B',) is one of each image's valid captions, caption_ids (B, K): (B, B') bool."""
    is_valid = torch.zeros(len(caption_ids), len(caption), dtype=torch.bool, device=caption.device)
    for ids in caption_ids.T:
        is_valid |= ids[:, None] == caption[None, :]
    return is_valid


def contrastive_loss(logits: Tensor, is_valid: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of logits_per_image (B, B), along its rows and its columns, and the least that it can be, in nats.

    is_valid (B, B) bool: the valid captions of each image, equally likely to be the one that it came with. With one for
    each image the least is 0, and this is the paper's loss.
    """
    captions_of_image = is_valid / is_valid.sum(dim=1, keepdim=True)
    images_of_caption = is_valid.T / is_valid.T.sum(dim=1, keepdim=True)
    loss = (F.cross_entropy(logits, captions_of_image) + F.cross_entropy(logits.T, images_of_caption)) / 2
    entropy = torch.special.entr(captions_of_image).sum() + torch.special.entr(images_of_caption).sum()
    return loss, entropy / (2 * len(logits))
