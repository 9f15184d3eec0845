"""What the scripts that draw images share: prompts, seeds, and the files that they write."""

import contextlib
import csv
import random
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from utils.checkpoints import PRETRAINED
from utils.cli import ArgumentParser, UserError, new_folder, positive_int, seed_number, shortened
from utils.data import CaptionedImages
from utils.machine import say
from utils.plots import save_grid, to_picture
from utils.prompts import Prompts
from utils.tables import read_rows, write_rows

NUM_RANDOM = 64  # prompts where none are given, an 8x8 grid
COLUMNS = 10  # of a training's grid
MOST_COLUMNS = 64  # of a grid
AT_A_TIME = 128  # images drawn and written
MOST_IMAGES = 10_000  # at once: they are kept in memory, and shown in one grid


def add_sample_flags(parser: ArgumentParser, output_dir: Path) -> None:
    """What to draw, how often, and where to."""
    add = parser.add_argument
    add("--prompts", nargs="+", metavar="PROMPT", help="what to draw, each in quotes (default: 64 random captions)")
    add("--num_samples", type=positive_int, default=1, help="images of each prompt")
    add("--seed", type=seed_number, default=0, help="of the first image; the next has the next seed")
    add("--output_dir", type=new_folder, default=output_dir, help="where the images go")


def add_checkpoint_flags(parser: ArgumentParser, *names: str) -> None:
    """Which models to draw with."""
    add = parser.add_argument
    add("--models", metavar="FOLDER", help="holds the models, each in a folder of its own (default: output)")
    for name in names:
        add(f"--{name}_checkpoint", help=f"(default: the newest in FOLDER/{name})")
    add("--pretrained", choices=PRETRAINED, help="take the included weights (default: mnist, if nothing is trained)")


def draw_samples(pipeline, args, sampling: dict) -> None:
    """What args ask for, drawn by a lesson's pipeline with `sampling`: images, each chunk written when it is drawn, and a grid."""
    known = Prompts.of_checkpoint(pipeline.data)
    prompts, columns = choose_prompts(args.prompts, args.num_samples, args.seed, known)
    say_what_is_cut(prompts, pipeline.read)
    seeds, chunks = [args.seed + i for i in range(len(prompts))], []
    for start in range(0, len(prompts), AT_A_TIME):
        chunk = slice(start, start + AT_A_TIME)
        chunks.append(pipeline.draw(prompts[chunk], seeds[chunk], **sampling))
        write_images(chunks[-1], prompts[chunk], seeds[chunk], args.output_dir, first=start)
    save_grid(torch.cat(chunks), args.output_dir / "grid.png", columns, prompts)
    print(f"{len(prompts)} images, samples.csv and grid.png are in {args.output_dir}")


def say_what_is_cut(prompts: list[str], read: Callable[[str], str]) -> None:
    """Says which prompts are longer than what a model reads of them."""
    for prompt in dict.fromkeys(prompts):
        if (beginning := read(prompt)) != prompt:
            say(f"Of {shortened(prompt)} the model reads {shortened(beginning)} only (--text_seq_len of its training).")


def choose_prompts(prompts: list[str] | None, num_samples: int, seed: int, known: Prompts) -> tuple[list[str], int]:
    """The prompt of each image to draw, num_samples of each given prompt or random caption, and the columns of a grid.
    Raises UserError for a prompt that the model cannot be asked for, and for too many images."""
    given = known.check(prompts) if prompts else random.Random(seed).choices(known.examples, k=NUM_RANDOM)
    if num_samples * len(given) > MOST_IMAGES:
        number = f"{num_samples * len(given):,}"
        raise UserError(f"{number} images are more than {MOST_IMAGES:,}; draw fewer, with another --seed each time.")
    repeated = [prompt for prompt in given for _ in range(num_samples)]
    if not prompts:
        for row in range(0, NUM_RANDOM, 8):
            print(", ".join(given[row : row + 8]))
        return repeated, min(8 * num_samples, MOST_COLUMNS)
    columns = num_samples if num_samples > 1 else max(10, len(given) // 100)
    return repeated, min(columns, len(repeated), MOST_COLUMNS)


def sample_captions(test_set: CaptionedImages, number: int = 40) -> list[str]:
    """The captions that a training draws, at most `number`: all, repeated while they fit, or random ones."""
    captions = test_set.captions
    if len(captions) > number:
        return random.Random(0).sample(captions, number)
    return (captions * (number // len(captions)))[:number]


def write_sample_grid(images: Tensor, captions: list[str], step: int, folder: Path) -> None:
    """Images (B, C, H, H) drawn in training as sample-STEP.png, their captions as sample_prompts-STEP.txt, in rows."""
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


def write_images(
    images: Tensor, prompts: list[str], seeds: list[int], folder: Path, first: int = 0, **more: list
) -> None:
    """Each image (C, H, H) in [0, 1] as a PNG, numbered from `first`, and samples.csv with a row for each: file, prompt,
    seed and `more`. At first = 0 the images of an earlier samples.csv are deleted, else its rows are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(ValueError, csv.Error):  # of a samples.csv that is no such table
        for row in [] if first else read_rows(folder / "samples.csv"):
            if re.fullmatch(r"\d{4,}-[^/\\]*\.png", row.get("file") or ""):  # a name that was given here
                (folder / row["file"]).unlink(missing_ok=True)
    words = [re.sub(r"\W+", "-", prompt).strip("-")[:40] for prompt in prompts]  # letters and digits: no path, no dots
    names = [f"{i:04d}-{word}.png" for i, word in enumerate(words, first)]
    for name, image in zip(names, images):
        to_picture(image).save(folder / name)
    table = {"file": names, "prompt": prompts, "seed": seeds, **more}
    rows = [dict(zip(table, row)) for row in zip(*table.values())]
    write_rows(folder / "samples.csv", rows, append=first > 0)
