"""The rooms around the core: which files each is, its tests included, and a copy of the repository without some of them.

`python tests/rooms.py` takes each away in turn, and at last all of them, and runs the core's scripts and all of its tests; that
takes an hour. tests/test_rooms.py does what fits into half a minute.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {
    "own images": ["utils/datasets/own_images.py", "tests/test_folders.py", "tests/test_held_out.py"],
    "colored digits": ["utils/datasets/colored_mnist.py", "tests/test_colored_mnist.py"],
    "evaluation": [
        "utils/scoring.py",
        "utils/scorer.safetensors",
        "lesson_08/evaluate_mnist.py",
        "lesson_17/evaluate_mnist.py",
        "benchmarks",
        "tests/test_scoring.py",
        "tests/test_evaluating.py",
        "tests/test_figures.py",
    ],
    "edits": ["lesson_17/edit_mnist.py", "tests/test_edits.py"],
    "up-sampler": [
        "lesson_17/diffusion_upsampler.py",
        "lesson_17/train_upsampler.py",
        "lesson_17/upsample_mnist.py",
        "tests/test_upsampler.py",
    ],
    "choosing": ["lesson_17/choose_mnist.py", "tests/test_choosing.py"],
    "completion": ["lesson_08/complete_mnist.py", "tests/test_completion.py"],
    "pretrained CLIP": ["lesson_17/pretrained_clip.py", "tests/test_pretrained_clip.py"],
    "playgrounds": [
        "utils/playground.py",
        "lesson_08/playground.py",
        "lesson_17/playground.py",
        "requirements-playground.txt",
        "tests/test_playground.py",
        "tests/browser.py",
    ],
    "notebooks": ["lesson_08/lesson.ipynb", "lesson_17/lesson.ipynb", "tests/test_notebooks.py"],
    "TensorBoard": ["utils/board.py", "tests/test_board.py"],
    "export": ["utils/export.py", "tests/test_export.py"],
    "animations": ["utils/gif.py", "tests/test_gif.py"],
}
# About the whole house, and so not the core's.
OF_THE_HOUSE = [
    "tests/test_readmes.py",
    "tests/test_exercises_17.py",
    "tests/test_exercises_08.py",
    "tests/test_rooms.py",
    "tests/mistakes.py",
    "tests/test_mistakes.py",
]


def copy_without(rooms, folder):
    """The repository in a new folder, without the files of some rooms and without the tests of the whole house."""
    ignored = shutil.ignore_patterns(".git", ".venv*", "output", "data", "*cache*")
    shutil.copytree(ROOT, folder, ignore=ignored)
    (folder / "output").mkdir()
    for file in sum((ROOMS[room] for room in rooms), []) + OF_THE_HOUSE:
        path = folder / file
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def run_core_tests(folder, *flags):
    """The tests that a copy has."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def main():
    for rooms in [*([room] for room in ROOMS), list(ROOMS)]:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "copy"
            copy_without(rooms, copy)
            scripts = [sys.executable, "tests/core_scripts.py", "."]
            results = [subprocess.run(scripts, cwd=copy, capture_output=True, text=True), run_core_tests(copy)]
            print(", ".join(rooms), [result.returncode for result in results], flush=True)
            for result in results:
                if result.returncode:
                    sys.exit(result.stdout + result.stderr)


if __name__ == "__main__":
    main()
