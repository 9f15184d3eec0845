"""How long the scripts take to answer: seconds, and multiples of `python -c "import torch"`, medians of 5 runs."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils.checkpoints import newest_checkpoint
from utils.cli import ArgumentParser, positive_int, start

IMPORT_TORCH = "import torch"
SCRIPTS = [
    *(f"lesson_08/{name}.py" for name in ("train_dvae", "train_mnist", "generate_mnist", "evaluate_mnist")),
    *(f"lesson_17/{name}.py" for name in ("train_mnist", "generate_mnist", "edit_mnist", "evaluate_mnist")),
]
NEEDED = {"lesson_08": ["dvae", "dall_e"], "lesson_17": ["clip", "prior", "decoder"]}  # models, to draw


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--num_runs", type=positive_int, default=5, help="of each command")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        commands = {IMPORT_TORCH: (["-c", IMPORT_TORCH], 0)}  # name: arguments of python, exit code
        for script in SCRIPTS:
            commands[f"{script} --help"] = [script, "--help"], 0
            commands[f"{script} --sed 1"] = [script, "--sed", "1"], 2
        for lesson, kinds in NEEDED.items():
            name = f"{lesson}/generate_mnist.py --prompts seven"
            missing = [kind for kind in kinds if newest_checkpoint(ROOT / "output" / kind, kind) is None]
            if missing:
                print(f"{name} is left out: output/ has no {' and no '.join(missing)} yet.")
            else:
                commands[name] = [*name.split(), "--output_dir", folder], 0
        # Round by round, so that whatever else the machine does falls on all alike.
        rounds = [{name: seconds(*command) for name, command in commands.items()} for _ in range(args.num_runs)]
    medians = {name: statistics.median(times[name] for times in rounds) for name in commands}
    for name, median in medians.items():
        print(f"{name:<48} {median:6.2f} s {median / medians[IMPORT_TORCH]:6.2f} x")


def seconds(arguments: list[str], exit_code: int) -> float:
    """Wall time of python with these arguments, at the root; it has to end with `exit_code`."""
    start = time.perf_counter()
    result = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    elapsed = time.perf_counter() - start
    assert result.returncode == exit_code, result.stderr
    return elapsed


if __name__ == "__main__":
    start(main)
