"""MNIST in color (after arXiv 1907.02893), and what a caption of a digit, plain or in color, asks for.

Each digit is painted in one ink on black, and called thick or thin where it has much or little ink for its digit: "a thick red
seven", "blue 4", "an eight in orange". Some pairs of a digit and an ink are kept out of the training images.

N images, B images of a batch, K captions of an image.
"""

from pathlib import Path

import torch
from torch import Tensor

from utils.data import CaptionedImages, DataSource
from utils.datasets.mnist import DIGIT_CAPTIONS, DIGIT_WORDS, check_size, read_mnist
from utils.machine import UserError

INKS = {  # none of them without red, green or blue, so that each channel shows the digit
    "red": (255, 64, 64),
    "yellow": (255, 240, 64),
    "green": (64, 255, 64),
    "blue": (64, 112, 255),
    "purple": (192, 64, 255),
    "orange": (255, 144, 48),
}
STROKES = ["thin", "thick"]
# One pair in five that no training image has: two digits of each ink, and each digit in one ink or two.
NEVER_SEEN = [(digit, ink) for i, ink in enumerate(INKS) for digit in (i, (i + 5) % 10)]


def load_colored_mnist(source: DataSource, data_dir: Path) -> list[CaptionedImages]:
    """MNIST's digits in color, those never seen among the test images only. Raises UserError if MNIST cannot be had, or
    another size or gray images are asked for."""
    check_size(source)
    if source.image_channels == 1:
        raise UserError("Digits in color have 3 channels.")
    return paint(read_mnist(data_dir))


LOADERS = {"colored_mnist": load_colored_mnist}


def captions_in_color(digit: int, ink: str, stroke: str | None) -> list[str]:
    """All that is said of a digit in an ink: 6 captions, and with a stroke 6 more that name it."""
    said = []
    for adjectives in ([], [stroke]) if stroke else ([],):
        for name in (DIGIT_WORDS[digit], str(digit)):
            plain, turned = " ".join([*adjectives, ink, name]), " ".join([*adjectives, name, "in", ink])
            said += [plain, f"{article(plain)} {plain}", f"{article(turned)} {turned}"]
    return said


def article(text: str) -> str:
    return "an" if text.startswith(("eight", "8", "orange")) else "a"


def asked_for(caption: str) -> dict[str, int]:
    """What a caption asks for: a "digit", an "ink" and a "stroke", as places in DIGIT_WORDS, INKS and STROKES; -1 where it
    leaves that open."""
    words = caption.lower().split()
    names = {"digit": DIGIT_WORDS, "ink": list(INKS), "stroke": STROKES}
    found = {kind: [all_of.index(word) for word in words if word in all_of] for kind, all_of in names.items()}
    found["digit"] += [int(word) for word in words if word in DIGIT_CAPTIONS[10:]]
    return {kind: places[0] if len(places) == 1 else -1 for kind, places in found.items()}


def all_asked_for(captions: list[str]) -> dict[str, Tensor]:
    """What each of some captions asks for, see asked_for: {"digit", "ink", "stroke"}, (B,) each."""
    asked = [asked_for(caption) for caption in captions]
    return {kind: torch.tensor([one[kind] for one in asked]) for kind in ("digit", "ink", "stroke")}


def ink_quantiles(amounts: Tensor, labels: Tensor, quantile: float) -> Tensor:
    """How much ink, of the amounts (N,) that images of the digits `labels` (N,) have, is at a quantile of each digit: (10,)."""
    of_digit = [amounts[labels == digit].float() for digit in range(10)]
    return torch.stack([amounts.quantile(quantile, interpolation="lower") for amounts in of_digit])


def paint(splits: list[tuple[Tensor, Tensor]]) -> list[CaptionedImages]:
    """MNIST in color: [(pixels (N, 28, 28) uint8, labels (N,)), ...] of the training and the test images in 3 channels, with up to
    12 captions each.

    The inks are drawn at random, always the same ones; the test images have those never seen, too. The third of a digit's
    training images with the most ink is thick, the one with the least thin, and of the third between, nothing is said.
    """
    amounts = [pixels.flatten(1).sum(dim=1) for pixels, _ in splits]
    low, high = (ink_quantiles(amounts[0], splits[0][1], quantile) for quantile in (1 / 3, 2 / 3))
    colors = torch.tensor(list(INKS.values()))
    never_seen = torch.zeros(10, len(INKS), dtype=torch.bool)
    for digit, ink in NEVER_SEEN:
        never_seen[digit, list(INKS).index(ink)] = True
    painted = []
    for split, (pixels, labels) in enumerate(splits):
        chances = torch.rand(len(labels), len(INKS), generator=torch.Generator().manual_seed(split))
        chances[never_seen[labels]] *= split  # to 0 in training
        ink = chances.argmax(dim=1)
        stroke = (amounts[split] > low[labels]).long() + (amounts[split] > high[labels])  # 0 thin, 1 neither, 2 thick
        captions, ids = {}, torch.full((10, len(INKS), 3, 12), -1)
        for digit, i, s in torch.stack([labels, ink, stroke], dim=1).unique(dim=0).tolist():
            said = captions_in_color(digit, list(INKS)[i], [STROKES[0], None, STROKES[1]][s])
            ids[digit, i, s, : len(said)] = torch.tensor([captions.setdefault(text, len(captions)) for text in said])
        in_color = (pixels[:, None].int() * colors[ink][:, :, None, None] / 255).round().to(torch.uint8)
        painted.append(CaptionedImages(in_color, list(captions), ids[labels, ink, stroke]))
    return painted
