"""Train DALL·E's transformer, stage 2, on the image tokens of a trained dVAE. Writes to output/dall_e.

Without --dvae_checkpoint the newest dVAE is taken, and one is trained first where there is none.
"""

import copy
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from accelerate import PartialState
from dall_e import DALL_E_PRESETS, DallE
from dvae import DVAE_PRESETS, DiscreteVAE, DVAEConfig
from train_dvae import TRAINING as DVAE_TRAINING
from train_dvae import train_dvae
from utils.checkpoints import find_checkpoint, fingerprint, load_checkpoint, load_model
from utils.cli import ROOT, ArgumentParser, TrainingConfig, parse_training_flags, run
from utils.data import load_digits
from utils.plots import save_grid
from utils.prompts import PROMPTS, PromptSampler, PromptTokenizer
from utils.training import block_matrices, build_model, train

TRAINING = {
    "cpu": TrainingConfig(
        num_training_steps=1600, batch_size=128, learning_rate=4e-3, weight_decay=0.1, sample_every=100
    ),
    "gpu": TrainingConfig(
        num_training_steps=60_000,
        batch_size=128,
        learning_rate=2e-3,
        warmup_steps=500,
        weight_decay=0.1,
        ema_decay=0.999,
        save_every=10_000,
        sample_every=5000,
    ),
    "paper": TrainingConfig(
        num_training_steps=430_000,
        batch_size=1024,
        learning_rate=4.5e-4,
        warmup_steps=5000,
        weight_decay=4.5e-2,
        max_grad_norm=4.0,
        ema_decay=0.99,
        save_every=10_000,
        sample_every=10_000,
    ),
}
BPE_DROPOUT = 0.1  # section 2.2
NUM_HELD_OUT = 1000  # test images that each sample step measures
SAMPLE_PROMPTS = [PROMPTS[2 * digit + spelling] for spelling in (0, 1, 0, 1) for digit in range(10)]


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--dvae_checkpoint", help="the dVAE whose tokens are learned (default: the newest in output/dvae)"
    )
    args, stages = parse_training_flags(parser, {"dall_e": (DALL_E_PRESETS, TRAINING)}, ROOT / "output" / "dall_e")
    config, training = stages["dall_e"]
    dvae_file = find_checkpoint(args.dvae_checkpoint, "dvae") or train_missing_dvae(args)
    dvae = load_model(load_checkpoint(dvae_file, "dvae"), DiscreteVAE, DVAEConfig).to(PartialState().device)

    train_set, test_set = load_digits(args.dataset, args.data_dir, dvae.config.image_channels, PartialState().device)
    PartialState().print("Turning the images into image tokens ...", flush=True)
    dvae = dvae.to(memory_format=torch.channels_last)
    held_out = test_set.subset(slice(NUM_HELD_OUT))
    train_tokens, test_tokens = (images.map_once(dvae.encode, batch_size=64) for images in (train_set, held_out))

    tokenizer = PromptTokenizer.train()
    prompts_of = PromptSampler(tokenizer, config.text_seq_len, BPE_DROPOUT, PartialState().device)
    sample_text = tokenizer.encode(SAMPLE_PROMPTS, config.text_seq_len).to(PartialState().device)

    config = replace(
        config,
        text_vocab_size=tokenizer.vocab_size,
        image_vocab_size=dvae.config.codebook_size,
        grid_size=dvae.config.grid_size,
    )
    model = build_model(DallE, config, args.seed)

    def loss_of_batch(model, index, step):
        return model(prompts_of(train_set.labels[index]), train_tokens[index])

    def sample(model, step):
        torch.manual_seed(args.seed)  # the same prompts and the same luck at each step, so that grids compare
        images = dvae.decode(model.generate(sample_text))
        save_grid(
            images, args.output_dir / f"sample-{step}.png", columns=10, captions=SAMPLE_PROMPTS, title=f"step {step}"
        )
        rows = [" ".join(SAMPLE_PROMPTS[i : i + 10]) for i in range(0, len(SAMPLE_PROMPTS), 10)]
        (args.output_dir / f"sample_prompts-{step}.txt").write_text("\n".join(rows) + "\n")
        _, losses = model(prompts_of(held_out.labels), test_tokens)
        return {name: value.item() for name, value in losses.items()}

    train(
        "dall_e",
        model,
        training,
        args,
        len(train_set),
        loss_of_batch,
        sample,
        block_matrices(model),
        tokenizer=tokenizer.to_json(),
        dvae={"file": str(dvae_file), "fingerprint": fingerprint(dvae)},
    )


def train_missing_dvae(args) -> Path:
    print("There is no dVAE yet, so one is trained first.", flush=True)
    dvae_args = copy.copy(args)
    dvae_args.output_dir = ROOT / "output" / "dvae"
    dvae_args.resume = False
    return train_dvae(dvae_args, DVAE_PRESETS[args.preset], DVAE_TRAINING[args.preset])


if __name__ == "__main__":
    run(main)
