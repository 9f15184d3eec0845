"""Train DALL·E 2: CLIP, then the prior, then the decoder, skipping what is finished. Writes to output/clip, output/prior and
output/decoder. Each is also trained by a script of its own, train_clip.py, train_prior.py and train_decoder.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lesson_17 import train_clip, train_decoder, train_prior
from lesson_17.frozen_clip import FrozenCLIP, load_embedded
from utils.cli import ROOT, TrainingParser, start
from utils.datasets import add_data_flags, data_source, load_images
from utils.machine import Threads, get_device

STAGES = {**train_clip.STAGE, **train_prior.STAGE, **train_decoder.STAGE}
FROM_DATA = train_clip.FROM_DATA | train_prior.FROM_CLIP | train_decoder.FROM_DATA


def main() -> None:
    parser = TrainingParser(__doc__, STAGES, ROOT / "output", FROM_DATA)
    train_clip.add_flags(parser)
    train_decoder.add_flags(parser)
    parser.add_argument("--clip_checkpoint", help="take this CLIP (default: the newest in the output folder)")
    add_data_flags(parser)
    args = parser.parse_args()
    configs, folder, going_on = parser.configs(args), args.output_dir, {"resume": args.resume, "skip_finished": True}

    if not args.clip_checkpoint:
        images = load_images(data_source(args), args.data_dir, get_device())
        train_clip.train(*configs["clip"], *images, folder / "clip", args.text_seq_len, **going_on)
    Threads(args.num_threads or 0).choose()  # embedding all images is work, too
    clip = FrozenCLIP.load(args.clip_checkpoint, folder)
    embedded = load_embedded(clip, data_source(args, clip.data), args.data_dir)
    train_prior.train(*configs["prior"], clip, *embedded, folder / "prior", **going_on)
    size = args.decoder_image_size
    train_decoder.train(*configs["decoder"], clip, *embedded, folder / "decoder", size, **going_on)


if __name__ == "__main__":
    start(main)
