"""What the scripts that draw images share: which prompts, whose random numbers, and the files that they write."""

import random
from pathlib import Path

import torch
from torch import Tensor

from utils.cli import ArgumentParser, UserError, positive_int, seed_number
from utils.plots import to_picture
from utils.prompts import PROMPTS, known_prompts
from utils.tables import write_rows

NUM_RANDOM = 64  # prompts where none are given, an 8x8 grid
MOST_COLUMNS = 64  # of a grid
MOST_IMAGES = 10_000  # at once: they are kept in memory, and shown in one grid


def add_sample_flags(parser: ArgumentParser, output_dir: Path) -> None:
    parser.add_argument(
        "--prompts", nargs="+", metavar="PROMPT", help="digits as words or numerals (default: 64 random ones)"
    )
    parser.add_argument("--num_samples", type=positive_int, default=1, help="images of each prompt")
    parser.add_argument("--seed", type=seed_number, default=0, help="of the first image; the next has the next seed")
    parser.add_argument("--output_dir", type=Path, default=output_dir, help="where the images go")


def choose_prompts(args) -> tuple[list[str], int]:
    """The prompt of each image, and the columns of the grid: num_samples of each given prompt, or random ones.

    Raises UserError for a prompt that no model learned.
    """
    count = args.num_samples * (NUM_RANDOM if args.prompts is None else len(args.prompts))
    if count > MOST_IMAGES:
        raise UserError(
            f"That makes {count:,} images, and {MOST_IMAGES:,} is the most; draw fewer, with another --seed each time."
        )
    if args.prompts is None:
        rng = random.Random(args.seed)
        prompts = [rng.choice(PROMPTS) for _ in range(NUM_RANDOM)]
        for row in range(0, NUM_RANDOM, 8):
            print(" ".join(prompts[row : row + 8]))
        prompts = [prompt for prompt in prompts for _ in range(args.num_samples)]
        return prompts, min(8 * args.num_samples, MOST_COLUMNS)
    prompts = [prompt for prompt in known_prompts(args.prompts) for _ in range(args.num_samples)]
    columns = args.num_samples if args.num_samples > 1 else max(10, len(prompts) // 100)
    return prompts, min(columns, len(prompts), MOST_COLUMNS)


class SeededNoise:
    """Random numbers in which each image of a batch follows its own seed, whatever else is in the batch."""

    def __init__(self, seeds: list[int]):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def randn(self, shape) -> Tensor:
        """Gaussian noise of `shape`, (B, ...) for B seeds, on the CPU."""
        return torch.stack([torch.randn(shape[1:], generator=generator) for generator in self.generators])

    def rand(self, shape) -> Tensor:
        """Uniform numbers in [0, 1) of `shape`, (B, ...) for B seeds, on the CPU."""
        return torch.stack([torch.rand(shape[1:], generator=generator) for generator in self.generators])


def write_images(images: Tensor, prompts: list[str], seeds: list[int], folder: Path) -> None:
    """Each image (C, H, H) in [0, 1] as a PNG of its own size, and samples.csv with a row for each."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i:04d}-{prompt}.png" for i, prompt in enumerate(prompts)]
    for name, image in zip(names, images):
        to_picture(image).save(folder / name)
    rows = zip(names, prompts, seeds)
    write_rows(folder / "samples.csv", [{"file": file, "prompt": prompt, "seed": seed} for file, prompt, seed in rows])
