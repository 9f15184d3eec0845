"""Seconds that each of the five trainings takes for some steps, quiet and beside a process that keeps one core busy.

A run of 2 N + 1 steps writes checkpoints after N and 2 N; measured are the N steps between them, and the second checkpoint.
"""

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils.checkpoints import checkpoints_in
from utils.cli import ArgumentParser, positive_int, start

SCRIPTS = {
    "dvae": ["lesson_08/train_dvae.py"],
    "dall_e": ["lesson_08/train_mnist.py"],
    "clip": ["lesson_17/train_clip.py"],
    "prior": ["lesson_17/train_prior.py"],
    "decoder": ["lesson_17/train_decoder.py"],
}
NEEDED = {"dall_e": "dvae", "prior": "clip", "decoder": "clip"}  # to learn from


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--num_steps", type=positive_int, default=60, help="that are measured")
    parser.add_argument("--num_runs", type=positive_int, default=3, help="of which the fastest counts")
    parser.add_argument("--stages", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS), help="the trainings")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = {
            need: train(need, 1, Path(folder) / need)[1] for need in {NEEDED.get(s) for s in args.stages} - {None}
        }
        print("           quiet, s   beside a busy process, s   ratio")
        for stage in args.stages:
            need = NEEDED.get(stage)
            flags = [f"--{need}_checkpoint", str(models[need])] if need else []
            quiet, beside = [], []
            for _ in range(args.num_runs):
                quiet.append(seconds(stage, args.num_steps, flags))
                with busy_core():
                    beside.append(seconds(stage, args.num_steps, flags))
            print(f"{stage:8} {min(quiet):10.2f} {min(beside):26.2f} {min(beside) / min(quiet):7.2f}", flush=True)


def seconds(stage: str, num_steps: int, flags: list[str]) -> float:
    """Of `num_steps` steps in the middle of a run."""
    with tempfile.TemporaryDirectory() as folder:
        files = train(stage, 2 * num_steps + 1, Path(folder), "--save_every", str(num_steps), *flags)
        return files[2 * num_steps].stat().st_mtime - files[num_steps].stat().st_mtime


def train(stage: str, num_steps: int, folder: Path, *flags: str) -> dict[int, Path]:
    """The checkpoints of a run by their steps; it draws samples after the last step only."""
    flags = ("--num_training_steps", str(num_steps), "--sample_every", "1000000", "--output_dir", str(folder), *flags)
    command = [sys.executable, *SCRIPTS[stage], "--preset", "small", "--dataset", "mnist_5k", *flags]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return checkpoints_in(folder / stage if "lesson_17" in SCRIPTS[stage][0] else folder, stage)


@contextlib.contextmanager
def busy_core():
    """A process that computes as long as it may."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    start(main)
