"""Milliseconds a training step by stage, and images a second with and without the key/value cache as grids grow."""

import platform
import resource
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "lesson_08")]

import torch
from accelerate import PartialState
from dall_e import DALL_E_PRESETS, DallE
from dvae import DVAE_PRESETS, DiscreteVAE
from torch import Tensor
from train_dvae import TRAINING as DVAE_TRAINING
from train_mnist import TRAINING as DALL_E_TRAINING
from utils.cli import ArgumentParser, default_precision, default_preset, run
from utils.training import make_optimizers

NUM_STEPS = 10
NUM_IMAGES = 64
GRID_SIZES = (4, 7, 14)


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--preset", choices=["cpu", "gpu"], default=default_preset(), help="whose sizes are measured")
    args = parser.parse_args()
    device = PartialState().device
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    print(
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {default_precision()} mixed precision"
    )

    torch.manual_seed(0)
    dvae, config = DiscreteVAE(DVAE_PRESETS[args.preset]), DALL_E_PRESETS[args.preset]
    batch_size = DVAE_TRAINING[args.preset].batch_size
    images = torch.rand(batch_size, 1, 28, 28, device=device)
    dvae = dvae.to(device, memory_format=torch.channels_last)
    print(
        f"dVAE        {step_ms(dvae, DVAE_TRAINING[args.preset], (), images, 0.5, 1.0):7.1f} ms a step of {batch_size}"
    )

    batch_size = DALL_E_TRAINING[args.preset].batch_size
    dall_e = DallE(config).to(device)
    text = torch.ones(batch_size, config.text_seq_len, dtype=torch.long, device=device)
    tokens = torch.randint(config.image_vocab_size, (batch_size, config.image_seq_len), device=device)
    matrices = [parameter for parameter in dall_e.blocks.parameters() if parameter.ndim == 2]
    print(
        f"transformer {step_ms(dall_e, DALL_E_TRAINING[args.preset], matrices, text, tokens):7.1f} ms a step of {batch_size}"
    )

    print("\nimage tokens   images/s with the cache   without")
    for grid_size in GRID_SIZES:
        model = DallE(replace(config, grid_size=grid_size)).to(device).eval()
        cached = NUM_IMAGES / seconds(model.generate, text[:NUM_IMAGES], device=device)
        uncached = NUM_IMAGES / seconds(generate_uncached, model, text[:NUM_IMAGES], device=device)
        print(f"{grid_size**2:12}   {cached:23.1f}   {uncached:7.1f}")
    if device.type == "cuda":
        print(f"\npeak memory {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB on the GPU")
    else:
        unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
        print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20:.0f} MiB")


def step_ms(model, training, matrices, *batch) -> float:
    optimizers = make_optimizers(model, training, matrices)
    device = batch[0].device

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=default_precision() == "bf16"):
            loss, _ = model(*batch)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return 1000 * statistics.median(seconds(step, device=device) for _ in range(NUM_STEPS))


def seconds(function, *arguments, device) -> float:
    start = time.perf_counter()
    function(*arguments)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def generate_uncached(model: DallE, text_tokens: Tensor) -> Tensor:
    image_tokens = text_tokens.new_zeros(len(text_tokens), model.config.image_seq_len)
    for place in range(model.config.image_seq_len):
        _, logits = model.logits(text_tokens, image_tokens)
        image_tokens[:, place] = torch.multinomial(logits[:, place].softmax(dim=-1), 1).squeeze(1)
    return image_tokens


if __name__ == "__main__":
    run(main)
