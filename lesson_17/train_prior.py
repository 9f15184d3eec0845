"""Train the prior, stage 2 of DALL·E 2: captions to CLIP image embeddings. Writes to output/prior."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from lesson_17.clip import valid_pairs
from lesson_17.diffusion_prior import PRIOR_PRESETS, DiffusionPrior, PriorConfig, draw_image_embed
from lesson_17.frozen_clip import EmbeddedData, EmbeddedImages, FrozenCLIP, embed
from torch import Tensor
from utils.cli import ROOT, TrainingParser, start
from utils.datasets import add_data_flags, data_source, load_images
from utils.machine import Threads, get_device
from utils.optimizers import make_optimizers
from utils.plots import plot_metrics, save_grid
from utils.prompts import data_entry
from utils.run import Run
from utils.samples import COLUMNS, sample_captions
from utils.training import TrainingConfig, build_model, with_sizes

TRAINING = {  # steps, images a step, learning rate
    "small": TrainingConfig(1200, 256, 2e-3, ema_decay=0.99, sample_every=300),
    "large": TrainingConfig(30_000, 256, 1e-3, ema_decay=0.999, save_every=5000, sample_every=2500),
    "paper": TrainingConfig(600_000, 4096, 1.1e-4, weight_decay=6e-2, ema_decay=0.9999),
}
STAGE = {"prior": (PRIOR_PRESETS, TRAINING)}
FROM_CLIP = {"clip_embed_dim", "clip_text_width", "clip_text_seq_len"}
NUM_SHOWN, NUM_DRAWN = 20, 20  # captions of each sample step, and embeddings that are drawn for each


def main() -> None:
    parser = TrainingParser(__doc__, STAGE, ROOT / "output", FROM_CLIP)
    parser.add_argument("--clip_checkpoint", help="take this CLIP (default: the newest in the output folder)")
    add_data_flags(parser)
    args = parser.parse_args()
    Threads(args.num_threads or 0).choose()  # embedding all images is work, too
    clip = FrozenCLIP.load(args.clip_checkpoint, args.output_dir)
    data = embed(clip, load_images(data_source(args, clip.data), args.data_dir, get_device()))
    train(*parser.configs(args)["prior"], data, args.output_dir / "prior", args.resume)


def train(
    config: PriorConfig, training: TrainingConfig, data: EmbeddedData, folder: Path, resume=False, skip_finished=False
) -> None:
    """Train the prior on `data`, into `folder`; with skip_finished, not if it is trained already."""
    clip, embedded, held_out, source = data
    train_set, captions = embedded.images, embedded.captions
    shown = sample_captions(held_out.images, NUM_SHOWN)
    shown_ids = torch.tensor([held_out.images.captions.index(caption) for caption in shown], device=train_set.device)

    prior = build_model(DiffusionPrior, with_sizes(config, **clip.sizes), training)
    prior.fit_scale(embedded.image_embed)
    scaled = prior.scale(embedded.image_embed)
    optimizers = make_optimizers(prior, training, prior.blocks)
    origin = {"data": data_entry(train_set, source), "sources": {"clip": clip.source}}
    with Run("prior", prior, optimizers, training, folder, **origin) as run:
        if skip_finished and run.is_finished(len(train_set)):
            return
        for _, index in run.steps(len(train_set), resume):
            text_embed, text_encodings = captions[train_set.draw_captions(index)]  # (B, E), (B, T, D)
            with run.autocast():
                loss = prior.diffusion.loss(prior, scaled[index], text_embed, text_encodings)
            run.update(loss)

            if run.is_due(training.sample_every):
                with run.evaluation() as averaged:
                    nearest, measured = evaluate(averaged, shown_ids, held_out, training.batch_size)
                run.log_held_out(measured)
                if run.is_main:
                    title = f"step {run.step}: the test image nearest to the embedding drawn for each caption"
                    save_grid(nearest, folder / f"sample-{run.step}.png", COLUMNS, shown, title)
                    plot_metrics(folder, "prior")
            if run.is_due(training.save_every):
                run.save()


def evaluate(prior: DiffusionPrior, shown: Tensor, held_out: EmbeddedImages, batch_size: int) -> tuple[Tensor, dict]:
    """Draws NUM_DRAWN embeddings for each of the captions `shown` (S,) of held-out images. Returns the image nearest to
    the first of each caption, (S, C, H, H), and how near the embeddings are to the caption and to its images; to
    compare, also the mean cosine of these images with each other."""
    every_caption = torch.arange(len(held_out.images.captions), device=shown.device)
    text_embed, _ = held_out.captions[every_caption]
    asked = torch.arange(len(shown), device=shown.device).repeat_interleave(NUM_DRAWN)  # (S * NUM_DRAWN,)
    drawn = torch.cat([draw_image_embed(prior, *held_out.captions[shown[i]]) for i in asked.split(batch_size)])
    is_valid = valid_pairs(every_caption, held_out.images.caption_ids).float()  # (N, M)
    with torch.autocast(drawn.device.type, enabled=False):  # bfloat16 cannot tell near captions apart
        means = is_valid[:, shown].T @ held_out.image_embed / is_valid[:, shown].sum(dim=0)[:, None]  # (S, E)
        same = is_valid.T @ is_valid[:, shown] > 0  # (M, S): both are valid for some image
        nearest_caption = (drawn @ text_embed.T).argmax(dim=1)
        nearest_image = (drawn[::NUM_DRAWN] @ held_out.image_embed.T).argmax(dim=1)
    measured = {
        "own_caption_nearest": same[nearest_caption, asked].float().mean(),
        "cosine_to_caption": (drawn * text_embed[shown[asked]]).sum(dim=1).mean(),
        "cosine_to_images": (drawn * means[asked]).sum(dim=1).mean(),
        "cosine_of_images": means.square().sum(dim=1).mean(),  # the mean of all products is that of the means
    }
    return held_out.images.images(nearest_image), {name: value.item() for name, value in measured.items()}


if __name__ == "__main__":
    start(main)
