"""Runs the scripts as a reader does: in this process, which is quick, or in processes of their own."""

import contextlib
import io
import os
import runpy
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms.functional import pil_to_tensor

from utils.scoring import Scorer

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--preset", "cpu", "--dataset", "mnist_5k", "--batch_size", "8", "--mixed_precision", "no"]


def script(name, *arguments, cwd=ROOT, num_processes=1, apart=False):
    """Run a script, several processes of it under torchrun; apart: as a process of its own, not in this one."""
    if num_processes == 1 and not apart:
        return called(ROOT / name, [str(argument) for argument in arguments], cwd)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    command = [sys.executable, *(launcher if num_processes > 1 else []), str(ROOT / name), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def called(path, arguments, cwd):
    """A script run as __main__ by this process: what it was called with, its exit code, and what it printed."""
    stdout, stderr, returncode = io.StringIO(), io.StringIO(), 0
    before = sys.argv, sys.path[:], os.getcwd()
    for module in [m for m in sys.modules if m.endswith("_mnist") or m == "train_dvae"]:  # both lessons have some
        del sys.modules[module]
    try:
        sys.argv, sys.path[:0] = [str(path), *arguments], [str(path.parent)]
        os.chdir(cwd)
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            runpy.run_path(str(path), run_name="__main__")
    except SystemExit as stop:
        returncode = stop.code or 0
    finally:
        sys.argv, sys.path[:] = before[:2]
        os.chdir(before[2])
        torch.set_num_threads(1)
    return subprocess.CompletedProcess([str(path), *arguments], returncode, stdout.getvalue(), stderr.getvalue())


def succeeds(*arguments, **kwargs):
    result = script(*arguments, **kwargs)
    assert result.returncode == 0, result.stderr
    return result


def refused(result, reason):
    """One sentence on stderr with the reason in it, and exit code 2."""
    assert result.returncode == 2 and reason in result.stderr, result.stderr
    assert "Traceback" not in result.stderr and len(result.stderr.strip().splitlines()) == 1, result.stderr


def read_image(path):
    return pil_to_tensor(Image.open(path))


def files_of(folder):
    """The names of the files that a run leaves, but for its lock."""
    return {path.name for path in folder.iterdir()} - {".lock", ".running"}


def put_untrained_scorer(folder):
    """A scorer that knows nothing, where an evaluation of the 5,000 digits would keep its own."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(Scorer(1).state_dict(), folder / "scorer-4500x1.safetensors")
