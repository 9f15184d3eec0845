"""Train DALL·E's transformer, stage 2, on the image tokens of a trained dVAE. Writes to output/dall_e."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from lesson_08.dall_e import DALL_E_PRESETS, DallE
from lesson_08.dvae import DiscreteVAE, DVAEConfig
from torch import Tensor
from utils.bpe import MOST_TOKENS, PAD_ID, CaptionTable, Tokenizer
from utils.checkpoints import find_checkpoint, fingerprint, load_checkpoint, load_model
from utils.cli import ROOT, TrainingParser, UserError, bounded, start
from utils.data import map_in_chunks
from utils.datasets import add_data_flags, data_source, load_images
from utils.machine import Threads, get_device, say
from utils.optimizers import make_optimizers
from utils.plots import plot_metrics
from utils.prompts import data_entry
from utils.run import Run
from utils.samples import sample_captions, write_sample_grid
from utils.training import TrainingConfig, build_model, with_sizes

TRAINING = {  # steps, images a step, learning rate
    "small": TrainingConfig(2400, 64, 4e-3, weight_decay=0.1, save_every=600, sample_every=150),
    "large": TrainingConfig(
        60_000, 128, 2e-3, warmup_steps=500, weight_decay=0.1, ema_decay=0.999, save_every=10_000, sample_every=5000
    ),
    "paper": TrainingConfig(  # its average has a decay of 0.99, once in 25 steps
        430_000, 1024, 4.5e-4, warmup_steps=5000, weight_decay=4.5e-2, max_grad_norm=4.0, ema_decay=0.9996
    ),
}
FROM_DATA = {"pad_id", "text_seq_len", "image_vocab_size", "grid_size"}
DVAE_CHECKPOINT = "dVAE whose tokens are learned (default: newest in dvae beside --output_dir, or in output/dvae)"
TEXT_SEQ_LEN = f"tokens of a caption that are read (default: what the captions need, at most {MOST_TOKENS})"
NUM_HELD_OUT = 1000  # test images that each sample step measures


def main() -> None:
    parser = TrainingParser(__doc__, {"dall_e": (DALL_E_PRESETS, TRAINING)}, ROOT / "output/dall_e", FROM_DATA)
    parser.add_argument("--dvae_checkpoint", help=DVAE_CHECKPOINT)
    parser.add_argument("--text_seq_len", type=bounded(int, 1, 1024), help=TEXT_SEQ_LEN)
    add_data_flags(parser)
    args = parser.parse_args()
    config, training = parser.configs(args)["dall_e"]
    folder, device = args.output_dir, get_device()
    Threads(training.num_threads).choose()  # encoding all images is work, too

    dvae_file = find_checkpoint(args.dvae_checkpoint, "dvae", folder.parent) or find_checkpoint(None, "dvae")
    if dvae_file is None:
        raise UserError("There is no dVAE yet; train one with python lesson_08/train_dvae.py, at the root.")
    dvae_checkpoint = load_checkpoint(dvae_file, "dvae")
    dvae = load_model(dvae_checkpoint, DiscreteVAE, DVAEConfig).to(device)
    train_set, test_set, source = load_images(data_source(args, dvae_checkpoint["data"]), args.data_dir, device)
    held_out = test_set.subset(slice(NUM_HELD_OUT))
    say("Turning the images into image tokens ...")
    train_tokens, test_tokens = (images.map(dvae.encode, batch_size=64) for images in (train_set, held_out))

    tokenizer = Tokenizer.train(train_set.captions, config.text_vocab_size)
    captions = CaptionTable(tokenizer, train_set.captions, args.text_seq_len, device)
    if captions.num_cut:
        say(f"{captions.num_cut} captions lose what is behind their {captions.text_seq_len} tokens (--text_seq_len).")
    held_out_captions = CaptionTable(tokenizer, held_out.captions, captions.text_seq_len, device)
    prompts = sample_captions(test_set)
    sample_text = tokenizer.encode(prompts, captions.text_seq_len).to(device)

    text_sizes = {"text_vocab_size": tokenizer.vocab_size, "pad_id": PAD_ID, "text_seq_len": captions.text_seq_len}
    image_sizes = {"image_vocab_size": dvae.config.codebook_size, "grid_size": dvae.config.grid_size}
    dall_e = build_model(DallE, with_sizes(config, **text_sizes, **image_sizes), training)
    optimizers = make_optimizers(dall_e, training, dall_e.blocks)
    learned_from = {"dvae": {"file": str(dvae_file.absolute()), "fingerprint": fingerprint(dvae.state_dict())}}
    origin = {"data": data_entry(train_set, source), "tokenizer": tokenizer.to_json(), "sources": learned_from}
    with Run("dall_e", dall_e, optimizers, training, folder, **origin) as run:
        for _, index in run.steps(len(train_set), args.resume):
            text_tokens = captions.draw(train_set.draw_captions(index))  # (B, T), one valid caption of each image
            image_tokens = train_tokens[index]  # (B, N)
            with run.autocast():
                loss, metrics = dall_e(text_tokens, image_tokens)
            run.update(loss, **metrics)

            if run.is_due(training.sample_every):
                with run.evaluation() as averaged:
                    images = dvae.decode(averaged.generate(sample_text))
                    held_out_text = held_out_captions.draw(held_out.draw_captions())
                    measured = evaluate(averaged, held_out_text, test_tokens, training.batch_size)
                run.log_held_out(measured)
                if run.is_main:
                    write_sample_grid(images, prompts, run.step, folder)
                    plot_metrics(folder, "dall_e")
            if run.is_due(training.save_every):
                run.save()


def evaluate(dall_e: DallE, text_tokens: Tensor, image_tokens: Tensor, batch_size: int) -> dict[str, float]:
    """The mean losses of captions (M, T) and their images (M, N), in nats a token."""

    def losses(text_tokens: Tensor, image_tokens: Tensor) -> Tensor:
        _, parts = dall_e(text_tokens, image_tokens)
        return torch.stack([parts["text_loss"], parts["image_loss"]]).expand(len(text_tokens), -1)

    text_loss, image_loss = map_in_chunks(losses, text_tokens, image_tokens, batch_size=batch_size).mean(dim=0).tolist()
    return {"text_loss": text_loss, "image_loss": image_loss}


if __name__ == "__main__":
    start(main)
