"""What the figure scripts of both lessons share: their flags, animations, learning curves."""

import csv
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from utils.cli import ROOT, ArgumentParser, UserError, add_data_flags, one_of
from utils.data import load_digits
from utils.plots import read_rows

CURVE_EVERY = 50  # steps that a point of a learning curve averages


def add_figure_flags(parser: ArgumentParser, figures: dict, output_dir: Path) -> None:
    """The names of figures to draw, {name: the function that draws it}, of which data, and where to."""
    parser.add_argument(
        "figures",
        nargs="*",
        type=one_of(figures, "figure"),
        metavar="FIGURE",
        default=list(figures),
        help=f"of {', '.join(figures)} (default: all)",
    )
    parser.add_argument("--output_dir", type=Path, default=output_dir, help="where the figures go")
    add_data_flags(parser)


def draw_figures(figures: dict, pipeline, image_channels: int, device, args) -> None:
    """Call figures[name](pipeline, test set, folder) for each name that was asked for."""
    _, test_set = load_digits(args.dataset, args.data_dir, image_channels, device)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name in args.figures:
        figures[name](pipeline, test_set, args.output_dir)
    print(f"{', '.join(args.figures)}: drawn to {args.output_dir}")


def save_gif(frames: list[Tensor | Path], path: Path, milliseconds: int, scale: int = 1) -> None:
    """Frames, images (C, H, W) in [0, 1] or files of them, as an animation that rests on its last one."""
    pictures = []
    for frame in frames:
        picture = Image.open(frame) if isinstance(frame, Path) else to_pil_image(frame.float().cpu().clamp(0, 1))
        size = (picture.width * scale, picture.height * scale)
        pictures.append(picture.convert("L").resize(size, Image.Resampling.NEAREST).quantize(16))
    durations = [milliseconds] * (len(pictures) - 1) + [2500]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def plot_curves(kinds: list[str], runs: Path, expected: Path, folder: Path) -> None:
    """The learning curves of RUNS/KIND/metrics.csv over the expected ones, EXPECTED/KIND.csv, to FOLDER/curves.png.

    The curves, averaged over every 50 steps, go to FOLDER/KIND.csv. Raises UserError if there are none.
    """
    runs_of = {kind: rows for kind in kinds if (rows := averages(read_rows(runs / kind / "metrics.csv")))}
    if not runs_of:
        raise UserError(f"{runs} has no metrics.csv of {' or '.join(kinds)} yet; train first, or pass --runs.")
    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(3.6 * len(runs_of), 3), dpi=90, layout="constrained")
    for axes, (kind, yours) in zip(figure.subplots(1, len(runs_of), squeeze=False)[0], runs_of.items()):
        expectation = read_rows(expected / f"{kind}.csv")
        for name, rows in (("expected", expectation), ("yours", yours)):
            axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], label=name)
        axes.set_title(f"{kind}, loss", fontsize=9)
        axes.set_xlabel("step")
        losses = torch.tensor([row["loss"] for row in expectation or yours])
        low, high = losses.quantile(torch.tensor([0.0, 0.95])).tolist()  # the first steps would hide the others
        axes.set_ylim(low - 0.1 * (high - low), high + 0.2 * (high - low))
        axes.legend(fontsize=8)
        write_rows(yours, folder / f"{kind}.csv")
    figure.savefig(folder / "curves.png")


def write_rows(rows: list[dict[str, float]], file: Path) -> None:
    with open(file, "w", newline="") as lines:
        writer = csv.DictWriter(lines, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)


def averages(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Rows of metrics, one a step, averaged over every 50 steps, each under its last step."""
    parts = [rows[i : i + CURVE_EVERY] for i in range(0, len(rows), CURVE_EVERY)]
    return [
        {name: part[-1][name] if name == "step" else sum(row[name] for row in part) / len(part) for name in part[0]}
        for part in parts
    ]


def curves_script(description: str, kinds: list[str], lesson: Path) -> None:
    """The command of both lessons that lays your learning curves over the expected ones."""
    parser = ArgumentParser(description)
    parser.add_argument("--runs", type=Path, default=ROOT / "output", help="the folder with the folders of the runs")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "output" / "curves", help="where the figure goes")
    args = parser.parse_args()
    plot_curves(kinds, args.runs, lesson / "figures", args.output_dir)
    print(f"{args.output_dir / 'curves.png'} is drawn.")
