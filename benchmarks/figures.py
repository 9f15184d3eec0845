"""What the figure scripts of both lessons share: their flags, rows of images."""

from argparse import ArgumentTypeError
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.cli import ArgumentParser, new_folder
from utils.datasets import add_data_flags, data_source, load_images
from utils.scoring import check_digits

OF_DIGITS = {"embeddings", "noise", "guidance", "steps", "tokens", "sampling"}  # their captions are asked for


def add_names(parser: ArgumentParser, what: str, names: dict) -> None:
    """Which of `names` are asked for, as args.figures where `what` is "figure", and so on: all of them by default."""

    def known(name: str) -> str:
        if name not in names:
            raise ArgumentTypeError(f"there is no {what} {name}, but {', '.join(names)}")
        return name

    of_them = f"of {', '.join(names)} (default: all)"
    parser.add_argument(f"{what}s", type=known, nargs="*", default=list(names), metavar=what.upper(), help=of_them)


def add_figure_flags(parser: ArgumentParser, figures: dict, output_dir: Path) -> None:
    """The names of figures to draw, {name: the function that draws it}, of which data, and where to."""
    add_names(parser, "figure", figures)
    parser.add_argument("--output_dir", type=new_folder, default=output_dir, help="where the figures go")
    add_data_flags(parser)


def draw_figures(figures: dict, pipeline, device, args) -> None:
    """Call figures[name](pipeline, test set, folder) for each name that was asked for. Raises UserError for a figure of
    digits where the images are others."""
    _, test_set, source = load_images(data_source(args, pipeline.data), args.data_dir, device)
    for name in OF_DIGITS.intersection(args.figures):
        check_digits(source, f"The figure {name}")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name in args.figures:
        figures[name](pipeline, test_set, args.output_dir)
    print(f"{', '.join(args.figures)}: drawn to {args.output_dir}")


def save_rows(rows: dict[str, Tensor], path: Path, captions: list[str] | None = None, cell: float = 0.45) -> None:
    """Rows of images (B, C, H, W) in [0, 1] as one PNG, each behind its name, captions, of one line or several, above the
    columns; `cell` is the width of an image in inches."""
    from matplotlib.figure import Figure

    lines = max(caption.count("\n") + 1 for caption in captions or [""])
    names, head = 2.4, 0.15 * (lines + 1) if captions else 0.0  # inches
    width, height = names + cell * max(map(len, rows.values())), head + cell * len(rows)
    figure = Figure(figsize=(width, height), dpi=100)
    for i, (name, images) in enumerate(rows.items()):
        canvas = torch.cat(list(F.pad(images.float().cpu().clamp(0, 1), (1, 1, 1, 1), value=0.5)), dim=2)
        bottom = height - head - cell * (i + 1)
        axes = figure.add_axes((names / width, bottom / height, cell * len(images) / width, cell / height))
        axes.imshow(canvas.permute(1, 2, 0).expand(-1, -1, 3).numpy(), interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        figure.text((names - 0.1) / width, (bottom + cell / 2) / height, name, ha="right", va="center", fontsize=8)
    for i, caption in enumerate(captions or []):
        x, y = names + cell * (i + 0.5), height - head / 2
        figure.text(x / width, y / height, caption, ha="center", va="center", fontsize=8)
    figure.savefig(path)
