"""What the figure scripts of both lessons share: their flags, animations, learning curves."""

from pathlib import Path

import torch
from torch import Tensor

from utils.cli import ArgumentParser, UserError, add_data_flags
from utils.data import load_digits
from utils.plots import to_picture
from utils.tables import read_rows, write_rows

CURVE_EVERY = 50  # steps that a point of a learning curve averages


def add_figure_flags(parser: ArgumentParser, figures: dict, output_dir: Path) -> None:
    """The names of figures to draw, {name: the function that draws it}, of which data, and where to."""
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"of {', '.join(figures)} (default: all)")
    parser.add_argument("--output_dir", type=Path, default=output_dir, help="where the figures go")
    add_data_flags(parser)


def draw_figures(figures: dict, pipeline, image_channels: int, device, args) -> None:
    """Call figures[name](pipeline, test set, folder) for each name that was asked for.

    Raises UserError for a name that no figure has.
    """
    names = args.figures or list(figures)
    for name in names:
        if name not in figures:
            raise UserError(f"there is no figure {name}, but {', '.join(figures)}.")
    _, test_set = load_digits(args.dataset, args.data_dir, image_channels, device)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name in names:
        figures[name](pipeline, test_set, args.output_dir)
    print(f"{', '.join(names)}: drawn to {args.output_dir}")


def save_gif(frames: list[Tensor | Path], path: Path, milliseconds: int, scale: int = 1) -> None:
    """Frames, images (C, H, W) in [0, 1] or files of them, as an animation that rests on its last one."""
    from PIL import Image

    pictures = []
    for frame in frames:
        picture = Image.open(frame) if isinstance(frame, Path) else to_picture(frame)
        size = (picture.width * scale, picture.height * scale)
        pictures.append(picture.convert("L").resize(size, Image.Resampling.NEAREST).quantize(16))
    durations = [milliseconds] * (len(pictures) - 1) + [2500]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def plot_curves(files: dict[str, str], expected: Path, folder: Path) -> None:
    """The learning curves of the runs that wrote `files`, {name: checkpoint}, over the expected ones, EXPECTED/NAME.csv, to
    FOLDER/curves.png; averaged over every 50 steps they go to FOLDER/NAME.csv.

    Raises UserError if a checkpoint has no metrics.csv beside it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(files), 3), dpi=90, layout="constrained")
    for axes, (name, file) in zip(figure.subplots(1, len(files), squeeze=False)[0], files.items()):
        yours = averages(read_rows(Path(file).parent / "metrics.csv"))
        if not yours:
            raise UserError(f"There is no metrics.csv beside {file}.")
        expectation = read_rows(expected / f"{name}.csv")
        for label, rows in (("expected", expectation), ("yours", yours)):
            axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], label=label)
        axes.set_title(f"{name}, loss", fontsize=9)
        axes.set_xlabel("step")
        losses = torch.tensor([row["loss"] for row in expectation or yours])
        low, high = losses.quantile(torch.tensor([0.0, 0.95])).tolist()  # the first steps would hide the others
        axes.set_ylim(low - 0.1 * (high - low), high + 0.2 * (high - low))
        axes.legend(fontsize=8)
        write_rows(folder / f"{name}.csv", [{key: f"{value:.6g}" for key, value in row.items()} for row in yours])
    figure.savefig(folder / "curves.png")


def averages(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Rows of metrics, one a step, averaged over every 50 steps, each under its last step."""
    parts = [rows[i : i + CURVE_EVERY] for i in range(0, len(rows), CURVE_EVERY)]
    return [
        {name: part[-1][name] if name == "step" else sum(row[name] for row in part) / len(part) for name in part[0]}
        for part in parts
    ]
