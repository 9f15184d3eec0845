"""What the scripts that draw images share: which prompts, whose random numbers, and the files that they write."""

import random
import re
from pathlib import Path

import torch
from torch import Tensor

from utils.cli import ArgumentParser, UserError, positive_int, seed_number
from utils.data import CaptionedImages
from utils.plots import save_grid, to_picture
from utils.prompts import Prompts
from utils.tables import write_rows

NUM_RANDOM = 64  # prompts where none are given, an 8x8 grid
COLUMNS = 10  # of a training's grid
MOST_COLUMNS = 64  # of a grid
MOST_IMAGES = 10_000  # at once: they are kept in memory, and shown in one grid


def add_sample_flags(parser: ArgumentParser, output_dir: Path) -> None:
    parser.add_argument(
        "--prompts",
        nargs="+",
        metavar="PROMPT",
        help="what to draw, in quotes if it is several words (default: 64 random captions)",
    )
    parser.add_argument("--num_samples", type=positive_int, default=1, help="images of each prompt")
    parser.add_argument(
        "--candidates",
        type=positive_int,
        help="draw this many images of each prompt, and keep the --num_samples that CLIP finds nearest to it (default: keep all)",
    )
    parser.add_argument("--seed", type=seed_number, default=0, help="of the first image; the next has the next seed")
    parser.add_argument("--output_dir", type=Path, default=output_dir, help="where the images go")


def choose_prompts(args, known: Prompts) -> tuple[list[str], int]:
    """The prompt of each image to draw, and the columns of the grid: for each given prompt, or random caption, num_samples
    images, or as many candidates for them.

    Raises UserError for a prompt that the model cannot be asked for, and for too few candidates or too many images.
    """
    drawn = args.candidates or args.num_samples
    if drawn < args.num_samples:
        raise UserError(f"--candidates {drawn} are fewer than the --num_samples {args.num_samples} to keep of them.")
    given = (
        known.check(args.prompts) if args.prompts else random.Random(args.seed).choices(known.examples, k=NUM_RANDOM)
    )
    if drawn * len(given) > MOST_IMAGES:
        raise UserError(
            f"That makes {drawn * len(given):,} images, and {MOST_IMAGES:,} is the most; draw fewer, with another --seed each "
            f"time."
        )
    prompts = [prompt for prompt in given for _ in range(drawn)]
    if not args.prompts:
        for row in range(0, NUM_RANDOM, 8):
            print(", ".join(given[row : row + 8]))
        return prompts, min(8 * args.num_samples, MOST_COLUMNS)
    columns = args.num_samples if args.num_samples > 1 else max(10, len(given) // 100)
    return prompts, min(columns, len(given) * args.num_samples, MOST_COLUMNS)


def nearest_candidates(similarity: Tensor, candidates: int, kept: int) -> list[int]:
    """Which images to keep of `candidates` for each prompt, one prompt after another: the `kept` ones of the largest
    similarity (B,) to their prompt, best first. Their places in 0 .. B - 1, kept / candidates of B."""
    best = similarity.view(-1, candidates).topk(kept, dim=1).indices  # (prompts, kept)
    return (best + candidates * torch.arange(len(best), device=best.device)[:, None]).flatten().tolist()


def sample_captions(test_set: CaptionedImages, number: int = 40) -> list[str]:
    """What a training draws again and again: all captions, as often as they fit in, or some of many."""
    captions = test_set.captions
    if len(captions) > number:
        return random.Random(0).sample(captions, number)
    return (captions * (number // len(captions)))[:number]


def write_sample_grid(images: Tensor, captions: list[str], step: int, folder: Path) -> None:
    """Images (B, C, H, H) drawn in training as sample-STEP.png, and their captions as sample_prompts-STEP.txt, in rows."""
    save_grid(images, folder / f"sample-{step}.png", COLUMNS, captions, title=f"step {step}")
    rows = [", ".join(captions[i : i + COLUMNS]) for i in range(0, len(captions), COLUMNS)]
    (folder / f"sample_prompts-{step}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")


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
    words = [re.sub(r"\W+", "-", prompt).strip("-")[:40] for prompt in prompts]  # letters and digits: no path, no dots
    names = [f"{i:04d}-{word}.png" for i, word in enumerate(words)]
    for name, image in zip(names, images):
        to_picture(image).save(folder / name)
    rows = zip(names, prompts, seeds)
    write_rows(folder / "samples.csv", [{"file": file, "prompt": prompt, "seed": seed} for file, prompt, seed in rows])
