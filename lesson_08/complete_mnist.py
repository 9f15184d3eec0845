"""Complete images with a trained DALL·E: the upper rows of test images are kept, and the rest is drawn (figure 2d). Writes PNGs,
samples.csv and a grid to output/dall_e_completed."""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from lesson_08.pipeline import DEFAULT_SAMPLING, Pipeline, add_model_flags, add_sampling_flags
from torch import Tensor
from utils.cli import ROOT, ArgumentParser, UserError, arguments_for, bounded, start
from utils.data import CaptionedImages
from utils.datasets import add_data_flags, data_source, load_images
from utils.machine import Threads
from utils.plots import save_grid
from utils.prompts import Prompts
from utils.samples import add_sample_flags, choose_prompts, say_what_is_cut, write_images


def main() -> None:
    parser = ArgumentParser(__doc__)
    add_sample_flags(parser, ROOT / "output/dall_e_completed")
    parser.add_argument("--rows", type=bounded(int, 1), default=4, help="rows of tokens that are kept")
    add_sampling_flags(parser)
    add_model_flags(parser)
    add_data_flags(parser)
    args = parser.parse_args()
    pipeline = Pipeline.load(**arguments_for(args, Pipeline.load))
    Threads().choose()
    known = Prompts.of_checkpoint(pipeline.data)
    prompts, columns = choose_prompts(args.prompts, args.num_samples, args.seed, known)
    seeds = [args.seed + i for i in range(len(prompts))]
    _, test_set, _ = load_images(data_source(args, pipeline.data), args.data_dir, pipeline.device)
    say_what_is_cut(prompts, pipeline.read)
    originals = choose_images(test_set, prompts, args.seed)
    kept, prefix = upper_rows(pipeline, originals, args.rows)
    sampling = {name: getattr(args, name) for name in DEFAULT_SAMPLING}
    images = pipeline.draw(prompts, seeds, prefix=prefix, **sampling)

    write_images(images, prompts, seeds, args.output_dir)
    cells = torch.cat([torch.cat(rows) for rows in zip(*(x.split(columns) for x in (originals, kept, images)))])
    rows = [prompts[i : i + columns] for i in range(0, len(prompts), columns)]
    captions = [caption for row in rows for caption in ["original"] * len(row) + ["kept"] * len(row) + row]
    save_grid(cells, args.output_dir / "grid.png", columns, captions)
    print(f"{len(prompts)} images, samples.csv and grid.png are in {args.output_dir}")


def choose_images(test_set: CaptionedImages, prompts: list[str], seed: int) -> Tensor:
    """For each prompt a test image that it is a caption of, or any if there is none, (B, C, H, H) in [0, 1]."""
    rng = random.Random(seed)
    chosen = [rng.choice(test_set.index_of(prompt).tolist() or range(len(test_set))) for prompt in prompts]
    return test_set.images(torch.tensor(chosen))


def upper_rows(pipeline: Pipeline, images: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, H) in [0, 1] with only their upper `rows` rows of tokens left, the rest gray, and the tokens of
    these, computed from them alone, (B, rows * w). Raises UserError if that leaves nothing to draw."""
    config = pipeline.dvae.config
    if rows >= config.grid_size:
        raise UserError(f"--rows {rows} leaves nothing to draw; images have {config.grid_size} rows of tokens.")
    pixel_rows = rows * config.image_size // config.grid_size
    kept = images.clone()
    kept[:, :, pixel_rows:] = 0.5
    return kept, pipeline.dvae.encode(images[:, :, :pixel_rows])


if __name__ == "__main__":
    start(main)
