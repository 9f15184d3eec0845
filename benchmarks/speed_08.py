"""Milliseconds a training step by stage, and images a second with and without the key/value cache as grids grow."""

import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "lesson_08")]

import torch
from accelerate import PartialState
from dall_e import DALL_E_PRESETS, DallE
from dvae import DVAE_PRESETS, DiscreteVAE
from timing import describe_machine, peak_memory, seconds, step_ms
from torch import Tensor
from train_dvae import TRAINING as DVAE_TRAINING
from train_mnist import TRAINING as DALL_E_TRAINING
from utils.cli import ArgumentParser, default_preset, run
from utils.training import block_matrices

NUM_IMAGES = 64
GRID_SIZES = (4, 7, 14)


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--preset", choices=["cpu", "gpu"], default=default_preset(), help="whose sizes are measured")
    args = parser.parse_args()
    device = PartialState().device
    print(describe_machine(device))

    torch.manual_seed(0)
    training = DVAE_TRAINING[args.preset]
    dvae = DiscreteVAE(DVAE_PRESETS[args.preset]).to(device, memory_format=torch.channels_last)
    images = torch.rand(training.batch_size, 1, 28, 28, device=device)
    ms = step_ms(dvae, training, (), lambda: dvae(images, tau=0.5, kl_weight=1.0)[0], device)
    print(f"dVAE        {ms:7.1f} ms a step of {training.batch_size}")

    training, config = DALL_E_TRAINING[args.preset], DALL_E_PRESETS[args.preset]
    dall_e = DallE(config).to(device)
    text = torch.ones(training.batch_size, config.text_seq_len, dtype=torch.long, device=device)
    tokens = torch.randint(config.image_vocab_size, (training.batch_size, config.image_seq_len), device=device)
    ms = step_ms(dall_e, training, block_matrices(dall_e), lambda: dall_e(text, tokens)[0], device)
    print(f"transformer {ms:7.1f} ms a step of {training.batch_size}")

    print("\nimage tokens   images/s with the cache   without")
    for grid_size in GRID_SIZES:
        model = DallE(replace(config, grid_size=grid_size)).to(device).eval()
        cached = NUM_IMAGES / seconds(model.generate, text[:NUM_IMAGES], device=device)
        uncached = NUM_IMAGES / seconds(generate_uncached, model, text[:NUM_IMAGES], device=device)
        print(f"{grid_size**2:12}   {cached:23.1f}   {uncached:7.1f}")
    print(f"\n{peak_memory(device)}")


@torch.no_grad()
def generate_uncached(model: DallE, text_tokens: Tensor) -> Tensor:
    image_tokens = text_tokens.new_zeros(len(text_tokens), model.config.image_seq_len)
    for place in range(model.config.image_seq_len):
        _, logits = model.logits(text_tokens, image_tokens)
        image_tokens[:, place] = torch.multinomial(logits[:, place].softmax(dim=-1), 1).squeeze(1)
    return image_tokens


if __name__ == "__main__":
    run(main)
