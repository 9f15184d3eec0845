"""Train DALL·E 2: CLIP, then the prior, then the decoder, skipping what is finished. Writes to output/clip, output/prior
and output/decoder. Each is also trained by a script of its own, train_clip.py, train_prior.py and train_decoder.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lesson_17 import train_clip, train_decoder, train_prior
from lesson_17.frozen_clip import FrozenCLIP, embed
from utils.cli import ROOT, TrainingParser, bounded, start
from utils.datasets import add_data_flags, data_source, load_images
from utils.machine import Threads, get_device

STAGES = {**train_clip.STAGE, **train_prior.STAGE, **train_decoder.STAGE}
FROM_DATA = train_clip.FROM_DATA | train_prior.FROM_CLIP | train_decoder.FROM_DATA


def main() -> None:
    parser = TrainingParser(__doc__, STAGES, ROOT / "output", FROM_DATA)
    parser.add_argument("--clip_checkpoint", help="take this CLIP, and train none")
    parser.add_argument("--text_seq_len", type=bounded(int, 1, 1024), help=train_clip.TEXT_SEQ_LEN)
    parser.add_argument("--decoder_image_size", type=bounded(int, 1, 4096), help=train_decoder.DECODER_IMAGE_SIZE)
    add_data_flags(parser)
    args = parser.parse_args()
    configs, folder, going_on = parser.configs(args), args.output_dir, {"resume": args.resume, "skip_finished": True}
    Threads(args.num_threads or 0).choose()
    given = FrozenCLIP.load(args.clip_checkpoint) if args.clip_checkpoint else None
    data = load_images(data_source(args, given and given.data), args.data_dir, get_device())
    train_decoder.check_size(args.decoder_image_size, data.source)  # now, and not after two stages
    if given is None:
        train_clip.train(*configs["clip"], data, folder / "clip", args.text_seq_len, **going_on)
    embedded = embed(given or FrozenCLIP.load(models=folder), data)
    train_prior.train(*configs["prior"], embedded, folder / "prior", **going_on)
    train_decoder.train(*configs["decoder"], embedded, folder / "decoder", args.decoder_image_size, **going_on)


if __name__ == "__main__":
    start(main)
