"""The diffusion prior: a caption -> a CLIP image embedding that fits it (DALL·E 2, arXiv 2204.06125, section 2.2).

A causal transformer reads one sequence and predicts the clean image embedding at the last position:

    the caption's token encodings, its CLIP text embedding, the timestep, the noised image embedding, a learned query

B batch, T text tokens, E size of CLIP's embeddings, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from lesson_17.clip import Block, check_numbers
from lesson_17.diffusion import Diffusion, check_diffusion, drop_condition, guided, timestep_encoding
from torch import Tensor, nn

MIN_STD = 1e-4  # of a component of the embeddings; most are of about 0.1


@dataclass
class PriorConfig:
    """Sizes of the prior; the defaults are the `small` preset. Raises ValueError for sizes that do not work."""

    clip_embed_dim: int = 64  # E
    clip_text_width: int = 64  # of CLIP's token encodings
    clip_text_seq_len: int = 7  # T
    dim: int = 128  # D; 2,048 in the paper
    num_layers: int = 3  # 24 in the paper
    num_heads: int = 2
    caption_dropout: float = 0.1  # fraction of captions dropped in training, for guidance
    num_timesteps: int = 1000
    schedule: str = "cosine"
    prediction: str = "x_0"  # the paper found predicting the clean embedding better than the noise

    def __post_init__(self):
        check_numbers(self)
        check_diffusion(self.num_timesteps, self.schedule, self.prediction)
        if self.num_layers > 1000 or self.dim % 2 or self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} is odd or not divided by num_heads, or num_layers is more than 1,000.")


PRIOR_PRESETS = {
    "small": PriorConfig(),
    "large": PriorConfig(dim=256, num_layers=6, num_heads=4),
    "paper": PriorConfig(  # appendix C
        clip_embed_dim=1024, clip_text_width=1024, clip_text_seq_len=256, dim=2048, num_layers=24, num_heads=32
    ),
}


class DiffusionPrior(nn.Module):
    """The transformer, and the scale of the embeddings that it was trained on."""

    def __init__(self, config: PriorConfig):
        super().__init__()
        self.config = config
        c = config
        self.diffusion = Diffusion(c.num_timesteps, c.schedule, c.prediction)
        self.embed_encodings = nn.Linear(c.clip_text_width, c.dim)
        self.embed_text = nn.Linear(c.clip_embed_dim, c.dim)
        self.embed_time = nn.Sequential(nn.Linear(c.dim, c.dim), nn.SiLU(), nn.Linear(c.dim, c.dim))
        self.embed_image = nn.Linear(c.clip_embed_dim, c.dim)
        self.query = nn.Parameter(torch.zeros(c.dim))
        # The null caption replaces a dropped caption's token encodings and text embedding.
        self.null_caption = nn.Parameter(0.02 * torch.randn(c.clip_text_seq_len + 1, c.dim))
        seq_len = c.clip_text_seq_len + 4
        self.positions = nn.Parameter(0.02 * torch.randn(seq_len, c.dim))
        self.blocks = nn.ModuleList(Block(c.dim, c.num_heads) for _ in range(c.num_layers))
        self.norm = nn.LayerNorm(c.dim)
        self.to_image_embed = nn.Linear(c.dim, c.clip_embed_dim)
        self.register_buffer("mask", torch.ones(seq_len, seq_len, dtype=torch.bool).tril(), persistent=False)
        self.register_buffer("embed_mean", torch.zeros(c.clip_embed_dim))
        self.register_buffer("embed_std", torch.ones(c.clip_embed_dim))

    def forward(
        self, x_t: Tensor, t: Tensor, text_embed: Tensor, text_encodings: Tensor, conditional: bool = True
    ) -> Tensor:
        """Noised, scaled image embeddings (B, E) at timesteps t (B,) to the clean, scaled ones (B, E).

        text_embed (B, E) and text_encodings (B, T, text width) are CLIP's. The learned null caption replaces them where
        `conditional` is False, and a fraction `caption_dropout` of them in training mode.
        """
        probability = self.config.caption_dropout if self.training else 0.0
        caption = torch.cat([self.embed_encodings(text_encodings), self.embed_text(text_embed)[:, None]], dim=1)
        caption = drop_condition(caption, self.null_caption, probability if conditional else 1.0)  # (B, T + 1, D)
        time = self.embed_time(timestep_encoding(t, self.config.dim))
        rest = torch.stack([time, self.embed_image(x_t), self.query.expand_as(time)], dim=1)  # (B, 3, D)
        x = torch.cat([caption, rest], dim=1) + self.positions
        for block in self.blocks:
            x = block(x, self.mask)
        return self.to_image_embed(self.norm(x[:, -1]))

    def fit_scale(self, image_embed: Tensor) -> None:
        """Take the scale from the training set's image embeddings (N, E); of those all alike, or of one, it is MIN_STD."""
        self.embed_mean.copy_(image_embed.mean(dim=0))
        self.embed_std.copy_(image_embed.std(dim=0, correction=min(1, len(image_embed) - 1)).clamp(min=MIN_STD))

    def scale(self, image_embed: Tensor) -> Tensor:
        """CLIP image embeddings (B, E) to zero mean and unit variance in each component, as the noise has; at length 1
        they have components of about 1 / sqrt(E)."""
        return (image_embed - self.embed_mean) / self.embed_std

    def unscale(self, x: Tensor) -> Tensor:
        """The inverse of `scale`, brought to length 1."""
        return nn.functional.normalize(x * self.embed_std + self.embed_mean, dim=-1)


@torch.no_grad()
def draw_image_embed(
    prior: DiffusionPrior, text_embed: Tensor, text_encodings: Tensor,
    guidance_scale: float = 1.0, num_steps: int = 20, randn: Callable = torch.randn,
) -> Tensor:  # fmt: skip
    """Captions' text_embed (B, E) and text_encodings (B, T, width) to CLIP image embeddings of length 1, (B, E).

    Two are drawn for each caption, and the one with the larger product with its text embedding is kept (section 2.2).
    randn(shape) draws their noise x_T; the steps add none (DDIM).
    """
    network = guided(prior, guidance_scale, text_embed, text_encodings)

    def draw() -> Tensor:
        x_T = randn(text_embed.shape).to(text_embed)
        return prior.unscale(prior.diffusion.sample(network, x_T, num_steps))

    first, second = draw(), draw()
    better = (second * text_embed).sum(dim=-1) > (first * text_embed).sum(dim=-1)
    return torch.where(better[:, None], second, first)
