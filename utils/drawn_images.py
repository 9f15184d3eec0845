"""A folder of drawn images, as the scripts that choose among them or enlarge them read it."""

from pathlib import Path

import torch
from torch import Tensor

from utils.cli import UserError
from utils.tables import read_rows


def read_images(folder: Path) -> tuple[list[Tensor], list[dict[str, str]]]:
    """The inverse of utils.samples.write_images: images (C, H, W) in [0, 1], C 1 or 3, and their rows of samples.csv.
    Raises UserError if there are none, or one cannot be read."""
    from PIL import Image

    try:
        rows, images = read_rows(folder / "samples.csv"), []
    except UnicodeDecodeError as error:
        raise UserError(f"{folder / 'samples.csv'} is not UTF-8; save it as UTF-8.") from error
    if not rows or not {"file", "prompt"} <= rows[0].keys():
        raise UserError(f"{folder} has no samples.csv with the columns file and prompt; give a folder of drawn images.")
    for row in rows:
        if not row["file"] or not row["prompt"]:
            raise UserError(f"{folder / 'samples.csv'} has a row without a file or a prompt.")
        try:
            picture = Image.open(folder / row["file"])
            picture = picture.convert("L" if picture.mode in ("1", "L") else "RGB")
        except OSError as error:
            raise UserError(f"{folder / row['file']} of samples.csv cannot be read.") from error
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(
            picture.height, picture.width, -1
        )
        images.append(pixels.permute(2, 0, 1).float() / 255)
    return images, rows
