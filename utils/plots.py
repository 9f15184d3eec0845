"""Pictures that runs write: captioned grids of images, curves of metrics."""

from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.tables import read_numbers

CELL = 70  # pixels of an image in a grid, about
LINE = 18  # pixels of a line of text
MOST_LINES = 6  # of a caption
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def to_picture(image: Tensor):
    """An image (C, H, W) in [0, 1], C 1 or 3, as a PIL image."""
    from PIL import Image

    pixels = (image.float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy() if len(pixels) == 3 else pixels[0].numpy())


def save_grid(images: Tensor, path: Path, columns: int, captions: list[str] | None = None, title: str = "") -> None:
    """Images (B, C, H, W) in [0, 1], C 1 or 3, as one PNG, row by row, each under its caption if there are any."""
    from PIL import Image, ImageDraw, ImageFont  # here and not matplotlib, which takes half a second to import

    dejavu = Path(find_spec("matplotlib").origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
    font = ImageFont.truetype(dejavu, 12, layout_engine=ImageFont.Layout.BASIC)  # the other one fails on some prompts
    count, _, height, width = images.shape
    scale = max(1, round(CELL / width))
    cell_width = width * scale + 2
    lines = [wrapped(caption, font, cell_width) for caption in captions or []]
    above = LINE * max(map(len, lines), default=0)
    cell_height, top = height * scale + 2 + above, LINE if title else 0
    grid_width = max(columns * cell_width, round(font.getlength(title)) + 4)
    grid = Image.new("RGB", (grid_width, -(-count // columns) * cell_height + top), "white")
    draw = ImageDraw.Draw(grid)
    draw.text((grid.width / 2, LINE / 2), title, "black", font, anchor="mm")
    for i, image in enumerate(images):
        left, bottom = i % columns * cell_width, top + (i // columns + 1) * cell_height
        picture = to_picture(image).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        draw.rectangle((left, bottom - height * scale - 2, left + cell_width - 1, bottom - 1), "gray")
        grid.paste(picture, (left + 1, bottom - height * scale - 1))
        for number, line in enumerate(lines[i] if captions else ()):
            center = left + cell_width / 2, bottom - cell_height + LINE * (number + 0.5)
            draw.text(center, line, "black", font, anchor="mm")
    grid.save(path)


def wrapped(text: str, font, width: int) -> list[str]:
    """A caption in at most MOST_LINES lines, each at most `width` pixels wide."""
    lines = [""]
    for word in "".join(letter if letter.isprintable() else " " for letter in text[:200]).split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") > width:
            lines.append("")
        while font.getlength(word) > width and len(word) > 1:
            word = word[:-2] + ELLIPSIS
        lines[-1] = f"{lines[-1]} {word}".strip()
    return [*lines[: MOST_LINES - 1], lines[MOST_LINES - 1] + ELLIPSIS] if len(lines) > MOST_LINES else lines


def plot_metrics(folder: Path, title: str) -> None:
    """The columns of metrics.csv over the steps as loss.png: every step faintly, their running mean on top."""
    from matplotlib.figure import Figure

    rows = read_numbers(folder / "metrics.csv")
    names = [name for name in rows[0] if name != "step"]
    steps = [row["step"] for row in rows]
    figure = Figure(figsize=(3.2 * len(names), 2.8), dpi=100, layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        values = torch.tensor([row[name] for row in rows])
        window = max(1, len(values) // 50)
        axes.plot(steps, values, alpha=0.3)
        axes.plot(steps[window - 1 :], F.avg_pool1d(values[None], window, stride=1)[0], color="C0")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step")
    figure.suptitle(title)
    figure.savefig(folder / "loss.png")
