"""The noise process that the prior and the decoder share: DDPM (arXiv 2006.11239) and DDIM (arXiv 2010.02502).

Gaussian noise is added to a clean x_0 step by step, t = 1 ... T. A network that reads x_t and t learns to predict x_0,
or the noise, eps, or a mixture of both, v; whichever it predicts, the others follow from x_t. Sampling starts from
noise, x_T, and goes back to t = 0. Nothing here knows what x is, or what else the network reads.

alphas_cumprod is the fraction of x_0's variance that is left at t (the papers' alpha with a bar), 1 at t = 0.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_BETA = 0.999  # something of x_0 is left at every t


def linear_betas(num_timesteps: int) -> Tensor:
    """Variance that each step adds, t = 1 ... T: DDPM, section 4, stretched to other T. (T,) float64."""
    scale = 1000 / num_timesteps
    return torch.linspace(1e-4 * scale, 0.02 * scale, num_timesteps, dtype=torch.float64).clamp(max=MAX_BETA)


def cosine_betas(num_timesteps: int, offset: float = 0.008) -> Tensor:
    """The same for the cosine schedule: Improved DDPM (arXiv 2102.09672), equation (17)."""
    t = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
    alphas_cumprod = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=MAX_BETA)


BETAS = {"linear": linear_betas, "cosine": cosine_betas}
PREDICTIONS = ("x_0", "eps", "v")


def check_diffusion(num_timesteps: int, schedule: str, prediction: str) -> None:
    """Raises ValueError if Diffusion cannot be made of these."""
    if not 1 <= num_timesteps <= 100_000:
        raise ValueError(f"num_timesteps {num_timesteps} is not in 1 .. 100,000.")
    if schedule not in BETAS or prediction not in PREDICTIONS:
        raise ValueError(f"schedule is one of {', '.join(BETAS)}, and prediction one of {', '.join(PREDICTIONS)}.")


class Diffusion(nn.Module):
    """The schedule and all that follows from it. prediction: what networks predict, "x_0", "eps", or "v" (arXiv
    2202.00512, appendix D)."""

    def __init__(self, num_timesteps: int = 1000, schedule: str = "cosine", prediction: str = "v"):
        super().__init__()
        self.num_timesteps, self.prediction = num_timesteps, prediction
        alphas_cumprod = (1 - BETAS[schedule](num_timesteps)).cumprod(dim=0)
        alphas_cumprod = F.pad(alphas_cumprod, (1, 0), value=1.0)  # at t = 0 ... T
        # Both roots are taken in float64: near t = 0, float32 would keep few digits of 1 - alphas_cumprod.
        dtype = torch.get_default_dtype()
        self.register_buffer("sqrt_alphas_cumprod", alphas_cumprod.sqrt().to(dtype), persistent=False)
        self.register_buffer("sqrt_one_minus_alphas_cumprod", (1 - alphas_cumprod).sqrt().to(dtype), persistent=False)

    def at(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """a_t = sqrt(alphas_cumprod) and b_t = sqrt(1 - alphas_cumprod) at t, () or (B,), in a shape to multiply x."""
        shape = (-1,) + (1,) * (x.ndim - 1)
        return self.sqrt_alphas_cumprod[t].view(shape), self.sqrt_one_minus_alphas_cumprod[t].view(shape)

    def q_sample(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t of a clean x_0 (B, ...) and noise eps (B, ...): DDPM, equation (4)."""
        a_t, b_t = self.at(t, x_0)
        return a_t * x_0 + b_t * eps

    def target(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """What the network should predict."""
        a_t, b_t = self.at(t, x_0)
        return {"x_0": x_0, "eps": eps, "v": a_t * eps - b_t * x_0}[self.prediction]

    def loss(self, network: Callable, x_0: Tensor, *conditions, t: Tensor | None = None) -> Tensor:
        """DDPM, algorithm 1: the mean squared error of network(x_t, t, *conditions) for x_0 (B, ...) at random
        timesteps, or at t (B,)."""
        if t is None:
            t = torch.randint(1, self.num_timesteps + 1, (len(x_0),), device=x_0.device)
        eps = torch.randn_like(x_0)
        x_t = self.q_sample(x_0, t, eps)
        predicted = network(x_t, t, *conditions)
        return F.mse_loss(predicted.float(), self.target(x_0, t, eps))

    def noisy_timesteps(self, number: int) -> Tensor:
        """Timesteps (B,) of which more are large than small: T times a logit-normal number (arXiv 2403.03206, section 3.1),
        the sigmoid of one of mean 0.5 and deviation 1.2."""
        normal = torch.randn(number, device=self.sqrt_alphas_cumprod.device)
        return (self.num_timesteps * torch.sigmoid(0.5 + 1.2 * normal)).ceil().long()

    def x_0_and_eps(self, predicted: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_0 and eps, (B, ...) each, that follow from what is predicted of x_t."""
        a_t, b_t = self.at(t, x_t)
        if self.prediction == "v":
            return a_t * x_t - b_t * predicted, b_t * x_t + a_t * predicted
        if self.prediction == "x_0":
            return predicted, (x_t - a_t * predicted) / b_t
        return (x_t - b_t * predicted) / a_t, predicted

    def timesteps(self, num_steps: int) -> list[Tensor]:
        """num_steps + 1 timesteps, at most T + 1, from T to 0, evenly spaced; on the CPU, so that no look at one waits."""
        return list(torch.linspace(self.num_timesteps, 0, min(num_steps, self.num_timesteps) + 1).round().long())

    @torch.no_grad()
    def sample(
        self, network: Callable, x_T: Tensor, num_steps: int,
        eta: float = 0.0, randn: Callable = torch.randn, x_0_range: float = math.inf,
    ) -> Tensor:  # fmt: skip
        """Noise x_T (B, ...) to samples, in num_steps calls of network(x_t, t).

        eta: how much fresh noise a step adds; 0 is none, which is DDIM, and 1 is DDPM (algorithm 2). randn(shape) draws
        that noise. The predicted x_0 is clamped to +-x_0_range.
        """
        x, steps = x_T, self.timesteps(num_steps)
        for t, s in zip(steps, steps[1:]):
            x, _ = self.step(network, x, t, s, eta, randn, x_0_range)
        return x

    def step(
        self, network: Callable, x_t: Tensor, t: Tensor, s: Tensor, eta: float, randn: Callable, x_0_range: float
    ) -> tuple[Tensor, Tensor]:
        """One step of `sample`, from x_t to x_s for an s < t: x_s and the predicted x_0, (B, ...) each. DDIM, equation
        (12), with sigma of equation (16)."""
        x_0, eps = self.predict(network, x_t, t, x_0_range)
        a_t, b_t = self.at(t, x_t)
        a_s, b_s = self.at(s, x_t)
        sigma = eta * b_s / b_t * (1 - (a_t / a_s) ** 2).sqrt()
        x_s = a_s * x_0 + (b_s**2 - sigma**2).clamp(min=0).sqrt() * eps  # by rounding it can be below 0
        if eta > 0 and s > 0:
            x_s = x_s + sigma * randn(x_s.shape).to(x_s)
        return x_s, x_0

    def predict(self, network: Callable, x_t: Tensor, t: Tensor, x_0_range: float) -> tuple[Tensor, Tensor]:
        """The x_0 and eps that the network predicts from x_t (B, ...), with x_0 clamped to +-x_0_range."""
        x_0, eps = self.x_0_and_eps(network(x_t, t.expand(len(x_t)).to(x_t.device)), x_t, t)
        if x_0_range < math.inf:
            x_0 = x_0.clamp(-x_0_range, x_0_range)
            a_t, b_t = self.at(t, x_t)
            eps = (x_t - a_t * x_0) / b_t
        return x_0, eps


def guided(model: Callable, guidance_scale: float, *conditions) -> Callable:
    """Classifier-free guidance (arXiv 2207.12598): model(x_t, t, *conditions, conditional) becomes a network(x_t, t).

    guidance_scale: 0 is the unconditional model, 1 the conditional one; more exaggerates the conditions.
    """

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        def predict(conditional: bool) -> Tensor:
            return model(x_t, t, *conditions, conditional=conditional).to(x_t.dtype)

        if guidance_scale in (0, 1):
            return predict(guidance_scale == 1)
        unconditional = predict(False)
        return unconditional + guidance_scale * (predict(True) - unconditional)

    return network


def drop_condition(condition: Tensor, null: Tensor, probability: float) -> Tensor:
    """Conditions (B, ...), each replaced by the learned null (...) with some probability; 1 is unconditional."""
    dropped = torch.rand(len(condition), device=condition.device) < probability
    return torch.where(dropped.view(-1, *[1] * null.ndim), null, condition)


def timestep_encoding(t: Tensor, dim: int) -> Tensor:
    """Cosines and sines of timesteps (B,) at dim / 2 frequencies, (B, dim)."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(dim // 2, device=t.device) / (dim // 2))
    angles = t[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
