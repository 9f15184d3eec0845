"""Stage 4 of train_mnist.py, an up-sampler: small images to large ones. Writes to output/upsampler_28, the size of the large
ones.

It needs none of the other models: real images, made small, are all that it learns from.
"""

import torch
import torch.nn.functional as F
from diffusion_decoder import to_x_0
from diffusion_upsampler import Upsampler, UpsamplerConfig, corrupt, shrink, upsample
from optimizers import make_optimizers
from torch import Tensor
from utils.data import CaptionedImages, DataSource
from utils.machine import get_device
from utils.plots import save_grid
from utils.prompts import data_entry
from utils.run import Run
from utils.training import TrainingConfig, build_model

TRAINING = {
    "cpu": TrainingConfig(num_training_steps=1800, batch_size=64, learning_rate=3e-3, ema_decay=0.99, sample_every=600),
    "gpu": TrainingConfig(
        num_training_steps=10_000,
        batch_size=128,
        learning_rate=1e-3,
        ema_decay=0.999,
        save_every=2500,
        sample_every=1000,
    ),
    "paper": TrainingConfig(
        num_training_steps=1_000_000,
        batch_size=1024,
        learning_rate=1.2e-4,
        ema_decay=0.9999,
        save_every=10_000,
        sample_every=10_000,
    ),
}
NUM_HELD_OUT = 1000  # test images that each sample step measures
NUM_SHOWN = 10  # and shows


def train(
    args,
    config: UpsamplerConfig,
    training: TrainingConfig,
    train_set: CaptionedImages,
    test_set: CaptionedImages,
    source: DataSource,
) -> None:
    device, name = get_device(), f"upsampler_{config.image_size}"
    folder, shown = args.output_dir / name, test_set.of_different_captions(NUM_SHOWN)
    held_out, shown_images = (
        shrink(images.images(), config.image_size) for images in (test_set.subset(slice(NUM_HELD_OUT)), shown)
    )

    upsampler = build_model(Upsampler, config, training)
    diffusion, optimizers = upsampler.diffusion, make_optimizers(upsampler, [], training)
    with Run(name, upsampler, optimizers, training, folder, args.resume, data=data_entry(train_set, source)) as run:
        for _, index in run.steps(len(train_set)):
            images = shrink(train_set.images(index), config.image_size)  # (B, C, H, H) in [0, 1]
            small = corrupt(shrink(images, config.small_size))  # (B, C, S, S)
            # DDPM, algorithm 1
            x_0 = to_x_0(images)
            t = torch.randint(1, diffusion.num_timesteps + 1, (len(x_0),), device=device)
            eps = torch.randn_like(x_0)
            x_t = diffusion.q_sample(x_0, t, eps)
            predicted = run.model(x_t, t, small)  # of v
            loss = F.mse_loss(predicted.float(), diffusion.target(x_0, t, eps))
            run.update(loss)

            if run.is_due(training.sample_every):
                small = shrink(shown_images, config.small_size)
                with run.evaluation() as averaged:
                    measured = evaluate(averaged, held_out)
                    drawn = upsample(averaged, small, torch.randn_like(shown_images))
                if run.is_main:
                    title = f"step {run.step}: small images, up-sampled, and the real ones"
                    rows = torch.cat([F.interpolate(small, size=drawn.shape[2:]), drawn, shown_images])
                    save_grid(rows, folder / f"sample-{run.step}.png", len(shown), title=title)
                run.log_held_out(measured)
            if run.is_due(training.save_every):
                run.save()


def evaluate(upsampler: Upsampler, images: Tensor) -> dict[str, float]:
    """The loss of images (N, C, H, H) in [0, 1], made small and corrupted, at random timesteps, as in training."""
    diffusion, losses = upsampler.diffusion, []
    for part in images.split(100):  # large images fill the memory
        x_0, small = to_x_0(part), corrupt(shrink(part, upsampler.config.small_size))
        t = torch.randint(1, diffusion.num_timesteps + 1, (len(x_0),), device=x_0.device)
        eps = torch.randn_like(x_0)
        predicted = upsampler(diffusion.q_sample(x_0, t, eps), t, small)
        losses.append((predicted.float() - diffusion.target(x_0, t, eps)).square().flatten(1).mean(dim=1))
    return {"held_out_loss": torch.cat(losses).mean().item()}
