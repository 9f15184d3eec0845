"""Milliseconds a training step by stage, and images a second with and without the key/value cache as grids grow."""

import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from lesson_08.dall_e import DALL_E_PRESETS, DallE, sample_token
from lesson_08.dvae import DVAE_PRESETS, DiscreteVAE
from lesson_08.train_dvae import TRAINING as DVAE_TRAINING
from lesson_08.train_mnist import TRAINING as DALL_E_TRAINING
from timing import describe_machine, peak_memory, seconds, step_ms
from torch import Tensor
from utils.cli import ArgumentParser, positive_int, start
from utils.machine import get_device
from utils.optimizers import make_optimizers
from utils.training import build_model


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--preset", choices=["small", "large"], default="small", help="whose sizes are measured")
    parser.add_argument("--num_images", type=positive_int, default=64, help="drawn at once")
    parser.add_argument(
        "--grid_sizes", type=positive_int, nargs="+", default=[4, 7, 14], help="image tokens along a side"
    )
    args = parser.parse_args()
    device, training = get_device(), DVAE_TRAINING[args.preset]
    print(describe_machine(device, training))

    dvae = build_model(DiscreteVAE, DVAE_PRESETS[args.preset], training)
    images = torch.rand(training.batch_size, 1, 28, 28, device=device)
    ms = step_ms(make_optimizers(dvae, training), training, lambda: dvae(images, tau=0.5, kl_weight=1.0)[0], device)
    print(f"dVAE        {ms:7.1f} ms a step of {training.batch_size}")

    training, config = DALL_E_TRAINING[args.preset], DALL_E_PRESETS[args.preset]
    dall_e = build_model(DallE, config, training)
    text = torch.ones(training.batch_size, config.text_seq_len, dtype=torch.long, device=device)
    tokens = torch.randint(config.image_vocab_size, (training.batch_size, config.image_seq_len), device=device)
    ms = step_ms(make_optimizers(dall_e, training, dall_e.blocks), training, lambda: dall_e(text, tokens)[0], device)
    print(f"transformer {ms:7.1f} ms a step of {training.batch_size}")

    print("\nimage tokens   images/s with the cache   without")
    text = text[:1].expand(args.num_images, -1)
    for grid_size in args.grid_sizes:
        model = build_model(DallE, replace(config, grid_size=grid_size), training).eval()
        cached = args.num_images / seconds(model.generate, text, device=device)
        uncached = args.num_images / seconds(generate_uncached, model, text, device=device)
        print(f"{grid_size**2:12}   {cached:23.1f}   {uncached:7.1f}")
    print(f"\n{peak_memory(device)}")


@torch.no_grad()
def generate_uncached(model: DallE, text_tokens: Tensor) -> Tensor:
    """As DallE.generate, but for each new token the transformer reads all those before it anew."""
    image_tokens = text_tokens[:, :0]
    for _ in range(model.config.image_seq_len):
        x = torch.cat([model.embed_text(text_tokens), model.embed_image(image_tokens)], dim=1)
        logits = model.to_image_logits(model.transformer(x)[:, -1]).float()
        u = torch.rand(len(logits), device=logits.device)
        token = sample_token(logits, temperature=1.0, top_k=0, top_p=1.0, u=u)
        image_tokens = torch.cat([image_tokens, token[:, None]], dim=1)
    return image_tokens


if __name__ == "__main__":
    start(main)
