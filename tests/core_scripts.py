"""Runs the five core scripts of a checkout as small as they go, one after another in this process; see rooms.py."""

import os
import runpy
import sys
from pathlib import Path

TINY = "--dataset mnist_5k --batch_size 4 --num_training_steps 1 --mixed_precision no --num_threads 1".split()
COMMANDS = {
    "lesson_08/train_dvae.py": [*TINY, "--hidden_dim", "8"],
    "lesson_08/train_mnist.py": [*TINY, "--dim", "16", "--num_layers", "1"],
    "lesson_08/generate_mnist.py": ["--prompts", "seven"],
    "lesson_17/train_mnist.py": [*TINY, "--image_width", "16", "--dim", "16", "--width", "8", "--head_dim", "8"],
    "lesson_17/generate_mnist.py": ["--prompts", "seven", "--sampling_steps", "1"],
}


DRAW = ["--pretrained", "mnist"]  # where nothing of the model has been trained
QUICK = ["lesson_08/train_dvae.py", "lesson_08/generate_mnist.py", "lesson_17/generate_mnist.py"]


def run_core_scripts(root, scripts=tuple(COMMANDS)):
    """Run them, or some, in the checkout `root`, whose modules take the place of those that are loaded; raises what they raise."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("utils", "lesson_08", "lesson_17")]:
        del sys.modules[name]
    sys.path.insert(0, str(root))
    os.chdir(root)
    for script in scripts:
        arguments = [*COMMANDS[script], *DRAW * (len(scripts) < len(COMMANDS) and "generate" in script)]
        sys.argv = [script, *arguments]
        runpy.run_path(str(root / script), run_name="__main__")
    for file in ("output/dall_e_samples/grid.png", "output/dall_e_2_samples/grid.png"):
        assert (root / file).exists(), file


if __name__ == "__main__":
    run_core_scripts(Path(sys.argv[1]).resolve())
