"""The optimizers of all stages."""

import torch
from lesson_08.muon import Muon
from torch import nn
from utils.training import TrainingConfig


def make_optimizers(model: nn.Module, blocks: list[nn.Module], training: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of transformer blocks, which needs fewer steps (lesson_08/muon.py), and AdamW, the paper's, for all
    else: convolutions, embeddings, heads, gains and biases."""
    matrices = [p for block in blocks for p in block.parameters() if p.ndim == 2]
    by_muon = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in by_muon]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in others if p.ndim == 1], "weight_decay": 0.0},
    ]
    dtype = torch.bfloat16 if training.mixed_precision == "bf16" else torch.float32
    muon = [Muon(matrices, training.learning_rate, training.weight_decay, dtype=dtype)] if matrices else []
    return [*muon, torch.optim.AdamW(groups, training.learning_rate, betas=(0.9, 0.96))]
