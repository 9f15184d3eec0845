"""A folder of drawn images, as the scripts that choose among them or enlarge them read it."""

import csv
import io
from pathlib import Path

import torch
from torch import Tensor

from utils.cli import UserError, shortened


def read_images(folder: Path) -> tuple[list[Tensor], list[dict[str, str]]]:
    """The inverse of utils.samples.write_images: images (C, H, W) in [0, 1], C 1 or 3, and their rows of samples.csv.
    Raises UserError if there are none, or one cannot be read."""
    from PIL import Image

    file, images = folder / "samples.csv", []
    try:
        text = file.read_text(encoding="utf-8-sig") if file.exists() else ""
        rows = list(csv.DictReader(io.StringIO(text, newline="")))  # by hand, the last line may have no end
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8; save it as UTF-8.") from error
    except csv.Error as error:
        raise UserError(f"{file} cannot be read: {error}.") from error
    if not rows or not {"file", "prompt"} <= rows[0].keys():
        raise UserError(f"{folder} has no samples.csv with the columns file and prompt; give a folder of drawn images.")
    for row in rows:
        if not row["file"] or not (row["prompt"] or "").strip():
            raise UserError(f"{file} has a row without a file or a prompt.")
        try:
            picture = Image.open(folder / row["file"])
            picture = picture.convert("L" if picture.mode in ("1", "L") else "RGB")
        except Exception as error:  # whatever a broken image or an odd name provokes
            raise UserError(f"The image {shortened(folder / row['file'])} of samples.csv cannot be read.") from error
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(
            picture.height, picture.width, -1
        )
        images.append(pixels.permute(2, 0, 1).float() / 255)
    return images, rows
