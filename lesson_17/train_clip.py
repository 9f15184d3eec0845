"""Train CLIP, stage 1 of DALL·E 2: images and captions to neighbors in one space. Writes to output/clip."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from lesson_17.clip import CLIP, CLIP_PRESETS, CLIPConfig
from lesson_17.frozen_clip import add_end, tokenize, zero_shot_accuracy
from torch import Tensor
from utils.bpe import MOST_TOKENS, PAD_ID, CaptionTable, Tokenizer
from utils.cli import ROOT, TrainingParser, bounded, start
from utils.data import CaptionedImages
from utils.datasets import LoadedImages, add_data_flags, data_source, load_images
from utils.machine import get_device, say
from utils.optimizers import make_optimizers
from utils.plots import plot_metrics, save_grid
from utils.prompts import data_entry
from utils.run import Run
from utils.samples import COLUMNS
from utils.training import TrainingConfig, build_model, with_sizes

TRAINING = {  # steps, images a step, learning rate
    "small": TrainingConfig(1800, 128, 4e-3, weight_decay=0.1, sample_every=450),
    "large": TrainingConfig(5000, 256, 1e-3, weight_decay=0.1, save_every=1000, sample_every=500),
    "paper": TrainingConfig(390_625, 32_768, 3e-4, warmup_steps=2000, weight_decay=0.2),
}
STAGE = {"clip": (CLIP_PRESETS, TRAINING)}
FROM_DATA = {"image_size", "image_channels", "text_seq_len", "pad_id"}
TEXT_SEQ_LEN = f"tokens of a caption that CLIP reads (default: what the captions need, at most {MOST_TOKENS})"
DISTORTION = 0.15  # of the side of what is seen, of its angle in radians, and of its place in half sides
NUM_HELD_OUT, NUM_SHOWN = 1000, 40  # test images that each sample step measures, and shows


def main() -> None:
    parser = TrainingParser(__doc__, STAGE, ROOT / "output", FROM_DATA)
    parser.add_argument("--text_seq_len", type=bounded(int, 1, 1024), help=TEXT_SEQ_LEN)
    add_data_flags(parser)
    args = parser.parse_args()
    data = load_images(data_source(args), args.data_dir, get_device())
    train(*parser.configs(args)["clip"], data, args.output_dir / "clip", args.text_seq_len, args.resume)


def train(
    config: CLIPConfig, training: TrainingConfig, data: LoadedImages, folder: Path,
    text_seq_len: int | None = None, resume: bool = False, skip_finished: bool = False,
) -> None:  # fmt: skip
    """Train CLIP on `data`, into `folder`; with skip_finished, not if it is trained already."""
    train_set, test_set, source = data
    held_out = test_set.subset(slice(NUM_HELD_OUT))
    shown_images = held_out.images(slice(NUM_SHOWN))
    tokenizer = Tokenizer.train(train_set.captions, config.text_vocab_size)
    captions = CaptionTable(tokenizer, train_set.captions, text_seq_len, train_set.device)
    if captions.num_cut:
        say(f"{captions.num_cut} captions lose what is behind their {captions.text_seq_len} tokens (--text_seq_len).")
    text_seq_len = captions.text_seq_len + 1  # with the end of the text
    held_out_tokens = tokenize(tokenizer, held_out.captions, text_seq_len).to(train_set.device)

    image_sizes = {"image_size": source.image_size, "image_channels": source.image_channels}
    text_sizes = {"text_vocab_size": tokenizer.vocab_size, "pad_id": PAD_ID, "text_seq_len": text_seq_len}
    config = with_sizes(config, **image_sizes, **text_sizes)
    clip = build_model(CLIP, config, training)
    optimizers = make_optimizers(clip, training, [*clip.image_encoder.blocks, *clip.text_encoder.blocks])
    origin = {"data": data_entry(train_set, source), "tokenizer": tokenizer.to_json()}
    with Run("clip", clip, optimizers, training, folder, **origin) as run:
        if skip_finished and run.is_finished(len(train_set)):
            return
        for _, index in run.steps(len(train_set), resume):
            images = distort(train_set.images(index))  # (B, C, H, H) in [0, 1]
            caption = train_set.draw_captions(index)  # (B,), one valid caption of each image
            text_tokens = add_end(captions.draw(caption))  # (B, T)
            with run.autocast():
                loss, metrics = clip(images, text_tokens, caption, train_set.caption_ids[index])
            run.update(loss, **metrics)
            clip.clip_logit_scale()

            if run.is_due(training.sample_every):
                with run.evaluation() as averaged:
                    zero_shot = evaluate(averaged, held_out, held_out_tokens, training.batch_size)
                    cosines = averaged.encode_image(shown_images) @ averaged.encode_text(held_out_tokens)[0].T
                run.log_held_out({"zero_shot_accuracy": zero_shot})
                if run.is_main:
                    labels = [f"{held_out.captions[row.argmax()]} {row.max():.2f}" for row in cosines]
                    title = f"step {run.step}: nearest caption and its cosine; zero-shot accuracy {zero_shot:.1%}"
                    save_grid(shown_images, folder / f"sample-{run.step}.png", COLUMNS, labels, title)
                    plot_metrics(folder, "clip")
            if run.is_due(training.save_every):
                run.save()


def distort(images: Tensor) -> Tensor:
    """Images (B, C, H, H), each scaled, turned and shifted a little at random, so that the encoder learns what they show and
    less of how. The CLIP paper crops at random (section 2.3); hardly any digit is cut here."""
    size, angle, right, down = DISTORTION * (2 * torch.rand(4, len(images), device=images.device) - 1)
    cos, sin = (1 + size) * angle.cos(), (1 + size) * angle.sin()
    transform = torch.stack([cos, -sin, right, sin, cos, down], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(transform, images.shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def evaluate(clip: CLIP, images: CaptionedImages, text_tokens: Tensor, batch_size: int) -> float:
    """The fraction of images whose nearest caption, of those with text_tokens (M, T), is valid for them."""
    text_embed = torch.cat([clip.encode_text(part)[0] for part in text_tokens.split(batch_size)])
    return zero_shot_accuracy(images.map(clip.encode_image, batch_size), text_embed, images)


if __name__ == "__main__":
    start(main)
