"""Pictures that runs write: captioned grids of images, curves of metrics."""

import csv
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

INCHES_A_CELL = 0.7


def save_grid(images: Tensor, path: Path, columns: int, captions: list[str] | None = None, title: str = "") -> None:
    """Images (B, C, H, W) in [0, 1], C 1 or 3, as one PNG, row by row, each under its caption if there are any."""
    images = F.pad(images.float().cpu().clamp(0, 1), (1, 1, 1, 1), value=0.5)
    count, _, height, width = images.shape
    rows = -(-count // columns)
    gap = round(0.4 * height) if captions else 0
    canvas = torch.ones(rows * (height + gap), columns * width, 3)
    figure = Figure(
        figsize=(columns * INCHES_A_CELL, rows * INCHES_A_CELL * (1 + gap / height) + 0.4 * bool(title)), dpi=100
    )
    axes = figure.add_axes((0, 0, 1, 1 - 0.4 * bool(title) / figure.get_figheight()))
    axes.set_axis_off()
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap) + gap, (i % columns) * width
        canvas[top : top + height, left : left + width] = image.permute(1, 2, 0)
        if captions:
            axes.text(left + width / 2, top - gap / 2, captions[i], ha="center", va="center", fontsize=9)
    axes.imshow(canvas.numpy(), aspect="equal", interpolation="nearest")
    if title:
        axes.set_title(title, fontsize=9)
    figure.savefig(path)


def save_rows(rows: dict[str, Tensor], path: Path, captions: list[str] | None = None) -> None:
    """Rows of images (B, C, H, W) in [0, 1] as one PNG, each behind its name, captions above the columns."""
    cell, names, head = 0.45, 2.4, 0.3 if captions else 0.0  # inches
    width, height = names + cell * max(map(len, rows.values())), head + cell * len(rows)
    figure = Figure(figsize=(width, height), dpi=100)
    for i, (name, images) in enumerate(rows.items()):
        canvas = torch.cat(list(F.pad(images.float().cpu().clamp(0, 1), (1, 1, 1, 1), value=0.5)), dim=2)
        bottom = height - head - cell * (i + 1)
        axes = figure.add_axes((names / width, bottom / height, cell * len(images) / width, cell / height))
        axes.imshow(canvas.permute(1, 2, 0).expand(-1, -1, 3), interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        figure.text((names - 0.1) / width, (bottom + cell / 2) / height, name, ha="right", va="center", fontsize=8)
    for i, caption in enumerate(captions or []):
        x, y = names + cell * (i + 0.5), height - head / 2
        figure.text(x / width, y / height, caption, ha="center", va="center", fontsize=8)
    figure.savefig(path)


def save_matrix(matrix: Tensor, path: Path, rows: list[str] | Tensor, columns: list[str], title: str) -> None:
    """A matrix (R, C) as coloured cells with their values; the rows' labels are captions or images (R, C, H, W)."""
    values = matrix.float().cpu()
    figure = Figure(figsize=(1.5 + 0.45 * len(columns), 1.5 + 0.3 * len(values)), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.imshow(values, aspect="auto", cmap="viridis")
    for i, row in enumerate(values.tolist()):
        for j, value in enumerate(row):
            light = value < (values.min() + values.max()) / 2
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=6, color="white" if light else "black")
    axes.set_xticks(range(len(columns)), columns, rotation=60, fontsize=8)
    axes.set_yticks(range(len(values)), rows if isinstance(rows, list) else [""] * len(values), fontsize=8)
    if not isinstance(rows, list):
        for i, image in enumerate(rows.float().cpu()):
            thumbnail = axes.inset_axes((-1.6, i - 0.45, 1, 0.9), transform=axes.transData)
            thumbnail.imshow(image.permute(1, 2, 0).expand(-1, -1, 3), interpolation="nearest")
            thumbnail.set_axis_off()
    axes.set_title(title, fontsize=9)
    figure.savefig(path)


def plot_metrics(metrics_file: Path, path: Path, title: str) -> None:
    """The columns of a metrics.csv over its steps, a panel each: every step faintly, their running mean on top."""
    rows = read_rows(metrics_file)
    names = [name for name in rows[0] if name != "step"]
    steps = [row["step"] for row in rows]
    figure = Figure(figsize=(3.2 * len(names), 2.8), dpi=100, layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        values = torch.tensor([row[name] for row in rows])
        window = max(1, len(values) // 50)
        means = F.avg_pool1d(values[None], window, stride=1)[0]
        axes.plot(steps, values, alpha=0.3)
        axes.plot(steps[window - 1 :], means, color="C0")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step")
    figure.suptitle(title)
    figure.savefig(path)


def read_rows(file: Path) -> list[dict[str, float]]:
    """The rows of a CSV file of numbers; none if there is no such file."""
    if not file.exists():
        return []
    with open(file, newline="") as lines:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(lines)]
