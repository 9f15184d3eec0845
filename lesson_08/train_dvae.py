"""Train the discrete VAE, stage 1 of DALL·E: images <-> image tokens. Writes to output/dvae."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from lesson_08.dvae import DVAE_PRESETS, DiscreteVAE, codebook_use, kl_weight_schedule, tau_schedule
from torch import Tensor
from utils.cli import ROOT, TrainingParser, start
from utils.data import CaptionedImages, map_in_chunks
from utils.datasets import add_data_flags, data_source, load_images
from utils.machine import get_device
from utils.optimizers import make_optimizers
from utils.plots import plot_metrics, save_grid
from utils.prompts import data_entry
from utils.run import Run
from utils.training import TrainingConfig, build_model, with_sizes

TRAINING = {  # steps, images a step, learning rate
    "small": TrainingConfig(1400, 32, 5e-3, save_every=350, sample_every=350),
    "large": TrainingConfig(30_000, 128, 2e-3, ema_decay=0.999, save_every=5000, sample_every=2500),
    "paper": TrainingConfig(3_000_000, 512, 1e-4, weight_decay=1e-4, ema_decay=0.999),
}
FROM_DATA = {"image_size", "image_channels"}
NUM_HELD_OUT, NUM_SHOWN = 1000, 16  # test images that each sample step measures, and shows


def main() -> None:
    parser = TrainingParser(__doc__, {"dvae": (DVAE_PRESETS, TRAINING)}, ROOT / "output/dvae", FROM_DATA)
    add_data_flags(parser)
    args = parser.parse_args()
    config, training = parser.configs(args)["dvae"]
    train_set, test_set, source = load_images(data_source(args), args.data_dir, get_device())
    held_out = test_set.subset(slice(NUM_HELD_OUT))
    config = with_sizes(config, image_size=source.image_size, image_channels=source.image_channels)
    dvae = build_model(DiscreteVAE, config, training)
    optimizers, folder = make_optimizers(dvae, training, dvae.blocks), args.output_dir

    with Run("dvae", dvae, optimizers, training, folder, data=data_entry(train_set, source)) as run:
        for step, index in run.steps(len(train_set), args.resume):
            images = train_set.images(index)  # (B, C, H, H) in [0, 1]
            progress = step / training.num_training_steps
            tau = tau_schedule(progress)
            with run.autocast():
                loss, metrics = dvae(images, tau, kl_weight_schedule(progress))
            run.update(loss, **metrics, tau=tau)  # backward, clipping, learning rate, optimizers, averaging, log

            if run.is_due(training.sample_every):
                with run.evaluation() as averaged:  # with the averaged weights, where the preset keeps them
                    reconstructions, measured = evaluate(averaged, held_out, training.batch_size)
                run.log_held_out(measured)
                if run.is_main:
                    title = f"step {run.step}: originals above reconstructions, MSE {measured['mse']:.4f}, "
                    title += f"{measured['codes_used']} codes used, perplexity {measured['perplexity']:.0f}"
                    rows = torch.cat([held_out.images(slice(NUM_SHOWN)), reconstructions[:NUM_SHOWN]])
                    save_grid(rows, folder / f"sample-{run.step}.png", columns=NUM_SHOWN, title=title)
                    plot_metrics(folder, "dvae")
            if run.is_due(training.save_every):
                run.save()


def evaluate(dvae: DiscreteVAE, images: CaptionedImages, batch_size: int) -> tuple[Tensor, dict[str, float]]:
    """The reconstructions of images from their hard tokens, (N, C, H, H) in [0, 1]; the mean squared error of the
    pixels, and how much of the codebook the tokens use."""
    image_tokens = images.map(dvae.encode, batch_size)
    reconstructions = map_in_chunks(dvae.decode, image_tokens, batch_size=batch_size)
    mse = (reconstructions - images.images()).square().mean()
    measured = {"mse": mse, **codebook_use(image_tokens, dvae.config.codebook_size)}
    return reconstructions, {name: value.item() for name, value in measured.items()}


if __name__ == "__main__":
    start(main)
