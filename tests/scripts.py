"""Runs the scripts as a reader does, as processes of their own."""

import subprocess
import sys
from pathlib import Path

from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from utils.checkpoints import save_checkpoint
from utils.scoring import Scorer

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--preset", "cpu", "--dataset", "mnist_5k", "--batch_size", "8", "--mixed_precision", "no"]


def script(name, *arguments, cwd=ROOT, num_processes=1):
    several = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(num_processes)]
    launcher = several if num_processes > 1 else []
    command = [sys.executable, *launcher, str(ROOT / name), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def succeeds(*arguments, **kwargs):
    result = script(*arguments, **kwargs)
    assert result.returncode == 0, result.stderr
    return result


def refused(result, reason):
    """One sentence on stderr with the reason in it, and exit code 2."""
    assert result.returncode == 2 and reason in result.stderr, result.stderr
    assert "Traceback" not in result.stderr and len(result.stderr.strip().splitlines()) == 1


def read_image(path):
    return pil_to_tensor(Image.open(path))


def put_untrained_scorer(folder):
    """A scorer that knows nothing, where an evaluation of the 5,000 digits would keep its own."""
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder / "scorer-4500x1.pt", {"kind": "scorer", "model": Scorer(1).state_dict()})
