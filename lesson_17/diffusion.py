"""The noise process that the prior and the decoder share: DDPM (arXiv 2006.11239) and DDIM (arXiv 2010.02502).

A clean x_0 is drowned in Gaussian noise step by step, t = 1 ... T. A network that looks at x_t and t learns what was
clean, x_0, or what was noise, eps, or a mixture of both, v; whichever it predicts, the others follow from x_t. To
sample, start from noise, x_T, and go back to t = 0. Nothing here knows what x is or what the network is told besides.

The noise process is written with alphas_cumprod, the share of x_0's variance that is left at t; 1 at t = 0.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear_betas(num_timesteps: int) -> Tensor:
    """Variance that each step adds, t = 1 ... T: DDPM, section 4, stretched to other T. (T,) float64."""
    scale = 1000 / num_timesteps
    return torch.linspace(1e-4 * scale, 0.02 * scale, num_timesteps, dtype=torch.float64)


def cosine_betas(num_timesteps: int, offset: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """The same for the cosine schedule: Improved DDPM (arXiv 2102.09672), equation (17)."""
    t = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
    alphas_cumprod = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=max_beta)


BETAS = {"linear": linear_betas, "cosine": cosine_betas}


class Diffusion(nn.Module):
    """The schedule and all that follows from it.

    prediction: what the networks predict, "x_0", "eps", or "v" (arXiv 2202.00512, appendix D).
    """

    def __init__(self, num_timesteps: int = 1000, schedule: str = "cosine", prediction: str = "v"):
        super().__init__()
        self.num_timesteps = num_timesteps
        self.prediction = prediction
        alphas_cumprod = (1 - BETAS[schedule](num_timesteps)).cumprod(dim=0)
        alphas_cumprod = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod])  # at t = 0 ... T
        # Both roots are taken in float64: near t = 0, float32 would keep few digits of 1 - alphas_cumprod.
        dtype = torch.get_default_dtype()
        self.register_buffer("signal", alphas_cumprod.sqrt().to(dtype), persistent=False)
        self.register_buffer("noise", (1 - alphas_cumprod).sqrt().to(dtype), persistent=False)

    def at(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alphas_cumprod) and sqrt(1 - alphas_cumprod) at t, () or (B,), shaped to multiply x (B, ...)."""
        shape = (-1,) + (1,) * (x.ndim - 1)
        return self.signal[t].view(shape), self.noise[t].view(shape)

    def q_sample(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t of a clean x_0 (B, ...) and noise eps (B, ...): DDPM, equation (4)."""
        signal, noise = self.at(t, x_0)
        return signal * x_0 + noise * eps

    def target(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """What the network should predict."""
        signal, noise = self.at(t, x_0)
        return {"x_0": x_0, "eps": eps, "v": signal * eps - noise * x_0}[self.prediction]

    def x_0_and_eps(self, predicted: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What a prediction says that x_t (B, ...) is made of."""
        signal, noise = self.at(t, x_t)
        if self.prediction == "v":
            return signal * x_t - noise * predicted, noise * x_t + signal * predicted
        if self.prediction == "x_0":
            return predicted, (x_t - signal * predicted) / noise
        return (x_t - noise * predicted) / signal, predicted

    def loss(self, network: Callable, x_0: Tensor, t: Tensor | None = None) -> Tensor:
        """Mean squared error of network(x_t, t) at t (B,), or a random t for each x_0 (B, ...): DDPM, algorithm 1."""
        t = torch.randint(1, self.num_timesteps + 1, (len(x_0),), device=x_0.device) if t is None else t
        eps = torch.randn_like(x_0)
        predicted = network(self.q_sample(x_0, t, eps), t)
        return F.mse_loss(predicted.float(), self.target(x_0, t, eps))

    def q_posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of x_s for an s < t, given x_0 and x_t: DDPM, equations (6) and (7), for any step back."""
        signal_t, noise_t = self.at(t, x_t)
        signal_s, noise_s = self.at(s, x_t)
        alpha = (signal_t / signal_s) ** 2  # of the steps from s to t together
        mean = (signal_s * (1 - alpha) * x_0 + alpha.sqrt() * noise_s**2 * x_t) / noise_t**2
        return mean, (1 - alpha) * noise_s**2 / noise_t**2

    def timesteps(self, num_steps: int) -> list[Tensor]:
        """num_steps + 1 of them, or T + 1 if that is less, from T to 0, evenly spaced."""
        num_steps = min(num_steps, self.num_timesteps)
        return list(torch.linspace(self.num_timesteps, 0, num_steps + 1, device=self.signal.device).round().long())

    @torch.no_grad()
    def sample(
        self,
        network: Callable,
        x_T: Tensor,
        num_steps: int,
        sampler: str = "ddim",
        eta: float = 0.0,
        randn: Callable = torch.randn,
        x_0_range: float = math.inf,
    ) -> Tensor:
        """Noise x_T (B, ...) to samples, in num_steps calls of network(x_t, t).

        sampler: "ddpm" draws x_s from its posterior (DDPM, algorithm 2); "ddim" mixes the predicted x_0 and eps as at
        s, with as much fresh noise as `eta` says: 0 none, 1 as much as DDPM. randn(shape) gives that noise. The
        predicted x_0 is kept within +-x_0_range.
        """
        x, is_random = x_T, sampler == "ddpm" or eta > 0
        steps = self.timesteps(num_steps)
        for t, s in zip(steps, steps[1:]):
            x_0, eps = self.x_0_and_eps(network(x, t.expand(len(x))), x, t)
            if x_0_range < math.inf:
                x_0 = x_0.clamp(-x_0_range, x_0_range)
                signal, noise = self.at(t, x)
                eps = (x - signal * x_0) / noise
            if sampler == "ddpm":
                x, variance = self.q_posterior(x_0, x, t, s)
            else:
                x, variance = self.ddim_step(x_0, eps, t, s, eta)
            if is_random and s > 0:
                x = x + variance.sqrt() * randn(x.shape).to(x)
        return x

    def ddim_step(self, x_0: Tensor, eps: Tensor, t: Tensor, s: Tensor, eta: float) -> tuple[Tensor, Tensor]:
        """Mean and variance of x_s for an s < t: DDIM, equation (12), with sigma of equation (16)."""
        signal_t, noise_t = self.at(t, x_0)
        signal_s, noise_s = self.at(s, x_0)
        sigma = eta * noise_s / noise_t * (1 - (signal_t / signal_s) ** 2).sqrt()
        return signal_s * x_0 + (noise_s**2 - sigma**2).sqrt() * eps, sigma**2

    @torch.no_grad()
    def invert(self, network: Callable, x_0: Tensor, num_steps: int, num_iterations: int = 3) -> Tensor:
        """The noise x_T from which `sample` by DDIM, in as many steps, with eta 0 and no x_0_range, comes to x_0 (B, ...).

        In terms of v a DDIM step is a rotation, x_s = cos(angle) x_t - sin(angle) v (arXiv 2202.00512, appendix D).
        Its v is predicted at the very x_t that is sought, so x_t is found by fixed-point iteration; one iteration is
        the usual approximation (DDIM, section 4.3).
        """
        x_s = x_0
        steps = self.timesteps(num_steps)[::-1]
        for s, t in zip(steps, steps[1:]):
            (signal_s, noise_s), (signal_t, noise_t) = self.at(s, x_s), self.at(t, x_s)
            cos, sin = signal_s * signal_t + noise_s * noise_t, noise_t * signal_s - signal_t * noise_s
            x_t = x_s
            for _ in range(num_iterations):
                predicted_x_0, eps = self.x_0_and_eps(network(x_t, t.expand(len(x_t))), x_t, t)
                x_t = (x_s + sin * (signal_t * eps - noise_t * predicted_x_0)) / cos
            x_s = x_t
        return x_s


def guided(model: Callable, guidance_scale: float, *conditions) -> Callable:
    """Classifier-free guidance (arXiv 2207.12598): model(x_t, t, *conditions, conditional) becomes a network(x_t, t).

    guidance_scale: 0 is the unconditional model, 1 the conditional one; more exaggerates what the conditions change.
    """

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        def predict(conditional: bool) -> Tensor:
            return model(x_t, t, *conditions, conditional=conditional).to(x_t.dtype)

        if guidance_scale in (0, 1):
            return predict(guidance_scale == 1)
        unconditional = predict(False)
        return unconditional + guidance_scale * (predict(True) - unconditional)

    return network


def drop_condition(condition: Tensor, null: Tensor, share: float) -> Tensor:
    """A random share of the conditions (B, ...) replaced by the learned null (...); with share 1 all of them, which
    makes the network the unconditional one."""
    dropped = torch.rand(len(condition), device=condition.device) < share
    return torch.where(dropped.view(-1, *[1] * null.ndim), null, condition)


def timestep_encoding(t: Tensor, dim: int) -> Tensor:
    """Sines and cosines of timesteps (B,) at `dim` / 2 frequencies each, (B, dim)."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(dim // 2, device=t.device) / (dim // 2))
    angles = t[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
