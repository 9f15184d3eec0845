"""The U-Net that the decoder and the up-samplers share: GLIDE's (arXiv 2112.10741), after ADM's (arXiv 2105.05233).

Residual blocks and, on the lowest levels, attention, down to ever smaller images and up again, with skips between the
two ways. Every block reads a time embedding, and attention reads a context; what they stand for, and what is predicted,
is not known here. An image may have any size: 7 pixels are halved to 4.

B batch, C channels, H image height and width, S tokens of the context, D size of the time embedding and of the context.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(1, channels)  # 32 groups in ADM; one is faster on a CPU, in channels_last


def zero(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Zeros the last layer of a residual path, or of the network, so that it adds nothing when training starts."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class ResBlock(nn.Module):
    """Two convolutions; the time embedding scales and shifts what goes into the second."""

    def __init__(self, in_channels: int, out_channels: int, dim: int):
        super().__init__()
        self.norm_1 = norm(in_channels)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.to_scale_and_shift = nn.Linear(dim, 2 * out_channels)
        self.norm_2 = norm(out_channels)
        self.conv_2 = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv_1(F.silu(self.norm_1(x)))
        scale, shift = self.to_scale_and_shift(F.silu(time))[:, :, None, None].chunk(2, dim=1)
        h = self.conv_2(F.silu(self.norm_2(h) * (1 + scale) + shift))
        return self.skip(x) + h


class Attention(nn.Module):
    """Every position attends to all positions and to the context (GLIDE, section 4.1: both in one softmax)."""

    def __init__(self, channels: int, dim: int, head_dim: int):
        super().__init__()
        self.head_dim = head_dim
        self.norm = norm(channels)
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.context_to_kv = nn.Linear(dim, 2 * channels)
        self.to_out = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        positions = rearrange(self.norm(x), "b c h w -> b (h w) c")
        q, k, v = self.to_qkv(positions).chunk(3, dim=-1)
        context_k, context_v = self.context_to_kv(context).chunk(2, dim=-1)
        k, v = torch.cat([context_k, k], dim=1), torch.cat([context_v, v], dim=1)
        q, k, v = (rearrange(y, "b s (n d) -> b n s d", d=self.head_dim) for y in (q, k, v))
        weights = ((q / math.sqrt(self.head_dim)) @ k.transpose(-1, -2)).softmax(dim=-1)
        out = rearrange(weights.to(v.dtype) @ v, "b n s d -> b s (n d)")
        return x + rearrange(self.to_out(out), "b (h w) c -> b c h w", h=x.shape[2])


class Layer(nn.Module):
    """A residual block, followed by attention on the levels that have a head_dim."""

    def __init__(self, in_channels: int, out_channels: int, dim: int, head_dim: int | None, halves: bool = False):
        super().__init__()
        self.pool = nn.AvgPool2d(2, ceil_mode=True) if halves else nn.Identity()
        self.block = ResBlock(in_channels, out_channels, dim)
        self.attention = None if head_dim is None else Attention(out_channels, dim, head_dim)

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        x = self.block(self.pool(x), time)
        return x if self.attention is None else self.attention(x, context)


class UNet(nn.Module):
    """Images (B, in_channels, H, H) to images (B, out_channels, H, H). dim: D. width_multipliers: one a level, of
    `width` channels. num_attention_levels: how many of the lowest levels have attention, with heads of head_dim; 0: no
    context."""

    def __init__(
        self, in_channels: int, out_channels: int, dim: int, width: int, width_multipliers: tuple[int, ...],
        num_blocks: int, num_attention_levels: int = 0, head_dim: int | None = None,
    ):  # fmt: skip
        super().__init__()
        widths = [width * multiplier for multiplier in width_multipliers]
        head_dims = [None] * (len(widths) - num_attention_levels) + [head_dim] * num_attention_levels
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        # Of each skip: its channels, and the width and head_dim of its layer on the way up.
        skips = [(width, widths[0], head_dims[0])]
        channels = width
        for level, (level_width, level_head_dim) in enumerate(zip(widths, head_dims)):
            for block in range(num_blocks):
                halves = level > 0 and block == 0
                self.down.append(Layer(channels, level_width, dim, level_head_dim, halves))
                channels = level_width
                skips.append((channels, level_width, level_head_dim))
        self.middle = nn.ModuleList([Layer(channels, channels, dim, head_dims[-1])])
        self.middle.append(Layer(channels, channels, dim, None))
        for skip_channels, level_width, level_head_dim in reversed(skips):
            self.up.append(Layer(channels + skip_channels, level_width, dim, level_head_dim))
            channels = level_width
        self.norm = norm(channels)
        self.to_out = zero(nn.Conv2d(channels, out_channels, 3, padding=1))

    @property
    def blocks(self) -> list[Layer]:
        """All that lies between the first convolution and the last."""
        return [*self.down, *self.middle, *self.up]

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None = None) -> Tensor:
        """x (B, in_channels, H, H), time (B, D), context (B, S, D)."""
        h = self.stem(x)
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


def check_unet(width: int, width_multipliers: tuple[int, ...], num_blocks: int) -> None:
    """Raises ValueError if a UNet cannot be made of these."""
    if min(width_multipliers) < 1 or not 1 <= num_blocks <= 100 or width < 2 or width % 2:
        raise ValueError("width_multipliers are 1 or more, num_blocks is 1 to 100, and width even and positive.")
