"""Two small digits in one picture, each in its ink (`two_digits`): "a red three left of a blue seven", "a green 4 above a
purple 2".

What such a caption asks for depends on which word belongs to which: where the two inks change places, the two digits, or both,
the same words ask for another picture. Digits that differ by five are in no training image together, though each digit is
there in each ink and in each place.

N images, B images of a batch, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.digits import DIGIT_CAPTIONS, DIGIT_WORDS, INKS, article, asked_for

ARRANGEMENTS = ["left of", "above"]
SMALL, MIDDLE = 14, slice(7, 21)  # pixels along a side of a small digit, and those in the middle of 28
FIRST, SECOND = slice(0, SMALL), slice(SMALL, 2 * SMALL)
BOXES = [  # rows and columns of the first and the second digit, in each arrangement
    ((MIDDLE, FIRST), (MIDDLE, SECOND)),
    ((FIRST, MIDDLE), (SECOND, MIDDLE)),
]
MARGIN = 3  # of MNIST's 28 pixels, which is cut off; 1% of the ink is lost
NEVER_TOGETHER = 5  # the difference of two digits that are never seen together


def captions_of_two(digits: list[int], inks: list[int], arrangement: int) -> list[str]:
    """What is said of two digits in two inks, places in INKS: a caption in words and one in numerals."""
    said = []
    for names in (DIGIT_WORDS, DIGIT_CAPTIONS[10:]):
        first, second = (f"{list(INKS)[ink]} {names[digit]}" for digit, ink in zip(digits, inks))
        said.append(f"{article(first)} {first} {ARRANGEMENTS[arrangement]} {article(second)} {second}")
    return said


def two_asked_for(captions: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """What captions such as those of captions_of_two ask for: digits (B, 2), inks (B, 2) and arrangements (B,)."""
    arrangements = [next(i for i, words in enumerate(ARRANGEMENTS) if words in caption) for caption in captions]
    pairs = [caption.split(ARRANGEMENTS[arrangement]) for caption, arrangement in zip(captions, arrangements)]
    digits, inks = (torch.tensor([[asked_for(one)[k] for one in pair] for pair in pairs]) for k in ("digit", "ink"))
    return digits, inks, torch.tensor(arrangements)


def never_together(digits: Tensor) -> Tensor:
    """Which of some pairs of digits (B, 2) no training image shows, (B,) bool."""
    return (digits[:, 0] - digits[:, 1]).abs() == NEVER_TOGETHER


def put_together(small: Tensor, arrangements: Tensor) -> Tensor:
    """The first and the second digit (B, 2, C, 14, 14) of each picture, in its arrangement (B,), on black: (B, C, 28, 28)."""
    images = small.new_zeros(len(small), small.shape[2], 2 * SMALL, 2 * SMALL)
    for arrangement, boxes in enumerate(BOXES):
        of_these = arrangements == arrangement
        for place, (rows, columns) in enumerate(boxes):
            images[of_these, :, rows, columns] = small[of_these, place]
    return images


def cut_apart(images: Tensor, arrangements: Tensor) -> Tensor:
    """The inverse of put_together, of any images (B, C, 28, 28): what is where the two digits should be, (B, 2, C, 14, 14)."""
    pairs = [torch.stack([images[:, :, rows, columns] for rows, columns in boxes], dim=1) for boxes in BOXES]
    return torch.stack(pairs, dim=1)[torch.arange(len(images)), arrangements]


def pair_up(splits: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, list[str], Tensor]]:
    """MNIST in pairs: [(pixels (N, 28, 28) uint8, labels (N,)), ...] of the training and the test images to pixels
    (N, 3, 28, 28), captions, and the two that may be said of each image, (N, 2).

    Each image of a split is once the first digit, and the second is another of the same split. Digits, inks and arrangements
    are drawn at random, always the same ones; the test images have the pairs of digits never seen together, too.
    """
    made = []
    for split, (pixels, labels) in enumerate(splits):
        generator = torch.Generator().manual_seed(split)
        number, count = len(labels), labels.bincount(minlength=10)
        steps = torch.tensor([step for step in range(1, 10) if split or step != NEVER_TOGETHER])
        other = (labels + steps[torch.randint(len(steps), (number,), generator=generator)]) % 10
        # A random image of each other digit, in the order of the digits.
        place = (count.cumsum(dim=0) - count)[other] + (torch.rand(number, generator=generator) * count[other]).long()
        index = torch.stack([torch.arange(number), labels.argsort()[place]], dim=1)  # (N, 2)
        ink = torch.randint(len(INKS), (number,), generator=generator)
        other_ink = (ink + torch.randint(1, len(INKS), (number,), generator=generator)) % len(INKS)
        inks, arrangements = torch.stack([ink, other_ink], dim=1), torch.randint(2, (number,), generator=generator)

        colors = torch.tensor(list(INKS.values()))[inks][..., None, None]  # (N, 2, 3, 1, 1)
        in_color = (make_small(pixels)[index][:, :, None] * colors / 255).round().to(torch.uint8)
        shown = torch.cat([labels[index], inks, arrangements[:, None]], dim=1)  # (N, 5)
        kinds, kind = shown.unique(dim=0, return_inverse=True)
        captions = [text for a, b, i, j, k in kinds.tolist() for text in captions_of_two([a, b], [i, j], k)]
        made.append((put_together(in_color, arrangements), captions, torch.stack([2 * kind, 2 * kind + 1], dim=1)))
    return made


def make_small(pixels: Tensor) -> Tensor:
    """Digits (N, 28, 28) of 0..255, without their margin, in 14x14 pixels: (N, 14, 14) of 0..255."""
    inner = pixels[:, None, MARGIN:-MARGIN, MARGIN:-MARGIN].float()
    return F.interpolate(inner, (SMALL, SMALL), mode="bicubic", antialias=True).clamp(0, 255).squeeze(1)
