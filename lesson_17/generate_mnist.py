"""Draw pictures for prompts with a trained DALL·E 2. Writes PNGs, samples.csv and a grid to output/dall_e_2_samples."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lesson_17.pipeline import DEFAULT_SAMPLING, Pipeline, add_model_flags, add_sampling_flags
from utils.cli import ROOT, ArgumentParser, arguments_for, start
from utils.machine import Threads
from utils.samples import add_sample_flags, draw_samples


def main() -> None:
    parser = ArgumentParser(__doc__)
    add_sample_flags(parser, ROOT / "output/dall_e_2_samples")
    add_sampling_flags(parser)
    add_model_flags(parser)
    args = parser.parse_args()
    pipeline = Pipeline.load(**arguments_for(args, Pipeline.load))
    Threads().choose()
    draw_samples(pipeline, args, {name: getattr(args, name) for name in DEFAULT_SAMPLING})


if __name__ == "__main__":
    start(main)
