"""The judge of generated digits: a classifier of real ones, trained apart from every model it judges, and what is measured
with it.

B, N, M numbers of images, C channels, D size of the classifier's features.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.checkpoints import load_checkpoint, save_checkpoint
from utils.data import NUM_CLASSES, Images


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
    path = folder / f"scorer-{len(train_set)}x{channels}.pt"  # of 60,000 or 4,500 images, in 1 or 3 channels
    if path.exists():
        scorer = Scorer(channels)
        scorer.load_state_dict(load_checkpoint(path, "scorer")["model"])
        return scorer.to(train_set.pixels.device).eval().requires_grad_(False)
    print("Training the scorer, once ...", flush=True)
    scorer = train_scorer(train_set)
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, {"kind": "scorer", "model": scorer.state_dict()})
    return scorer


def in_slices(function, images: Tensor) -> Tensor:
    return torch.cat([function(part) for part in images.split(500)])


def accuracy(scorer: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images (B, C, 28, 28) in [0, 1] that the scorer takes for their label (B,)."""
    return (in_slices(scorer, images).argmax(dim=1) == labels).float().mean().item()


def confusion_matrix(predicted: Tensor, labels: Tensor) -> Tensor:
    """How many of each label (rows) were taken for each digit (columns), (10, 10)."""
    return torch.bincount(NUM_CLASSES * labels + predicted, minlength=NUM_CLASSES**2).view(NUM_CLASSES, NUM_CLASSES)


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% interval of a share: Wilson's score interval, which does not shrink to nothing at 0% and 100%."""
    share = successes / trials
    middle = share + z**2 / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return (middle - half) / (1 + z**2 / trials), (middle + half) / (1 + z**2 / trials)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Of the Gaussians with the means and covariances of features (N, D) and (M, D); 0 if they are the same.

    FID (arXiv 1706.08500, equation 6) with our scorer's features in place of Inception's. It grows as N and M
    shrink: compare distances of equally many images only.
    """
    a, b = a.double(), b.double()
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
