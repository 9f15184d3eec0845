"""Milliseconds a training step by stage, and images a second as sampling steps and image sizes grow."""

import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from lesson_17.clip import CLIP
from lesson_17.diffusion_decoder import Decoder, decode_image_embed
from lesson_17.diffusion_prior import DiffusionPrior, draw_image_embed
from lesson_17.diffusion_upsampler import Upsampler
from lesson_17.train_clip import distort
from lesson_17.train_mnist import STAGES
from lesson_17.train_upsampler import STAGE as UPSAMPLER
from timing import describe_machine, peak_memory, seconds, step_ms
from torch import Tensor
from utils.cli import ArgumentParser, positive_int, start
from utils.machine import get_device
from utils.optimizers import make_optimizers
from utils.training import build_model

GUIDANCE_SCALE = 2.0


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--preset", choices=["small", "large"], default="small", help="whose sizes are measured")
    parser.add_argument("--num_images", type=positive_int, default=64, help="drawn at once")
    parser.add_argument("--sampling_steps", type=positive_int, nargs="+", default=[5, 20, 50], help="of both models")
    parser.add_argument("--image_sizes", type=positive_int, nargs="+", default=[28, 56], help="in pixels")
    args = parser.parse_args()
    device = get_device()
    configs, trainings = ({stage: pair[i][args.preset] for stage, pair in (STAGES | UPSAMPLER).items()} for i in (0, 1))
    c, training = configs["clip"], trainings["clip"]
    sizes = {"clip_embed_dim": c.embed_dim, "clip_text_width": c.text_width, "clip_text_seq_len": c.text_seq_len}
    print(describe_machine(device, training))

    def conditions(batch: int) -> tuple[Tensor, Tensor]:
        encodings = torch.randn(batch, c.text_seq_len, c.text_width, device=device)
        return torch.randn(batch, c.embed_dim, device=device), encodings

    clip = build_model(CLIP, c, training)
    images = torch.rand(training.batch_size, 1, 28, 28, device=device)
    tokens = torch.zeros(training.batch_size, c.text_seq_len, dtype=torch.long, device=device)
    caption = torch.arange(training.batch_size, device=device)
    optimizers = make_optimizers(clip, training, [*clip.image_encoder.blocks, *clip.text_encoder.blocks])
    ms = step_ms(optimizers, training, lambda: clip(distort(images), tokens, caption, caption[:, None])[0], device)
    print(f"CLIP    {ms:7.1f} ms a step of {training.batch_size}")

    training = trainings["prior"]
    prior = build_model(DiffusionPrior, replace(configs["prior"], **sizes), training)
    text_embed, encodings = conditions(training.batch_size)
    optimizers = make_optimizers(prior, training, prior.blocks)
    ms = step_ms(
        optimizers,
        training,
        lambda: prior.diffusion.loss(prior, torch.randn_like(text_embed), text_embed, encodings),
        device,
    )
    print(f"prior   {ms:7.1f} ms a step of {training.batch_size}")

    training = trainings["decoder"]
    config = replace(configs["decoder"], **sizes)
    decoder = build_model(Decoder, config, training)
    x_0, (image_embed, encodings) = (
        torch.randn(training.batch_size, 1, 28, 28, device=device),
        conditions(training.batch_size),
    )
    optimizers = make_optimizers(decoder, training, decoder.unet.blocks)
    ms = step_ms(optimizers, training, lambda: decoder.diffusion.loss(decoder, x_0, image_embed, encodings), device)
    print(f"decoder {ms:7.1f} ms a step of {training.batch_size}")

    training = trainings["upsampler"]
    upsampler = build_model(Upsampler, configs["upsampler"], training)
    x_0, small = (torch.rand(training.batch_size, 1, size, size, device=device) for size in (28, 14))
    optimizers = make_optimizers(upsampler, training, upsampler.unet.blocks)
    ms = step_ms(optimizers, training, lambda: upsampler.diffusion.loss(upsampler, x_0, small), device)
    print(f"up-sampler, 14 to 28 {ms:7.1f} ms a step of {training.batch_size}")

    print("\nimage size   sampling steps   images/s, prior and decoder, guided")
    text_embed, encodings = conditions(args.num_images)
    prior.eval()
    for size in args.image_sizes:
        decoder = build_model(Decoder, replace(config, image_size=size), training).eval()
        x_T = torch.randn(args.num_images, 1, size, size, device=device)
        for steps in args.sampling_steps:

            def draw(decoder=decoder, x_T=x_T, steps=steps):
                image_embed = draw_image_embed(prior, text_embed, encodings, num_steps=steps)
                decode_image_embed(decoder, image_embed, encodings, x_T, GUIDANCE_SCALE, steps)

            print(f"{size:10}   {steps:14}   {args.num_images / seconds(draw, device=device):8.1f}")
    print(f"\n{peak_memory(device)}")


if __name__ == "__main__":
    start(main)
