"""Train an up-sampler: small images to images of twice their size. Writes to output/upsampler_28, the size of the large ones.

It needs none of the other models: real images, made small, are all that it learns from.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from lesson_17.diffusion_decoder import shrink, to_x_0
from lesson_17.diffusion_upsampler import UPSAMPLER_PRESETS, Upsampler, corrupt, upsample
from torch import Tensor
from utils.checkpoints import load_checkpoint, newest_checkpoint
from utils.cli import ROOT, TrainingParser, UserError, bounded, start
from utils.data import CaptionedImages, map_in_chunks
from utils.datasets import add_data_flags, data_source, load_images
from utils.machine import get_device
from utils.optimizers import make_optimizers
from utils.plots import plot_metrics, save_grid
from utils.prompts import data_entry
from utils.run import Run
from utils.training import TrainingConfig, build_model, with_sizes

TRAINING = {  # steps, images a step, learning rate
    "small": TrainingConfig(1800, 64, 3e-3, ema_decay=0.99, sample_every=600),
    "large": TrainingConfig(10_000, 128, 1e-3, ema_decay=0.999, save_every=2500, sample_every=1000),
    "paper": TrainingConfig(1_000_000, 1024, 1.2e-4, ema_decay=0.9999),
}
STAGE = {"upsampler": (UPSAMPLER_PRESETS, TRAINING)}
FROM_DATA = {"image_size", "image_channels", "small_size"}
NUM_HELD_OUT = 1000  # test images that each sample step measures
NUM_SHOWN = 10  # and shows


def main() -> None:
    parser = TrainingParser(__doc__, STAGE, ROOT / "output", FROM_DATA)
    parser.add_argument(
        "--upsampled_size",
        type=bounded(int, 2, 4096),
        help="size of the large images; the small ones have half of it (default: that of the data)",
    )
    add_data_flags(parser)
    args = parser.parse_args()
    config, training = parser.configs(args)["upsampler"]
    decoder = newest_checkpoint(args.output_dir / "decoder", "decoder")
    learned = decoder and load_checkpoint(decoder, "decoder")["data"]  # the decoder's images are to be enlarged
    device = get_device()
    train_set, test_set, source = load_images(data_source(args, learned), args.data_dir, device)
    size = args.upsampled_size or source.image_size
    if size % 2 or size > source.image_size:
        raise UserError(f"--upsampled_size {size} is odd, or larger than the images' {source.image_size}.")
    sizes = {"small_size": size // 2, "image_size": size, "image_channels": source.image_channels}
    name, shown = f"upsampler_{size}", test_set.of_different_captions(NUM_SHOWN)
    folder, held_out, shown_images = args.output_dir / name, test_set.subset(slice(NUM_HELD_OUT)), shown.images()
    shown_images = shrink(shown_images, size)
    small_shown = shrink(shown_images, size // 2)

    upsampler = build_model(Upsampler, with_sizes(config, **sizes), training)
    optimizers = make_optimizers(upsampler, training, upsampler.unet.blocks)
    with Run(name, upsampler, optimizers, training, folder, data=data_entry(train_set, source)) as run:
        for _, index in run.steps(len(train_set), args.resume):
            images = shrink(train_set.images(index), size)  # (B, C, H, H) in [0, 1]
            small = corrupt(shrink(images, size // 2))  # (B, C, S, S)
            with run.autocast():
                loss = upsampler.diffusion.loss(upsampler, to_x_0(images), small)
            run.update(loss)

            if run.is_due(training.sample_every):
                with run.evaluation() as averaged:
                    held_out_loss = evaluate(averaged, held_out, training.batch_size)
                    drawn = upsample(averaged, small_shown, torch.randn_like(shown_images))
                run.log_held_out({"held_out_loss": held_out_loss})
                if run.is_main:
                    title = f"step {run.step}: small images, up-sampled, and the real ones"
                    rows = torch.cat([F.interpolate(small_shown, size=drawn.shape[2:]), drawn, shown_images])
                    save_grid(rows, folder / f"sample-{run.step}.png", len(shown), title=title)
                    plot_metrics(folder, name)
            if run.is_due(training.save_every):
                run.save()


def evaluate(upsampler: Upsampler, held_out: CaptionedImages, batch_size: int) -> float:
    """The loss of held-out images, made small and corrupted, at random timesteps, as in training."""
    c = upsampler.config

    def losses(index: Tensor) -> Tensor:
        images = shrink(held_out.images(index), c.image_size)
        small = corrupt(shrink(images, c.small_size))
        return upsampler.diffusion.loss(upsampler, to_x_0(images), small).expand(len(images))

    return map_in_chunks(losses, torch.arange(len(held_out)), batch_size=batch_size).mean().item()


if __name__ == "__main__":
    start(main)
