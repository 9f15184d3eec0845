"""Draw pictures for prompts with a trained DALL·E. Writes PNGs, samples.csv and a grid to output/dall_e_samples."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lesson_08.pipeline import DEFAULT_SAMPLING, Pipeline, add_model_flags, add_sampling_flags
from utils.cli import ROOT, ArgumentParser, arguments_for, start
from utils.machine import Threads
from utils.plots import save_grid
from utils.prompts import Prompts
from utils.samples import add_sample_flags, choose_prompts, write_images


def main() -> None:
    parser = ArgumentParser(__doc__)
    add_sample_flags(parser, ROOT / "output/dall_e_samples")
    add_sampling_flags(parser)
    add_model_flags(parser)
    args = parser.parse_args()
    pipeline = Pipeline.load(**arguments_for(args, Pipeline.load))
    Threads().choose()
    prompts, columns = choose_prompts(args.prompts, args.num_samples, args.seed, Prompts.of_checkpoint(pipeline.data))
    seeds = [args.seed + i for i in range(len(prompts))]
    images = pipeline.draw(prompts, seeds, **{name: getattr(args, name) for name in DEFAULT_SAMPLING})
    write_images(images, prompts, seeds, args.output_dir)
    save_grid(images, args.output_dir / "grid.png", columns, prompts)
    print(f"{len(prompts)} images, samples.csv and grid.png are in {args.output_dir}")


if __name__ == "__main__":
    start(main)
