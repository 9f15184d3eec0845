"""Draw digits for prompts with a trained DALL·E 2. Writes PNGs, samples.csv and a grid to output/dall_e_2_samples."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accelerate import PartialState
from pipeline import DEFAULT_SAMPLING, Pipeline, add_model_flags
from utils.cli import ROOT, ArgumentParser, number, run
from utils.plots import save_grid
from utils.samples import add_sample_flags, choose_prompts, write_images


def main() -> None:
    args = parse_args()
    pipeline = Pipeline.load(args, PartialState().device)
    prompts, columns = choose_prompts(args)
    seeds = [args.seed + i for i in range(len(prompts))]
    images = pipeline.draw(prompts, seeds, **{name: getattr(args, name) for name in DEFAULT_SAMPLING})
    write_images(images, prompts, seeds, args.output_dir)
    save_grid(images, args.output_dir / "grid.png", columns, prompts)
    print(f"{len(prompts)} images, samples.csv and grid.png are in {args.output_dir}")


def parse_args():
    parser = ArgumentParser(__doc__)
    add_sample_flags(parser, ROOT / "output" / "dall_e_2_samples")
    parser.add_argument(
        "--guidance_scale",
        type=number(float, 0, 100),
        help="how much the decoder exaggerates embedding and caption; 1: not at all",
    )
    parser.add_argument(
        "--prior_guidance_scale",
        type=number(float, 0, 100),
        help="how much the prior exaggerates the caption; 1: not at all",
    )
    parser.add_argument(
        "--sampling_steps", type=number(int, 1, 1000), help="of the prior and the decoder; more is finer and slower"
    )
    parser.add_argument(
        "--sampler", choices=["ddim", "ddpm"], help="ddim adds no noise on the way, ddpm does and wants more steps"
    )
    add_model_flags(parser)
    parser.set_defaults(**DEFAULT_SAMPLING)
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
