"""The scripts run where things are missing: a home, a display, the internet, a folder that can be written; with spaces."""

import os
import shutil
import stat
import subprocess
import sys

import pytest
from scripts import ROOT, TINY

STRANGERS = ("Warning", "warning", "Matplotlib", "Traceback", "deprecated")


def run(root, name, *arguments, **environment):
    """A script in an environment of its own: no home, no display, no network for the hub."""
    bare = {"PATH": os.environ["PATH"], "HOME": "/proc/no-home", "HF_HUB_OFFLINE": "1", **environment}
    command = [sys.executable, str(root / name), *map(str, arguments)]
    return subprocess.run(command, cwd=root, env=bare, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def read_only_checkout(tmp_path_factory):
    root = tmp_path_factory.mktemp("a checkout") / "with spaces"
    for folder in ("lesson_08", "lesson_17", "utils"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("figures", "__pycache__"))
    paths = [root, *root.rglob("*")]
    for path in paths:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    before = sorted(path.relative_to(root) for path in root.rglob("*"))
    yield root
    assert sorted(path.relative_to(root) for path in root.rglob("*")) == before
    for path in paths:
        path.chmod(path.stat().st_mode | stat.S_IWUSR)


def test_the_lessons_run_from_a_read_only_checkout_without_a_home(read_only_checkout, tmp_path):
    out = tmp_path / "out put"
    no_cache = {"PYTHONDONTWRITEBYTECODE": "1"}  # the tests may run as a user whom no permission stops
    small = ("--num_training_steps", 2, "--hidden_dim", 8, *TINY)
    drawn = ("--pretrained", "mnist", "--prompts", "7", "--output_dir")
    for command in (
        ("lesson_08/train_dvae.py", *small, "--output_dir", out / "dvae"),
        ("lesson_08/generate_mnist.py", *drawn, out / "samples 8"),
        ("lesson_17/generate_mnist.py", *drawn, out / "samples 17"),
    ):
        result = run(read_only_checkout, *command, **no_cache)
        assert result.returncode == 0, result.stderr
        assert not any(word in result.stdout + result.stderr for word in STRANGERS), result.stderr
    assert all((out / name).exists() for name in ("dvae/dvae-2.pt", "samples 8/grid.png", "samples 17/grid.png"))
