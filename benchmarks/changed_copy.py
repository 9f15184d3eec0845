"""A copy of the lessons with some lines changed, for failures.py and trials.py."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from utils.cli import UserError
from utils.datasets import data_source

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("lesson_08", "lesson_17", "utils", "benchmarks")


def copy_changed(root: Path, changes: Iterable[tuple[str, str, str]]) -> None:
    """Copy the lessons into the folder `root`, and make `changes` there: a file, a line of it, and what takes its place.
    Raises UserError if the file does not have the line once."""
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("figures", "__pycache__"))
    for file, line, changed in changes:
        text = (root / file).read_text(encoding="utf-8")
        if text.count(line) != 1:
            raise UserError(f"{file} does not have the line {line!r} once.")
        (root / file).write_text(text.replace(line, changed), encoding="utf-8")


def run(root: Path, command: str, args) -> None:
    """A command of a page, "python script.py --flags", in `root`; but for a script that draws, with the data flags of
    `args`, unless it has its own. Raises UserError if it fails."""
    _, script, *flags = shlex.split(command)
    given = {**asdict(data_source(args)), "data_dir": args.data_dir.resolve()}
    data = [part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))]
    takes_data = [] if script.endswith("generate_mnist.py") else data
    if subprocess.run([sys.executable, script, *takes_data, *flags], cwd=root).returncode:
        raise UserError(f"This failed: {command}")
