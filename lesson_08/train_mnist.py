"""Train DALL·E's transformer, stage 2, on the image tokens of a trained dVAE. Writes to output/dall_e."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from bpe import CaptionTable, Tokenizer
from dall_e import DALL_E_PRESETS, DallE
from dvae import DiscreteVAE, DVAEConfig
from muon import Muon
from torch import Tensor
from utils.checkpoints import find_checkpoint, fingerprint, load_checkpoint, load_model
from utils.cli import ROOT, TrainingParser, UserError, start
from utils.data import load_digits
from utils.machine import Threads, get_device, say
from utils.plots import save_grid
from utils.prompts import PROMPTS, draw_prompt_ids
from utils.run import Run
from utils.training import TrainingConfig, build_model, with_sizes

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
FROM_DATA = {"text_vocab_size", "image_vocab_size", "grid_size"}
NUM_HELD_OUT = 1000  # test images that each sample step measures
SAMPLE_PROMPTS = 2 * (PROMPTS[0::2] + PROMPTS[1::2])  # the words, then the numerals, and both again


def main() -> None:
    parser = TrainingParser(__doc__, {"dall_e": (DALL_E_PRESETS, TRAINING)}, ROOT / "output/dall_e", FROM_DATA)
    parser.add_argument("--dvae_checkpoint", help="the dVAE whose tokens are learned (default: newest in output/dvae)")
    args = parser.parse_args()
    config, training = parser.configs(args, "dall_e")["dall_e"]
    device = get_device()
    Threads(training.num_threads)  # chosen now, as encoding all images is work too

    dvae_file = find_checkpoint(args.dvae_checkpoint, "dvae")
    if dvae_file is None:
        raise UserError("There is no dVAE yet; train one with python train_dvae.py.")
    dvae = load_model(load_checkpoint(dvae_file, "dvae"), DiscreteVAE, DVAEConfig).to(device)
    train_set, test_set = load_digits(args.dataset, args.data_dir, dvae.config.image_channels, device)
    held_out = test_set.subset(slice(NUM_HELD_OUT))
    say("Turning the images into image tokens ...")
    train_tokens, test_tokens = (images.map(dvae.encode, batch_size=64) for images in (train_set, held_out))

    tokenizer = Tokenizer.train(PROMPTS)
    config = with_sizes(
        config,
        text_vocab_size=tokenizer.vocab_size,
        image_vocab_size=dvae.config.codebook_size,
        grid_size=dvae.config.grid_size,
    )
    try:
        captions = CaptionTable(tokenizer, PROMPTS, config.text_seq_len, device)
        sample_text = tokenizer.encode(SAMPLE_PROMPTS, config.text_seq_len).to(device)
    except ValueError as error:
        raise UserError(str(error)) from error

    dall_e = build_model(DallE, config, training)
    optimizers = make_optimizers(dall_e, training)
    source = {"file": str(dvae_file), "fingerprint": fingerprint(dvae)}
    extra = {"tokenizer": tokenizer.to_json(), "sources": {"dvae": source}}
    with Run("dall_e", dall_e, optimizers, training, args.output_dir, args.resume, **extra) as run:
        for _, index in run.steps(len(train_set)):
            text_tokens = captions.draw(draw_prompt_ids(train_set.labels[index]))  # (B, T), word or numeral
            image_tokens = train_tokens[index]  # (B, N)
            loss, metrics = run.model(text_tokens, image_tokens)
            run.update(loss, **metrics)

            if run.is_due(training.sample_every):
                with run.evaluation() as averaged:
                    images = dvae.decode(averaged.generate(sample_text))
                    _, losses = averaged(captions.draw(draw_prompt_ids(held_out.labels)), test_tokens)
                run.log_held_out({name: value.item() for name, value in losses.items()})
                if run.is_main:
                    write_samples(images, run.step, args.output_dir)
            if run.is_due(training.save_every):
                run.save()


def make_optimizers(dall_e: DallE, training: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, which needs fewer steps (muon.py), and AdamW, the paper's, for all else:
    embeddings, heads, gains and biases."""
    blocks = [p for p in dall_e.blocks.parameters() if p.ndim == 2]
    by_muon = {id(p) for p in blocks}
    others = [p for p in dall_e.parameters() if id(p) not in by_muon]
    groups = [
        {"params": [p for p in others if p.ndim == 2], "weight_decay": training.weight_decay},
        {"params": [p for p in others if p.ndim == 1], "weight_decay": 0.0},
    ]
    dtype = torch.bfloat16 if training.mixed_precision == "bf16" else torch.float32
    return [
        Muon(blocks, training.learning_rate, training.weight_decay, dtype=dtype),
        torch.optim.AdamW(groups, training.learning_rate, betas=(0.9, 0.96)),
    ]


def write_samples(images: Tensor, step: int, folder: Path) -> None:
    """The images (B, C, H, H) drawn for SAMPLE_PROMPTS as a grid, and their prompts as a text."""
    save_grid(images, folder / f"sample-{step}.png", columns=10, captions=SAMPLE_PROMPTS, title=f"step {step}")
    rows = [" ".join(SAMPLE_PROMPTS[i : i + 10]) for i in range(0, len(SAMPLE_PROMPTS), 10)]
    (folder / f"sample_prompts-{step}.txt").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    start(main)
