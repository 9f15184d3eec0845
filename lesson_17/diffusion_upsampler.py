"""The diffusion up-sampler: a small image -> a large one that shows the same (DALL·E 2, arXiv 2204.06125, section 2.1).

The decoder's U-Net (unet.py) with convolutions only, which is told no caption and no embedding, and so needs no guidance: what
it has to know is the small image, which it gets, enlarged, as further channels beside x_t. Several of them, one after
another, bring the decoder's images to the data's size.

Ours departs from the paper in that it learns from whole images, not from crops of a quarter of their size, and that each
up-sampler doubles height and width, where the paper's make four times of them.

B batch, C image channels, S height and width of the small image, H of the large one.
"""

from dataclasses import dataclass, fields
from functools import partial

import torch
import torch.nn.functional as F
from lesson_17.diffusion import Diffusion, check_diffusion, timestep_encoding
from lesson_17.diffusion_decoder import from_x_0, to_x_0
from lesson_17.unet import UNet, check_unet
from torch import Tensor, nn

BLUR_SIGMA = 0.6  # pixels; with a kernel of 3x3, appendix C
NOISE_STD = 0.05  # of small images in [0, 1]; the paper's first up-sampler has the blur only


@dataclass
class UpsamplerConfig:
    """Sizes of the U-Net; the defaults are the `small` preset. Raises ValueError if a number is out of range."""

    small_size: int = 14  # S
    image_size: int = 28  # H
    image_channels: int = 1  # C
    width: int = 16  # channels at full resolution; 320 in the paper
    width_multipliers: tuple[int, ...] = (1, 2, 4)  # one for each level; 1, 2, 3, 4 in the paper
    num_blocks: int = 1  # residual blocks a level; 3 in the paper
    num_timesteps: int = 1000
    schedule: str = "cosine"
    prediction: str = "v"  # as the decoder's

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            if type(f.default) is int and not 1 <= value < 10**9:
                raise ValueError(f"{f.name} {value} is not a whole number from 1 up.")
        check_unet(self.width, self.width_multipliers, self.num_blocks)
        check_diffusion(self.num_timesteps, self.schedule, self.prediction)


UPSAMPLER_PRESETS = {
    "small": UpsamplerConfig(),
    "large": UpsamplerConfig(width=64, num_blocks=2),
    # The first of the paper's two, appendix C.
    "paper": UpsamplerConfig(
        small_size=64,
        image_size=256,
        image_channels=3,
        width=320,
        width_multipliers=(1, 2, 3, 4),
        num_blocks=3,
        prediction="eps",
    ),
}


class Upsampler(nn.Module):
    """The U-Net: from x_t, t and the small image to what diffusion.py wants predicted."""

    def __init__(self, config: UpsamplerConfig):
        super().__init__()
        self.config = config
        c = config
        self.diffusion = Diffusion(c.num_timesteps, c.schedule, c.prediction)
        dim = 4 * c.width  # of the time embedding
        self.embed_time = nn.Sequential(nn.Linear(c.width, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.unet = UNet(2 * c.image_channels, c.image_channels, dim, c.width, c.width_multipliers, c.num_blocks)

    def forward(self, x_t: Tensor, t: Tensor, small: Tensor) -> Tensor:
        """Noised images (B, C, H, H) at timesteps t (B,), and small images (B, C, S, S) in [0, 1], to a prediction
        (B, C, H, H)."""
        time = self.embed_time(timestep_encoding(t, self.config.width))
        enlarged = F.interpolate(to_x_0(small), size=x_t.shape[2:], mode="bilinear")  # as ADM's up-samplers do
        return self.unet(torch.cat([x_t, enlarged], dim=1), time)


def corrupt(small: Tensor) -> Tensor:
    """Small images (B, C, S, S) in [0, 1], blurred and noised a little, which is what training shows: real ones are sharper and
    cleaner than those of a decoder, and an up-sampler that saw nothing else would take its mistakes for detail."""
    x = torch.arange(-1, 2, device=small.device)
    weights = torch.exp(-(x**2) / (2 * BLUR_SIGMA**2))
    kernel = torch.outer(weights, weights) / weights.sum() ** 2
    channels = small.shape[1]
    padded = F.pad(small, (1, 1, 1, 1), mode="replicate")
    blurred = F.conv2d(padded, kernel.expand(channels, 1, 3, 3), groups=channels)
    return blurred + NOISE_STD * torch.randn_like(small)


@torch.no_grad()
def upsample(upsampler: Upsampler, small: Tensor, x_T: Tensor, num_steps: int = 20) -> Tensor:
    """Images (B, C, H, H) in [0, 1] that show what small images (B, C, S, S) in [0, 1] do, from noise x_T (B, C, H, H),
    by DDIM as in the paper (appendix C)."""
    network = partial(upsampler, small=small)
    return from_x_0(upsampler.diffusion.sample(network, x_T, num_steps, x_0_range=1.0))
