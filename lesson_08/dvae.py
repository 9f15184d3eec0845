"""The discrete VAE: images <-> a grid of image tokens (DALL·E, arXiv 2102.12092, section 2.1, appendix A).

The encoder predicts a distribution over a codebook of K codes for each cell of a small grid; the decoder draws an image
from one code per cell. Choosing a code has no gradient, so training relaxes the choice with the Gumbel-softmax and
lowers its temperature tau until the relaxed choice is nearly a hard one.

B batch, C image channels, H image height and width, h token grid height and width, K codebook size, D codebook width.
"""

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

PIXEL_EPS = 0.1  # appendix A.3: pixels live in (eps, 1 - eps), where their logit is finite
MIN_LOG_B = 0.0  # floor of the predicted scale, see logit_laplace_nll


@dataclass
class DVAEConfig:
    """Sizes of the discrete VAE; the defaults are the `small` preset. Raises ValueError for sizes that do not work."""

    image_size: int = 28  # H
    image_channels: int = 1  # C
    codebook_size: int = 256  # K; 8,192 in the paper
    codebook_dim: int = 64  # D
    hidden_dim: int = 32  # channels at full resolution; they double with each down-sampling
    num_downsamples: int = 2  # one token stands for 4x4 pixels; for 8x8 in the paper
    num_blocks: int = 1  # residual blocks at each resolution
    beta: float = 0.03  # weight of the KL term, equation (1); 6.6 in the paper

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            if type(f.default) is int and not 1 <= value < 10**9:
                raise ValueError(f"{f.name} {value} is not a whole number from 1 up.")
        if self.hidden_dim < 4 or max(self.num_blocks, self.num_downsamples) > 100 or not 0 <= self.beta < math.inf:
            raise ValueError("hidden_dim is 4 or more, num_blocks and num_downsamples 100 or less, and beta 0 or more.")
        if self.image_size % 2**self.num_downsamples:  # it is halved num_downsamples times
            raise ValueError(f"image_size {self.image_size} is not a multiple of {2**self.num_downsamples}.")

    @property
    def grid_size(self) -> int:
        """Tokens along a side, h."""
        return self.image_size // 2**self.num_downsamples


DVAE_PRESETS = {
    "small": DVAEConfig(),
    "large": DVAEConfig(codebook_dim=128, hidden_dim=64, num_blocks=2),
    "paper": DVAEConfig(
        image_size=256, image_channels=3, codebook_size=8192, codebook_dim=128, hidden_dim=256,
        num_downsamples=3, num_blocks=2, beta=6.6,
    ),
}  # fmt: skip


def conv(in_channels: int, out_channels: int, kernel_size: int) -> nn.Conv2d:
    """A convolution that keeps height and width, its first weights of unit gain, as in the released code. With
    PyTorch's, which are smaller, the codebook came into use more slowly in short trials."""
    layer = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.weight[0].numel()))
    nn.init.zeros_(layer.bias)
    return layer


class ResBlock(nn.Module):
    """A bottleneck block (appendix A.1), with the width, order and gain of the released code's encoder. (In its decoder
    the 1x1 convolution comes first.)"""

    def __init__(self, in_channels: int, out_channels: int, gain: float):
        super().__init__()
        hidden = out_channels // 4
        self.gain = gain
        self.skip = nn.Identity() if in_channels == out_channels else conv(in_channels, out_channels, 1)
        self.residual = nn.Sequential(
            nn.ReLU(), conv(in_channels, hidden, 3),
            nn.ReLU(), conv(hidden, hidden, 3),
            nn.ReLU(), conv(hidden, hidden, 3),
            nn.ReLU(), conv(hidden, out_channels, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.gain * self.residual(x)


def res_blocks(in_channels: int, widths: list[int], num_blocks: int, between: nn.Module) -> list[nn.Module]:
    """`num_blocks` residual blocks at each of `widths`, with the re-sampling `between` one width and the next."""
    gain = 1 / (len(widths) * num_blocks) ** 2
    layers = []
    for width in widths:
        if layers:
            layers.append(between)
        for _ in range(num_blocks):
            layers.append(ResBlock(in_channels, width, gain))
            in_channels = width
    return layers


class DiscreteVAE(nn.Module):
    """Images to tokens and back; `forward` is the training loss, the evidence lower bound with its sign turned."""

    def __init__(self, config: DVAEConfig):
        super().__init__()
        self.config = config
        c = config
        widths = [c.hidden_dim * 2**i for i in range(c.num_downsamples + 1)]
        self.encoder = nn.Sequential(
            conv(c.image_channels, widths[0], 7),
            *res_blocks(widths[0], widths, c.num_blocks, between=nn.MaxPool2d(2)),
            nn.ReLU(),
            conv(widths[-1], c.codebook_size, 1),
        )
        self.codebook = nn.Embedding(c.codebook_size, c.codebook_dim)
        self.decoder = nn.Sequential(
            *res_blocks(c.codebook_dim, widths[::-1], c.num_blocks, between=nn.Upsample(scale_factor=2)),
            nn.ReLU(),
            conv(widths[0], 2 * c.image_channels, 1),  # mu and ln b of every pixel value
        )

    @property
    def blocks(self) -> list[ResBlock]:
        """The residual blocks of the encoder and the decoder."""
        return [layer for layer in (*self.encoder, *self.decoder) if isinstance(layer, ResBlock)]

    def forward(self, images: Tensor, tau: float, kl_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, equation (1), of images (B, C, H, H) in [0, 1], in nats a pixel value.

        tau: temperature of the relaxation. kl_weight: the multiple of `beta`, see kl_weight_schedule. Returns the loss,
        its parts `nll`, in nats a pixel value, and `kl`, in nats a token, and what codebook_use says of the hard
        tokens.
        """
        x = map_pixels(images)
        logits = self.encoder(x).float()  # (B, K, h, w)
        weights = F.gumbel_softmax(logits, tau=tau, dim=1)  # nearly one-hot when tau is small
        mixture = torch.einsum("bkhw,kd->bdhw", weights, self.codebook.weight)
        mu, log_b = self.decoder(mixture).float().chunk(2, dim=1)  # (B, C, H, H) each
        nll = logit_laplace_nll(x, mu, log_b).mean()
        kl = kl_to_uniform(logits).mean()
        # The paper sums the KL over the tokens and the likelihood over the pixel values, then divides both by the
        # number of pixel values; here each is a mean, so the ratio of their counts remains as a factor.
        tokens_per_value = self.config.grid_size**2 / images[0].numel()
        loss = nll + kl_weight * self.config.beta * tokens_per_value * kl
        return loss, {"nll": nll, "kl": kl, **codebook_use(logits.argmax(dim=1), self.config.codebook_size)}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, H) in [0, 1] to their likeliest image tokens (B, h*w), in 0 .. K - 1, row by row."""
        return rearrange(self.encoder(map_pixels(images)).argmax(dim=1), "b h w -> b (h w)")

    @torch.no_grad()
    def decode(self, image_tokens: Tensor) -> Tensor:
        """Image tokens (B, h*w) to images (B, C, H, H) in [0, 1], the median of the predicted distribution."""
        codes = rearrange(self.codebook(image_tokens), "b (h w) d -> b d h w", h=self.config.grid_size)
        mu, _ = self.decoder(codes).chunk(2, dim=1)
        return unmap_pixels(torch.sigmoid(mu))


def map_pixels(images: Tensor) -> Tensor:
    """Pixels in [0, 1] to [eps, 1 - eps] (appendix A.3)."""
    return PIXEL_EPS + (1 - 2 * PIXEL_EPS) * images


def unmap_pixels(x: Tensor) -> Tensor:
    """The inverse of map_pixels, cut off to [0, 1]."""
    return ((x - PIXEL_EPS) / (1 - 2 * PIXEL_EPS)).clamp(0, 1)


def logit_laplace_nll(x: Tensor, mu: Tensor, log_b: Tensor) -> Tensor:
    """Negative log-likelihood of mapped pixels x in (0, 1), elementwise, in nats: appendix A.3, equation (2).

    The logit of x is Laplace-distributed, with median mu and scale b. Without a floor, b shrinks to nothing on MNIST's
    black background: the loss would be all background, and the strokes would blur.
    """
    log_b = log_b.clamp(min=MIN_LOG_B)
    return (torch.logit(x) - mu).abs() * torch.exp(-log_b) + log_b + math.log(2) + torch.log(x * (1 - x))


def kl_to_uniform(logits: Tensor) -> Tensor:
    """KL divergence of softmax(logits) (B, K, h, w) from the uniform prior, (B, h, w): nats a token, 0 to ln K."""
    log_q = F.log_softmax(logits, dim=1)
    return (log_q.exp() * (log_q + math.log(logits.shape[1]))).sum(dim=1)


def codebook_use(image_tokens: Tensor, codebook_size: int) -> dict[str, Tensor]:
    """How much of the codebook some tokens use: the `perplexity` of their histogram, exp of its entropy, 1 for a
    codebook that has collapsed and at most K, and the number of `codes_used`."""
    counts = torch.zeros(codebook_size, device=image_tokens.device)  # bincount would wait for the device
    counts.index_add_(0, image_tokens.flatten(), counts.new_ones(image_tokens.numel()))
    entropy = torch.special.entr(counts / counts.sum()).sum()
    return {"perplexity": entropy.exp(), "codes_used": (counts > 0).sum()}


def tau_schedule(progress: float) -> float:
    """Temperature at a fraction `progress` of the training: a cosine from 1 to 1/16, then 1/16 (appendix A.2)."""
    return cosine(1.0, 1 / 16, progress / 0.8)


def kl_weight_schedule(progress: float) -> float:
    """Multiple of beta at a fraction `progress` of the training: a cosine from 120 to 1 in the first third.

    The paper's rises from 0 to 1 (appendix A.2). In a short training, the encoder then learns within a hundred steps to
    choose one code everywhere, with certainty, as that avoids the noise of the relaxation; and a certain choice has no
    gradient that could change it. A high cost of certainty at the beginning prevents that; in color, 12 and 40 did not.
    """
    return cosine(120.0, 1.0, progress / 0.33)


def cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0)))
