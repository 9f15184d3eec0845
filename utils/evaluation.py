"""What the evaluations of both lessons share: the scores of drawn digits, and their table, JSON and picture."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from utils.cli import ROOT, ArgumentParser, number
from utils.data import NUM_CLASSES, Images
from utils.prompts import DIGIT_OF_PROMPT, PROMPTS
from utils.scoring import (
    accuracy,
    confusion_matrix,
    diversity,
    frechet_distance,
    in_slices,
    nearest_images,
    wilson_interval,
)


@dataclass
class Row:
    """A measure, its value, the value as text, and a word on what it means."""

    name: str
    value: float
    text: str
    note: str = ""


@dataclass
class Samples:
    """Images (B, C, H, H) drawn for `prompts`, the digits that the prompts name and that the scorer reads, (B,) both."""

    prompts: list[str]
    images: Tensor
    digits: Tensor
    read: Tensor

    def share_right(self, chosen: Tensor | None = None) -> tuple[float, float, float]:
        """Share of the (chosen) images in which the scorer reads the prompted digit, and its 95% interval."""
        right = (self.digits == self.read)[slice(None) if chosen is None else chosen]
        return right.float().mean().item(), *wilson_interval(int(right.sum()), len(right))

    def of_spelling(self, spelling: int) -> Tensor:
        """Which were prompted by a word (0) or by a numeral (1)."""
        return torch.tensor([PROMPTS.index(prompt) % 2 == spelling for prompt in self.prompts])


def add_evaluation_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--num_samples", type=number(int, 1, 500), default=50, help="images of each of the 20 prompts")
    parser.add_argument(
        "--output_dir", type=Path, default=ROOT / "output" / "evaluation", help="where the table and the picture go"
    )


def draw_samples(draw, scorer: nn.Module, images_a_prompt: int = 50) -> Samples:
    """So many images of each of the 20 prompts; draw(prompts, seeds) -> images (B, C, H, H) in [0, 1]."""
    prompts = [prompt for prompt in PROMPTS for _ in range(images_a_prompt)]
    images = draw(prompts, list(range(len(prompts))))
    digits = torch.tensor([DIGIT_OF_PROMPT[prompt] for prompt in prompts])
    return Samples(prompts, images, digits, in_slices(scorer, images).argmax(dim=1).cpu())


class Judge:
    """The scorer and the real digits that samples are held against."""

    def __init__(self, scorer: nn.Module, train_set: Images, test_set: Images):
        self.scorer, self.train_set, self.test_set = scorer, train_set, test_set
        self.features_of_test = test_set.map(scorer.features)

    def frechet_distance(self, images: Tensor) -> float:
        """Of images (B, C, H, H) in [0, 1] to the test images, in the scorer's features."""
        return frechet_distance(in_slices(self.scorer.features, images), self.features_of_test)

    def diversity(self, samples: Samples) -> float:
        """Mean distance of two samples of a digit, over that of two test images of a digit, in the scorer's features."""
        features = in_slices(self.scorer.features, samples.images)
        real = diversity(self.features_of_test.cpu(), self.test_set.labels.cpu())
        return diversity(features.cpu(), samples.digits) / real

    def sample_rows(self, name: str, samples: Samples) -> list[Row]:
        """How right, how close to real digits, how varied and how new the samples are."""
        share, low, high = samples.share_right()
        note = f"95% interval {low:.1%} to {high:.1%}, {len(samples.digits):,} samples"
        rows = [Row(f"{name}, prompt accuracy", share, f"{share:.1%}", note)]
        for spelling, prompted_by in enumerate(("words", "numerals")):
            share, low, high = samples.share_right(samples.of_spelling(spelling))
            note = f"95% interval {low:.1%} to {high:.1%}"
            rows.append(Row(f"{name}, prompt accuracy, {prompted_by}", share, f"{share:.1%}", note))
        distance = self.frechet_distance(samples.images)
        rows.append(Row(f"{name}, Fréchet distance", distance, f"{distance:.1f}", "to the test images"))
        ratio = self.diversity(samples)
        note = "distance within a digit, over that of test images"
        rows.append(Row(f"{name}, diversity", ratio, f"{ratio:.2f}", note))
        nearest = nearest_images(samples.images, self.train_set)[0].mean().item()
        rows.append(Row(f"{name}, nearest training image", nearest, f"{nearest:.3f}", "RMS distance; 0 is a copy"))
        return rows

    def real_rows(self, num_images: int) -> list[Row]:
        """The scorer's own accuracy, and what as many real images as there are samples would get in their place."""
        share = accuracy(self.scorer, *self.test_set[:])
        floor = self.frechet_distance(self.train_set.at_random(num_images)[:][0])
        nearest = nearest_images(self.test_set.at_random(num_images)[:][0], self.train_set)[0].mean().item()
        return [
            Row("scorer, accuracy", share, f"{share:.1%}", "on the test images"),
            Row("real images, Fréchet distance", floor, f"{floor:.1f}", "of as many training images: the floor"),
            Row("real images, nearest training image", nearest, f"{nearest:.3f}", "of test images"),
        ]


def write_report(
    folder: Path,
    kind: str,
    rows: list[Row],
    samples: Samples,
    train_set: Images,
    files: dict[str, str],
    sampling: dict,
) -> None:
    """The rows on the screen; all of it, with the checkpoints and the sampling, to FOLDER/KIND.json and KIND.png."""
    folder.mkdir(parents=True, exist_ok=True)
    width = max(len(row.name) for row in rows)
    for row in rows:
        print(f"{row.name:<{width}}  {row.text:>8}  {row.note}")
    report = {
        "checkpoints": {kind: os.path.relpath(file, ROOT) for kind, file in files.items()},
        "sampling": sampling,
        "measures": {row.name: {"value": row.value, "text": row.text, "note": row.note} for row in rows},
        "prompt_accuracy_by_digit": [samples.share_right(samples.digits == d)[0] for d in range(NUM_CLASSES)],
        "confusion_matrix": confusion_matrix(samples.read, samples.digits).tolist(),
    }
    (folder / f"{kind}.json").write_text(json.dumps(report, indent=1) + "\n")
    save_report(samples, train_set, folder / f"{kind}.png")
    print(f"{kind}.json and {kind}.png are in {folder}")


def save_report(samples: Samples, train_set: Images, path: Path) -> None:
    """The confusion matrix, the prompt accuracy of each digit, and samples above their nearest training images."""
    figure = Figure(figsize=(10, 6), dpi=90, layout="constrained")
    panels = figure.subplot_mosaic([["confusion", "digits"], ["samples", "samples"]], height_ratios=(3, 1))
    left, right, bottom = panels.values()
    confusion = confusion_matrix(samples.read, samples.digits)
    left.imshow(confusion.float().log1p(), cmap="Blues")
    for digit, row in enumerate(confusion.tolist()):
        for other, count in enumerate(row):
            if count:
                left.text(other, digit, count, ha="center", va="center", color="white" if digit == other else "black")
    left.set(title="prompted (rows) and read (columns)", xticks=range(NUM_CLASSES), yticks=range(NUM_CLASSES))

    for spelling, name in enumerate(("words", "numerals")):
        chosen = samples.of_spelling(spelling)
        shares = [samples.share_right(chosen & (samples.digits == digit)) for digit in range(NUM_CLASSES)]
        share, low, high = torch.tensor(shares).T
        places = torch.arange(NUM_CLASSES) + 0.2 * (2 * spelling - 1)
        right.errorbar(places, share, (share - low, high - share), fmt="o", label=name, capsize=2)
    right.set(title="prompt accuracy, with 95% intervals", xticks=range(NUM_CLASSES))
    right.legend(loc="lower left")

    shown = torch.arange(0, len(samples.prompts), max(1, len(samples.prompts) // 20))[:20]
    images = samples.images[shown]
    nearest = train_set[nearest_images(images, train_set)[1]][0]
    canvas = torch.cat([torch.cat(list(row), dim=2) for row in (images.cpu(), nearest.cpu())], dim=1)
    bottom.imshow(canvas.permute(1, 2, 0).expand(-1, -1, 3).clamp(0, 1), interpolation="nearest")
    bottom.set_title("one sample of each prompt, above the training image nearest to it")
    bottom.set_axis_off()
    figure.savefig(path)
