"""Muon and AdamW, and which parameters each of them trains, in both lessons.

Muon (Jordan et al., 2024, github.com/KellerJordan/Muon) is gradient descent with orthogonal steps of each matrix.
The momentum of a matrix has a few large directions and many small ones; Muon makes all of them alike, so that the rare
ones are learned too, in fewer steps. torch.optim.Muon is always in bfloat16, twenty times slower on many CPUs.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from utils.training import TrainingConfig

NEWTON_SCHULZ_STEPS = 5


def make_optimizers(
    model: nn.Module, training: TrainingConfig, blocks: Iterable[nn.Module] = ()
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of `blocks`, the filters of convolutions among them; AdamW (the papers') for the rest;
    biases do not decay."""
    matrices = [p for block in blocks for p in block.parameters() if p.ndim > 1]
    by_muon = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in by_muon]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    dtype = torch.bfloat16 if training.mixed_precision == "bf16" else torch.float32
    muon = [Muon(matrices, training.learning_rate, training.weight_decay, dtype=dtype)] if matrices else []
    return [*muon, torch.optim.AdamW(groups, training.learning_rate, betas=(0.9, 0.96))]


class Muon(torch.optim.Optimizer):
    """Orthogonalized Nesterov momentum for matrices, scaled to a root mean square of 0.2 as AdamW's steps have (arXiv
    2502.16982, section 2.2), so that one learning rate serves both; with decoupled weight decay."""

    def __init__(self, params, lr: float, weight_decay: float = 0.0, momentum: float = 0.95, dtype=torch.float32):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype  # of the orthogonalization; bfloat16 is enough

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            lr, mu = group["lr"], group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.mul_(mu).add_(parameter.grad, alpha=1 - mu)
                direction = (parameter.grad * (1 - mu) + momentum * mu).flatten(1)  # Nesterov's; a filter is a row
                update = 0.2 * math.sqrt(max(direction.shape)) * orthogonalized(direction, self.dtype)
                update = update.view_as(parameter).to(parameter.dtype)
                parameter.mul_(1 - lr * group["weight_decay"]).add_(update, alpha=-lr)


def orthogonalized(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix with the singular vectors of `matrix` (M, N) and singular values of about 1: Newton-Schulz steps, each
    the polynomial 3.4445 s - 4.775 s^3 + 2.0315 s^5 of the singular values s, which start at 1 or less."""
    x = matrix.to(dtype)
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x
