"""Train the discrete VAE, stage 1 of DALL·E: images <-> image tokens. Writes to output/dvae."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from accelerate import PartialState
from dvae import DVAE_PRESETS, DiscreteVAE, codebook_use, kl_weight_schedule, tau_schedule
from utils.cli import ROOT, ArgumentParser, TrainingConfig, parse_training_flags, run, with_sizes
from utils.data import load_digits
from utils.plots import save_grid
from utils.training import build_model, train

TRAINING = {
    "cpu": TrainingConfig(num_training_steps=2200, batch_size=32, learning_rate=1e-2, save_every=550, sample_every=550),
    "gpu": TrainingConfig(
        num_training_steps=30_000,
        batch_size=128,
        learning_rate=2e-3,
        ema_decay=0.999,
        save_every=5000,
        sample_every=2500,
    ),
    "paper": TrainingConfig(
        num_training_steps=3_000_000,
        batch_size=512,
        learning_rate=1e-4,
        weight_decay=1e-4,
        ema_decay=0.999,
        save_every=10_000,
        sample_every=10_000,
    ),
}
NUM_HELD_OUT = 1000  # test images that each sample step measures
NUM_SHOWN = 16  # and shows


def main() -> None:
    parser = ArgumentParser(__doc__)
    args, stages = parse_training_flags(parser, {"dvae": (DVAE_PRESETS, TRAINING)}, ROOT / "output" / "dvae")
    config, training = stages["dvae"]
    train_dvae(args, config, training)


def train_dvae(args, config, training: TrainingConfig) -> Path:
    """Train a discrete VAE and return its last checkpoint."""
    train_set, test_set = load_digits(args.dataset, args.data_dir, config.image_channels, PartialState().device)
    config = with_sizes(config, image_size=train_set.pixels.shape[-1])
    model = build_model(DiscreteVAE, config, args.seed)
    model = model.to(memory_format=torch.channels_last)  # twice as fast as channels first, on a CPU

    def loss_of_batch(model, index, step):
        images, _ = train_set[index]
        progress = step / training.num_training_steps
        tau = tau_schedule(progress)
        loss, metrics = model(images, tau, kl_weight_schedule(progress))
        return loss, {**metrics, "tau": torch.tensor(tau, device=images.device)}

    def sample(model, step):
        images, _ = test_set[:NUM_HELD_OUT]
        image_tokens = model.encode(images)
        reconstructions = model.decode(image_tokens)
        use = {name: value.item() for name, value in codebook_use(image_tokens, config.codebook_size).items()}
        mse = (reconstructions - images).square().mean().item()
        title = f"step {step}: originals above reconstructions, MSE {mse:.4f}, "
        title += f"{use['codes_used']} of {config.codebook_size} codes used, perplexity {use['perplexity']:.0f}"
        pairs = torch.cat([images[:NUM_SHOWN], reconstructions[:NUM_SHOWN]])
        save_grid(pairs, args.output_dir / f"sample-{step}.png", columns=NUM_SHOWN, title=title)
        return {"mse": mse, **use}

    return train("dvae", model, training, args, len(train_set), loss_of_batch, sample)


if __name__ == "__main__":
    run(main)
