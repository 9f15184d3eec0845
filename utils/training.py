"""A training in numbers: its config, its learning rate, its order of the images; and a model on its device."""

import contextlib
import functools
import math
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.machine import UserError, default_precision, get_device, num_processes, process_index, total_memory

MIXED_PRECISION = {"help": "bf16 multiplies matrices in bfloat16, no in float32", "choices": ("no", "bf16")}


@dataclass
class TrainingConfig:
    """Numbers that a preset sets and a flag of the same name overrides. Raises ValueError if one is out of range."""

    num_training_steps: int = field(metadata={"help": "optimizer steps"})
    batch_size: int = field(metadata={"help": "images a step, over all processes"})
    learning_rate: float = field(metadata={"help": "at its highest; it warms up linearly and decays to 0 on a cosine"})
    warmup_steps: int = field(default=50, metadata={"help": "steps until the learning rate is at its highest"})
    weight_decay: float = field(default=0.0, metadata={"help": "decoupled weight decay, of matrices only"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradients are clipped to this norm"})
    ema_decay: float = field(default=0.0, metadata={"help": "of the averaged weights; 0 keeps none"})
    save_every: int = field(default=500, metadata={"help": "steps between checkpoints"})
    sample_every: int = field(default=250, metadata={"help": "steps between sample grids"})
    seed: int = field(default=0, metadata={"help": "of all random numbers"})
    mixed_precision: str = field(default_factory=default_precision, metadata=MIXED_PRECISION)
    compile: bool = field(default=False, metadata={"help": "compile the model with torch.compile"})
    num_threads: int = field(default=0, metadata={"help": "of the CPU; 0 takes the cores that nothing else keeps busy"})

    def __post_init__(self):
        for name in ("num_training_steps", "batch_size", "save_every", "sample_every"):
            if not 1 <= getattr(self, name) < 2**31:
                raise ValueError(f"{name} {getattr(self, name)} is not in 1 .. 2^31 - 1.")
        for name in ("warmup_steps", "seed", "num_threads", "learning_rate", "weight_decay", "max_grad_norm"):
            if not 0 <= getattr(self, name) < 2**31:
                raise ValueError(f"{name} {getattr(self, name)} is not in 0 .. 2^31 - 1.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay {self.ema_decay} is not in [0, 1).")
        without_bf16 = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
        if self.mixed_precision == "bf16" and without_bf16:
            raise ValueError(f"{torch.cuda.get_device_name()} has no bfloat16; pass --mixed_precision no.")


def with_sizes(config, **sizes):
    """A model config with the sizes that the data give. Raises UserError if they do not fit the others."""
    try:
        return replace(config, **sizes)
    except ValueError as error:
        raise UserError(f"{error} Choose other sizes, or another --preset.") from error


def build_model(model_class, config, training: TrainingConfig) -> nn.Module:
    """model_class(config) on this process's device, its weights drawn by the seed. Raises UserError if the memory is
    too small: 16 bytes a parameter for weight, gradient and two moments, and 4 for the averaged weight."""
    device, parameters = get_device(), 0
    with contextlib.suppress(RuntimeError), torch.device("meta"):  # takes no memory; not every layer can be made there
        parameters = sum(parameter.numel() for parameter in model_class(config).parameters())
    needed, memory = (20 if training.ema_decay else 16) * parameters, total_memory(device)
    if needed > memory:
        what = f"Training {parameters / 1e9:.1f} billion parameters takes {needed / 2**30:.0f} GiB in each process"
        raise UserError(f"{what}, and {device} has {memory / 2**30:.0f}; choose a smaller --preset or smaller sizes.")
    torch.manual_seed(training.seed)
    return model_class(config).to(device, memory_format=torch.channels_last)  # twice as fast for a CPU's convolutions


def scheduled_rate(training: TrainingConfig, step: int) -> float:
    """The learning rate of a step: a linear warm-up, then half a cosine down to 0."""
    warm = min(1.0, (step + 1) / (training.warmup_steps + 1))
    return training.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * step / training.num_training_steps))


def batch_index(step: int, num_images: int, batch_size: int, seed: int) -> Tensor:
    """The images that this process sees at a step: its part of a batch, of one shuffled epoch after another."""
    first, end = step * batch_size, (step + 1) * batch_size
    epochs = range(first // num_images, (end - 1) // num_images + 1)
    order = torch.cat([shuffled(num_images, seed, epoch) for epoch in epochs])[first % num_images :]
    return order[:batch_size].chunk(num_processes())[process_index()]


@functools.lru_cache(maxsize=8)
def shuffled(num_images: int, seed: int, epoch: int) -> Tensor:
    """The order of the images in an epoch."""
    return torch.randperm(num_images, generator=torch.Generator().manual_seed(hash((seed, epoch)) % 2**32))


def average_gradients(model: nn.Module) -> None:
    """Replace each gradient by its mean over the processes."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if num_processes() > 1:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = (flat / num_processes()).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts):
            gradient.copy_(part.view_as(gradient))
