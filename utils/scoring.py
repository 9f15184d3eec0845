"""How good drawn digits are: judged by a classifier of real ones, which is trained apart from every model that it judges.

B, N, M numbers of images, C channels, D size of the classifier's features.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from utils.cli import ROOT, ArgumentParser, UserError, bounded
from utils.data import NUM_CLASSES, Images, map_in_parts
from utils.plots import save_grid
from utils.prompts import DIGIT_OF_PROMPT, PROMPTS


class Scorer(nn.Module):
    """A convolutional classifier: images (B, C, 28, 28) in [0, 1] to logits (B, 10), by way of features (B, 64)."""

    def __init__(self, image_channels: int):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(image_channels, 16, 3, padding=1),
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
        self.classify = nn.Linear(64, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))


def train_scorer(train_set: Images, num_steps: int = 2000, batch_size: int = 128) -> Scorer:
    """A scorer of 99% and more on MNIST's test images, in about a minute on a CPU."""
    torch.manual_seed(0)
    device = train_set.pixels.device
    scorer = Scorer(train_set.pixels.shape[1]).to(device)
    optimizer = torch.optim.AdamW(scorer.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=num_steps)
    for _ in range(num_steps):
        images, labels = train_set[torch.randint(len(train_set), (batch_size,), device=device)]
        loss = F.cross_entropy(scorer(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return scorer.eval().requires_grad_(False)


def load_scorer(train_set: Images, folder: Path) -> Scorer:
    """The scorer of these training images: the one kept in `folder`, or else trained now and kept there.

    Raises UserError if the file is broken.
    """
    channels = train_set.pixels.shape[1]
    path = folder / f"scorer-{len(train_set)}x{channels}.safetensors"  # of 60,000 or 4,500 images, in 1 or 3 channels
    if path.exists():
        scorer = Scorer(channels)
        try:
            scorer.load_state_dict(load_file(path))
        except (SafetensorError, RuntimeError) as error:
            raise UserError(f"{path} is broken; delete it, and it is trained again.") from error
        return scorer.to(train_set.pixels.device).eval().requires_grad_(False)
    print("Training the scorer, once ...", flush=True)
    scorer = train_scorer(train_set)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(scorer.state_dict(), path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)
    return scorer


def accuracy(scorer: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Fraction of images (B, C, 28, 28) in [0, 1] that the scorer takes for their label (B,)."""
    return (map_in_parts(scorer, images).argmax(dim=1) == labels).float().mean().item()


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% interval of a fraction: Wilson's score interval, which does not shrink to nothing at 0% and 100%."""
    fraction = successes / trials
    middle = fraction + z**2 / (2 * trials)
    half = z * math.sqrt(fraction * (1 - fraction) / trials + z**2 / (4 * trials**2))
    return (middle - half) / (1 + z**2 / trials), (middle + half) / (1 + z**2 / trials)


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


def nearest_images(images: Tensor, train_set: Images) -> tuple[Tensor, Tensor]:
    """The distance of each image (B, C, H, W) in [0, 1] to its nearest training image, the root of the mean squared
    difference of their pixels, (B,), and that image's index (B,)."""
    flat = images.flatten(1)
    squared = train_set.map(lambda others: torch.cdist(others.flatten(1), flat).square() / flat.shape[1], 5000)
    distances, index = squared.min(dim=0)
    return distances.sqrt(), index


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


def draw_samples(draw, scorer: nn.Module, images_a_prompt: int = 50) -> Samples:
    """So many images of each of the 20 prompts; draw(prompts, seeds) -> images (B, C, H, H) in [0, 1]."""
    prompts = [prompt for prompt in PROMPTS for _ in range(images_a_prompt)]
    images = draw(prompts, list(range(len(prompts))))
    digits = torch.tensor([DIGIT_OF_PROMPT[prompt] for prompt in prompts])
    return Samples(prompts, images, digits, map_in_parts(scorer, images).argmax(dim=1).cpu())


class Judge:
    """The scorer and the real digits that samples are held against."""

    def __init__(self, scorer: nn.Module, train_set: Images, test_set: Images):
        self.scorer, self.train_set, self.test_set = scorer, train_set, test_set
        self.features_of_test = test_set.map(scorer.features)

    def frechet_distance(self, images: Tensor) -> float:
        """Of images (B, C, H, H) in [0, 1] to the test images, in the scorer's features."""
        return frechet_distance(map_in_parts(self.scorer.features, images), self.features_of_test)

    def sample_rows(self, name: str, samples: Samples) -> list[Row]:
        """How right, how close to real digits, how varied and how new the samples are."""
        right = samples.digits == samples.read
        low, high = wilson_interval(int(right.sum()), len(right))
        fraction, interval = (
            right.float().mean().item(),
            f"95% interval {low:.1%} to {high:.1%}, {len(right):,} samples",
        )
        distance = self.frechet_distance(samples.images)
        features = map_in_parts(self.scorer.features, samples.images)
        of_real = diversity(self.features_of_test.cpu(), self.test_set.labels.cpu())
        ratio = diversity(features.cpu(), samples.digits) / of_real
        nearest = nearest_images(samples.images, self.train_set)[0].mean().item()
        return [
            Row(f"{name}, prompt accuracy", fraction, f"{fraction:.1%}", interval),
            Row(f"{name}, Fréchet distance", distance, f"{distance:.1f}", "to the test images"),
            Row(f"{name}, diversity", ratio, f"{ratio:.2f}", "distance within a digit, over that of test images"),
            Row(f"{name}, nearest training image", nearest, f"{nearest:.3f}", "RMS distance; 0 is a copy"),
        ]

    def real_rows(self, num_images: int) -> list[Row]:
        """The scorer's own accuracy, and what as many real images as there are samples would get in their place."""
        fraction = accuracy(self.scorer, *self.test_set[:])
        floor = self.frechet_distance(self.train_set.at_random(num_images)[:][0])
        nearest = nearest_images(self.test_set.at_random(num_images)[:][0], self.train_set)[0].mean().item()
        return [
            Row("scorer, accuracy", fraction, f"{fraction:.1%}", "on the test images"),
            Row("real images, Fréchet distance", floor, f"{floor:.1f}", "of as many training images: the floor"),
            Row("real images, nearest training image", nearest, f"{nearest:.3f}", "of test images"),
        ]


def add_evaluation_flags(parser: ArgumentParser) -> None:
    """--num_samples and --output_dir."""
    parser.add_argument("--num_samples", type=bounded(int, 1, 500), default=50, help="images of each of the 20 prompts")
    parser.add_argument(
        "--output_dir", type=Path, default=ROOT / "output/evaluation", help="where the table and the picture go"
    )


def write_report(
    folder: Path, name: str, rows: list[Row], samples: Samples, train_set: Images, files: dict[str, str], sampling: dict
) -> None:
    """The rows on the screen; all of it, with the checkpoints and the sampling, to FOLDER/NAME.json; and a sample of each
    prompt above the training image nearest to it to NAME.png."""
    folder.mkdir(parents=True, exist_ok=True)
    width = max(len(row.name) for row in rows)
    for row in rows:
        print(f"{row.name:<{width}}  {row.text:>8}  {row.note}")
    confusion = torch.bincount(NUM_CLASSES * samples.digits + samples.read, minlength=NUM_CLASSES**2)
    report = {
        "checkpoints": {
            model: os.path.relpath(file, ROOT) if Path(file).is_file() else file for model, file in files.items()
        },
        "sampling": sampling,
        "measures": {row.name: {"value": row.value, "text": row.text, "note": row.note} for row in rows},
        "confusion_matrix": confusion.view(NUM_CLASSES, NUM_CLASSES).tolist(),  # rows prompted, columns read
    }
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")

    shown = torch.arange(0, len(samples.prompts), len(samples.prompts) // len(PROMPTS))
    nearest = train_set[nearest_images(samples.images[shown], train_set)[1]][0]
    captions = PROMPTS + ["nearest"] * len(PROMPTS)
    save_grid(torch.cat([samples.images[shown], nearest]), folder / f"{name}.png", len(PROMPTS), captions)
    print(f"{name}.json and {name}.png are in {folder}")
