"""Lay the learning curves of your runs over the expected ones, those of the committed defaults. Writes to output/curves."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import torch

from utils.cli import ArgumentParser, UserError, new_folder, start
from utils.tables import read_numbers, write_rows

NAMES = {"lesson_08": ["dvae", "dall_e"], "lesson_17": ["clip", "prior", "decoder"]}
CURVE_EVERY = 50  # steps that a point of a curve averages


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("lesson", choices=list(NAMES))
    parser.add_argument("--runs", type=Path, default=ROOT / "output", help="the folder with the folders of the runs")
    parser.add_argument("--seeds", type=Path, nargs="*", default=[], help="such folders of other seeds, for a band")
    parser.add_argument(
        "--output_dir", type=new_folder, default=ROOT / "output" / "curves", help="where the figure goes"
    )
    args = parser.parse_args()
    names = [name for name in NAMES[args.lesson] if (args.runs / name / "metrics.csv").exists()]
    if not names:
        raise UserError(
            f"{args.runs} has no metrics.csv of {' or '.join(NAMES[args.lesson])} yet; train first, or pass --runs."
        )
    args.output_dir.mkdir(parents=True, exist_ok=True)
    plot_curves(names, args.runs, ROOT / args.lesson / "figures", args.output_dir, args.seeds)
    print(f"{args.output_dir / 'curves.png'} is drawn.")


def plot_curves(names: list[str], runs: Path, expected: Path, folder: Path, seeds: list[Path]) -> None:
    """The losses of RUNS/NAME/metrics.csv over those of EXPECTED/NAME.csv to FOLDER/curves.png, and averaged to
    FOLDER/NAME.csv, with the lowest and the highest of these runs and the `seeds`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(names), 3), dpi=90, layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        yours, *others = (averages(read_numbers(run / name / "metrics.csv")) for run in (runs, *seeds))
        for row, *same_step in zip(yours, *others):
            losses = [one["loss"] for one in (row, *same_step)]
            row |= {"loss_low": min(losses), "loss_high": max(losses)}
        expectation = read_numbers(expected / f"{name}.csv")
        for label, rows in (("expected", expectation), ("yours", yours)):
            axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], label=label)
        step, low, high = ([row[key] for row in expectation] for key in ("step", "loss_low", "loss_high"))
        axes.fill_between(step, low, high, alpha=0.3, label="expected, several seeds")
        axes.set_title(f"{name}, loss", fontsize=9)
        axes.set_xlabel("step")
        losses = torch.tensor([row["loss"] for row in [*expectation, *yours]])
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


if __name__ == "__main__":
    start(main)
