"""How a model is trained, in numbers, and how it comes to its device: initialized from a seed, whole or in shards."""

import functools
import math
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor, nn

from utils.cli import UserError
from utils.machine import default_precision, get_device, num_processes, process_index, total_memory


@dataclass
class TrainingConfig:
    """The numbers that each preset sets and a flag of the same name overrides.

    Raises ValueError if one of them is out of range.
    """

    num_training_steps: int = field(metadata={"help": "optimizer steps"})
    batch_size: int = field(metadata={"help": "images a step, over all processes"})
    learning_rate: float = field(metadata={"help": "at its highest; it warms up linearly and decays to 0 on a cosine"})
    warmup_steps: int = field(default=50, metadata={"help": "steps until the learning rate is at its highest"})
    weight_decay: float = field(default=0.0, metadata={"help": "decoupled weight decay, of matrices only"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradients are clipped to this norm"})
    ema_decay: float = field(default=0.0, metadata={"help": "of the averaged weights; 0 keeps none"})
    save_every: int = field(default=500, metadata={"help": "steps between checkpoints"})
    sample_every: int = field(default=250, metadata={"help": "steps between sample grids"})
    keep_newest: int = field(default=0, metadata={"help": "so many of the newest checkpoints are kept; 0 keeps all"})
    milestone_every: int = field(
        default=0, metadata={"help": "steps between checkpoints that are kept besides the newest; 0: none are"}
    )
    seed: int = field(default=0, metadata={"help": "of all random numbers"})
    mixed_precision: str = field(
        default_factory=default_precision,
        metadata={"help": "bf16 multiplies matrices in bfloat16, no in float32", "choices": ("no", "bf16")},
    )
    compile: bool = field(default=False, metadata={"help": "compile the model with torch.compile"})
    shard: bool = field(default=False, metadata={"help": "give each process a part of the weights, not all of them"})
    tensorboard: bool = field(default=False, metadata={"help": "write metrics and sample grids for TensorBoard, too"})
    num_threads: int = field(default=0, metadata={"help": "of the CPU; 0 takes the cores that nothing else keeps busy"})

    def __post_init__(self):
        for f in fields(self):
            value, low = (
                getattr(self, f.name),
                int(f.name in ("num_training_steps", "batch_size", "save_every", "sample_every")),
            )
            if f.type is int and not low <= value < 2**31:
                raise ValueError(f"{f.name} {value} is not in {low} .. 2^31 - 1.")
            if f.type is float and not 0 <= value < math.inf:
                raise ValueError(f"{f.name} {value} is not a number from 0 up.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay {self.ema_decay} is not in [0, 1).")
        if (
            self.mixed_precision == "bf16"
            and torch.cuda.is_available()
            and not torch.cuda.is_bf16_supported(including_emulation=False)
        ):
            raise ValueError(f"{torch.cuda.get_device_name()} has no bfloat16; pass --mixed_precision no.")


def scheduled_rate(training: TrainingConfig, step: int) -> float:
    """The learning rate of a step: a linear warm-up, then half a cosine down to 0."""
    warm = min(1.0, (step + 1) / (training.warmup_steps + 1))
    return training.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * step / training.num_training_steps))


def batch_index(step: int, num_images: int, batch_size: int, seed: int) -> Tensor:
    """Which images this process sees at a step: its part of a batch that runs through one shuffled epoch after another, or
    through several of them if there are fewer images than that."""
    epoch, start = divmod(step * batch_size, num_images)
    epochs = range(epoch, epoch + 2 + batch_size // num_images)
    order = torch.cat([shuffled(num_images, seed, one) for one in epochs])
    return order[start : start + batch_size].chunk(num_processes())[process_index()]


@functools.lru_cache(maxsize=8)
def shuffled(num_images: int, seed: int, epoch: int) -> Tensor:
    """The order of the images in an epoch."""
    return torch.randperm(num_images, generator=torch.Generator().manual_seed(hash((seed, epoch)) % 2**32))


def with_sizes(config, **sizes):
    """A model config with the sizes that the data give. Raises UserError if they do not fit its others."""
    try:
        return replace(config, **sizes)
    except ValueError as error:
        raise UserError(f"{error} Choose other sizes, or another --preset.") from error


def build_model(model_class, config, training: TrainingConfig) -> nn.Module:
    """The model of a config on this process's device, its first weights drawn by the seed, the same ones in any number of
    processes; with `training.shard`, each process holds a part of every weight.

    It is laid out without memory, then each block (what a ModuleList holds) is filled and sharded before the next one is,
    so that no process ever holds more than one of them whole. Raises UserError if training needs more memory than there is.
    """
    device, filled = get_device(), set()
    with torch.device("meta"):
        model = model_class(config)
    check_memory(model, training, device)
    blocks = [block for parent in model.modules() if isinstance(parent, nn.ModuleList) for block in parent]
    shard = training.shard and num_processes() > 1
    torch.manual_seed(training.seed)
    for unit in (*blocks, model):
        for module in reversed(list(unit.modules())):  # parts before the whole, which may want other weights for them
            if module not in filled:
                fill(module, device, torch.contiguous_format if shard else torch.channels_last)
                model.init_weights(module)
                filled.add(module)
        if shard:
            from torch.distributed.fsdp import fully_shard

            fully_shard(unit)
    return model


def fill(module: nn.Module, device: torch.device, of_convolutions: torch.memory_format) -> None:
    """Memory for a module's own parameters, which were laid out without, and PyTorch's first values for them.

    Convolutions are twice as fast on a CPU with weights in channels_last, but sharding does not take them.
    """
    for name, parameter in list(module.named_parameters(recurse=False)):
        layout = of_convolutions if parameter.ndim == 4 else torch.contiguous_format
        setattr(module, name, nn.Parameter(torch.empty_like(parameter, device=device, memory_format=layout)))
    for name, buffer in list(module.named_buffers(recurse=False)):
        module._buffers[name] = buffer.to(device)
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()


def check_memory(model: nn.Module, training: TrainingConfig, device: torch.device) -> None:
    """Raises UserError if training `model`, given on the meta device, needs more memory than this process has: in float32,
    16 bytes a parameter for weights, gradients and the optimizer's two moments, and 4 for averaged weights."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    parts = num_processes() if training.shard else 1
    needed, memory = (20 if training.ema_decay else 16) * parameters / parts, total_memory(device)
    if needed > memory:
        raise UserError(
            f"Training {parameters / 1e9:.1f} billion parameters takes {needed / 2**30:.0f} GiB in each process, and {device} "
            f"has {memory / 2**30:.0f}; choose a smaller --preset, smaller sizes, or --shard among more processes."
        )


def whole(state):
    """A state dict on the CPU, sharded tensors put together from all processes; for the first process, which writes it."""
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    if isinstance(state, Tensor):
        tensor = state.full_tensor() if hasattr(state, "full_tensor") else state
        return tensor.detach().cpu() if process_index() == 0 else None
    return state


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, or the part of it that this process holds if `like` is sharded."""
    if not hasattr(like, "full_tensor") or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def load_state(model: nn.Module, ema: dict | None, optimizers: list[torch.optim.Optimizer], checkpoint: dict) -> None:
    """Put a checkpoint's weights, their averages and the state of the optimizers in their places, whole or in parts."""
    with torch.no_grad():
        for held, saved in ((model.state_dict(), checkpoint["model"]), (ema or {}, checkpoint["ema"])):
            for name, tensor in held.items():
                local(tensor).copy_(local(part_of(saved[name], tensor)))
    for optimizer, state in zip(optimizers, checkpoint["optimizers"]):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        parts = {i: {k: part_of(v, parameters[i]) for k, v in of_one.items()} for i, of_one in state["state"].items()}
        optimizer.load_state_dict({**state, "state": parts})
