"""Train the decoder, stage 3 of DALL·E 2: CLIP image embeddings to images. Writes to output/decoder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from lesson_17.diffusion_decoder import DECODER_PRESETS, Decoder, DecoderConfig, decode_image_embed, shrink, to_x_0
from lesson_17.frozen_clip import EmbeddedData, EmbeddedImages, FrozenCLIP, embed
from torch import Tensor
from utils.cli import ROOT, TrainingParser, UserError, bounded, start
from utils.data import DataSource, map_in_chunks
from utils.datasets import add_data_flags, data_source, load_images
from utils.machine import Threads, get_device
from utils.optimizers import make_optimizers
from utils.plots import plot_metrics, save_grid
from utils.prompts import data_entry
from utils.run import Run
from utils.training import TrainingConfig, build_model, with_sizes

TRAINING = {  # steps, images a step, learning rate
    "small": TrainingConfig(1280, 64, 3e-3, ema_decay=0.99, sample_every=320),
    "large": TrainingConfig(10_000, 128, 1e-3, ema_decay=0.999, save_every=2500, sample_every=1000),
    "paper": TrainingConfig(800_000, 2048, 1.2e-4, ema_decay=0.9999),
}
STAGE = {"decoder": (DECODER_PRESETS, TRAINING)}
FROM_DATA = {"image_size", "image_channels", "clip_embed_dim", "clip_text_width", "clip_text_seq_len"}
DECODER_IMAGE_SIZE = "size of the images that it draws, if they are to be smaller than the data's"
NUM_SHOWN = 10  # test images that each sample step shows


def main() -> None:
    parser = TrainingParser(__doc__, STAGE, ROOT / "output", FROM_DATA)
    parser.add_argument("--clip_checkpoint", help="take this CLIP (default: the newest in the output folder)")
    parser.add_argument("--decoder_image_size", type=bounded(int, 1, 4096), help=DECODER_IMAGE_SIZE)
    add_data_flags(parser)
    args = parser.parse_args()
    Threads(args.num_threads or 0).choose()  # embedding all images is work, too
    clip = FrozenCLIP.load(args.clip_checkpoint, args.output_dir)
    data = embed(clip, load_images(data_source(args, clip.data), args.data_dir, get_device()))
    config, training = parser.configs(args)["decoder"]
    train(config, training, data, args.output_dir / "decoder", args.decoder_image_size, args.resume)


def train(
    config: DecoderConfig, training: TrainingConfig, data: EmbeddedData, folder: Path,
    image_size: int | None = None, resume: bool = False, skip_finished: bool = False,
) -> None:  # fmt: skip
    """Train the decoder on `data` to draw images of image_size, None for the data's, into `folder`; with skip_finished,
    not if it is trained already. Raises UserError for an image_size above the data's."""
    clip, embedded, held_out, source = data
    train_set, image_embed, captions = embedded.images, embedded.image_embed, embedded.captions
    image_size = image_size or source.image_size
    check_size(image_size, source)
    shown = EmbeddedImages.of(clip, held_out.images.of_different_captions(NUM_SHOWN))
    shown_images = shrink(shown.images.images(), image_size)
    shown_ids = shown.images.caption_ids[:, 0]
    _, shown_encodings = shown.captions[shown_ids]

    config = with_sizes(config, **clip.sizes, image_size=image_size, image_channels=source.image_channels)
    decoder = build_model(Decoder, config, training)
    optimizers = make_optimizers(decoder, training, decoder.unet.blocks)
    origin = {"data": data_entry(train_set, source), "sources": {"clip": clip.source}}
    with Run("decoder", decoder, optimizers, training, folder, **origin) as run:
        if skip_finished and run.is_finished(len(train_set)):
            return
        for _, index in run.steps(len(train_set), resume):
            _, text_encodings = captions[train_set.draw_captions(index)]  # (B, T, D)
            x_0 = to_x_0(shrink(train_set.images(index), image_size))  # (B, C, H, H) in [-1, 1]
            t = decoder.diffusion.noisy_timesteps(len(x_0)) if config.noisy_timesteps else None
            with run.autocast():
                loss = decoder.diffusion.loss(decoder, x_0, image_embed[index], text_encodings, t=t)
            run.update(loss)

            if run.is_due(training.sample_every):
                with run.evaluation() as averaged:
                    held_out_loss = evaluate(averaged, held_out, training.batch_size)
                    x_T = torch.randn_like(shown_images)
                    drawn = decode_image_embed(averaged, shown.image_embed, shown_encodings, x_T)
                run.log_held_out({"held_out_loss": held_out_loss})
                if run.is_main:
                    title = f"step {run.step}: test images above what their embeddings are decoded to"
                    rows, path = torch.cat([shown_images, drawn]), folder / f"sample-{run.step}.png"
                    captions_shown = [shown.images.captions[i] for i in shown_ids]
                    save_grid(rows, path, len(shown_images), 2 * captions_shown, title)
                    plot_metrics(folder, "decoder")
            if run.is_due(training.save_every):
                run.save()


def check_size(image_size: int | None, source: DataSource) -> None:
    """Raises UserError if the decoder is to draw larger images than the data's."""
    if image_size and image_size > source.image_size:
        raise UserError(f"--decoder_image_size {image_size} is larger than the images, {source.image_size} pixels.")


def evaluate(decoder: Decoder, held_out: EmbeddedImages, batch_size: int) -> float:
    """The loss of held-out images at timesteps from 1 to T, all equally likely."""

    def losses(index: Tensor) -> Tensor:
        x_0 = to_x_0(shrink(held_out.images.images(index), decoder.config.image_size))
        _, text_encodings = held_out.captions[held_out.images.caption_ids[index, 0]]
        return decoder.diffusion.loss(decoder, x_0, held_out.image_embed[index], text_encodings).expand(len(x_0))

    return map_in_chunks(losses, torch.arange(len(held_out.images)), batch_size=batch_size).mean().item()


if __name__ == "__main__":
    start(main)
