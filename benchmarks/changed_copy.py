"""A copy of the lessons with some lines changed, for failures.py and trials.py."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from utils.cli import UserError

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
    `args`."""
    _, script, *flags = shlex.split(command)
    data = ["--data_dir", str(args.data_dir.resolve()), *(["--dataset", args.dataset] if args.dataset else [])]
    takes_data = [] if script.endswith("generate_mnist.py") else data
    subprocess.run([sys.executable, script, *flags, *takes_data], cwd=root, check=True)
