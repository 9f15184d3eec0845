"""Milliseconds a training step by stage, and images a second as sampling steps and image sizes grow."""

import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "lesson_17")]

import torch
from accelerate import PartialState
from clip import CLIP
from diffusion_decoder import Decoder, decode_image_embed
from diffusion_prior import DiffusionPrior, draw_image_embed
from pipeline import sizes_from_clip
from timing import describe_machine, peak_memory, seconds, step_ms
from train_mnist import PRESETS, TRAINING
from utils.cli import ArgumentParser, default_preset, run
from utils.training import block_matrices

NUM_IMAGES = 64
GUIDANCE_SCALE = 2.0
SAMPLING_STEPS = (5, 20, 50)
IMAGE_SIZES = (28, 56)


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--preset", choices=["cpu", "gpu"], default=default_preset(), help="whose sizes are measured")
    args = parser.parse_args()
    device = PartialState().device
    print(describe_machine(device))
    torch.manual_seed(0)
    configs = {stage: presets[args.preset] for stage, presets in PRESETS.items()}
    trainings = {stage: presets[args.preset] for stage, presets in TRAINING.items()}
    c = configs["clip"]

    def conditions(batch: int):
        return torch.randn(batch, c.embed_dim, device=device), torch.randn(batch, c.text_seq_len, c.text_width).to(
            device
        )

    batch = trainings["clip"].batch_size
    clip, images = CLIP(c).to(device), torch.rand(batch, 1, 28, 28, device=device)
    tokens = torch.zeros(batch, c.text_seq_len, dtype=torch.long, device=device)
    meanings = torch.arange(batch, device=device)
    ms = step_ms(clip, trainings["clip"], block_matrices(clip), lambda: clip(images, tokens, meanings)[0], device)
    print(f"CLIP    {ms:7.1f} ms a step of {batch}")

    from_clip = sizes_from_clip(c)
    batch = trainings["prior"].batch_size
    prior, (text_embed, encodings) = (
        DiffusionPrior(replace(configs["prior"], **from_clip)).to(device),
        conditions(batch),
    )
    ms = step_ms(
        prior,
        trainings["prior"],
        block_matrices(prior),
        lambda: prior.diffusion.loss(lambda x_t, t: prior(x_t, t, text_embed, encodings), torch.randn_like(text_embed)),
        device,
    )
    print(f"prior   {ms:7.1f} ms a step of {batch}")

    batch = trainings["decoder"].batch_size
    decoder = Decoder(replace(configs["decoder"], **from_clip)).to(device, memory_format=torch.channels_last)
    images, (image_embed, encodings) = torch.randn(batch, 1, 28, 28, device=device), conditions(batch)
    ms = step_ms(
        decoder,
        trainings["decoder"],
        (),
        lambda: decoder.diffusion.loss(lambda x_t, t: decoder(x_t, t, image_embed, encodings), images),
        device,
    )
    print(f"decoder {ms:7.1f} ms a step of {batch}")

    print("\nimage size   sampling steps   images/s, prior and decoder, guided")
    text_embed, encodings = conditions(NUM_IMAGES)
    for size in IMAGE_SIZES:
        decoder = Decoder(replace(decoder.config, image_size=size)).to(device, memory_format=torch.channels_last)
        x_T = torch.randn(NUM_IMAGES, 1, size, size, device=device)
        for steps in SAMPLING_STEPS:

            def draw(decoder=decoder, x_T=x_T, steps=steps):
                image_embed = draw_image_embed(prior.eval(), text_embed, encodings, num_steps=steps)
                decode_image_embed(decoder.eval(), image_embed, encodings, x_T, GUIDANCE_SCALE, steps)

            print(f"{size:10}   {steps:14}   {NUM_IMAGES / seconds(draw, device=device):8.1f}")
    print(f"\n{peak_memory(device)}")


if __name__ == "__main__":
    run(main)
