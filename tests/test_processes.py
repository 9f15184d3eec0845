"""Two processes do what one does: the same losses, checkpoints that either goes on from, one death ends both."""

import csv
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from scripts import ROOT, TINY, succeeds
from stages import STAGES, folder_of

from utils.checkpoints import load_checkpoint, newest_checkpoint

STEPS = 6


def train(kind, folder, earlier, *flags, **processes):
    steps = ("--num_training_steps", STEPS, "--save_every", 3, "--ema_decay", 0.9, *flags)
    exact = (
        ("--token_corruption", 0) if kind == "dall_e" else ()
    )  # a corrupted token comes from the process's own share
    return succeeds(*STAGES[kind], *TINY, *steps, *exact, *earlier.get(kind, []), "--output_dir", folder, **processes)


def losses(folder):
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1))
    return [float(row["loss"]) for row in rows]


def assert_alike(folder, other, kind):
    assert losses(folder) == pytest.approx(losses(other), rel=1e-3)
    ours, theirs = (load_checkpoint(path / f"{kind}-{STEPS}.pt", kind)["model"] for path in (folder, other))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-2, atol=1e-3)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, earlier_stages):
    """Runs of one process, {kind: folder}, made when they are asked for."""
    folders = {}

    def run(kind):
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind)
            train(kind, folders[kind], earlier_stages)
        return folder_of(kind, folders[kind])

    return run


@pytest.mark.parametrize("kind", STAGES)
def test_two_processes_have_the_losses_of_one(kind, alone, earlier_stages, tmp_path):
    result = train(kind, tmp_path, earlier_stages, num_processes=2)
    assert "on 2 x cpu" in result.stdout and result.stdout.count("Training") == 1
    assert_alike(folder_of(kind, tmp_path), alone(kind), kind)


@pytest.mark.parametrize("kind", ["prior"])
@pytest.mark.parametrize("first, then", [(1, 2), (2, 1)])
def test_a_run_goes_on_with_other_processes(kind, first, then, alone, earlier_stages, tmp_path):
    train(kind, tmp_path / "first", earlier_stages, num_processes=first)
    begun, folder = folder_of(kind, tmp_path / "first"), folder_of(kind, tmp_path / "then")
    folder.mkdir(parents=True)
    for name in (f"{kind}-3.pt", "metrics.csv", "held_out_metrics.csv"):
        shutil.copy(begun / name, folder)
    train(kind, tmp_path / "then", earlier_stages, "--resume", num_processes=then)
    assert_alike(folder, alone(kind), kind)


def test_a_signal_stops_all_processes_after_the_same_step(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    process = subprocess.Popen(
        [*launcher, ROOT / "tests/line.py", tmp_path, "total=10000", "seconds=0.01"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "line-7.pt").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    stdout, _ = process.communicate(timeout=60)
    step = load_checkpoint(newest_checkpoint(tmp_path, "line"), "line")["step"]
    assert step % 10 == 0 and f"Stopped at step {step}" in stdout
    assert not (tmp_path / ".running").exists()


def test_a_process_that_dies_ends_the_run(tmp_path):
    program = """
import os, sys
from accelerate import PartialState
state = PartialState(cpu=True)
from line import fit_line
def die(step):
    if step == 3 and state.process_index == 1:
        os._exit(7)
fit_line(sys.argv[1], total=1000, seconds=0.01, at_step=die)
"""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--no_python", sys.executable]
    start = time.monotonic()
    result = subprocess.run(
        [*launcher, "-c", program, tmp_path], cwd=ROOT / "tests", capture_output=True, text=True, timeout=120
    )
    assert result.returncode != 0 and "exitcode" in result.stderr and time.monotonic() - start < 60
