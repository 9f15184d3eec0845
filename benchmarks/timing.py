"""What the speed benchmarks share: the machine in words, the time of a training step, the peak of memory."""

import platform
import resource
import statistics
import sys
import time

import torch
from utils.training import TrainingConfig

NUM_STEPS = 10


def describe_machine(device: torch.device, training: TrainingConfig) -> str:
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} threads, torch {torch.__version__}, mixed precision {training.mixed_precision}"


def step_ms(
    optimizers: list[torch.optim.Optimizer], training: TrainingConfig, loss_of_batch, device: torch.device
) -> float:
    """Median milliseconds of a training step: loss_of_batch() in the precision of the training, its gradient, the update."""

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=training.mixed_precision == "bf16"):
            loss = loss_of_batch()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return 1000 * statistics.median(seconds(step, device=device) for _ in range(NUM_STEPS))


def seconds(function, *arguments, device: torch.device) -> float:
    start = time.perf_counter()
    function(*arguments)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"peak memory {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB on the GPU"
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20:.0f} MiB"
