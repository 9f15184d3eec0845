"""Nothing is lost: runs that are killed, stopped, crowded, starved of disk, or that diverge."""

import csv
import os
import random
import resource
import shutil
import signal
import time

import pytest
import torch
from line import fit_line
from scripts import TINY, Forked, refused, succeeds
from stages import STAGES, folder_of

from utils.checkpoints import load_checkpoint, newest_checkpoint
from utils.cli import UserError, start


def start_line(folder, hangup=signal.SIG_DFL, **settings):
    """fit_line in a process of its own, as a script runs it in a terminal, or with SIG_IGN under nohup."""
    before = signal.signal(signal.SIGHUP, hangup)  # these tests may themselves run under nohup
    try:
        return Forked(start, lambda: fit_line(folder, **settings))
    finally:
        signal.signal(signal.SIGHUP, before)


def ended_by(result, reason):
    """A run that had begun and could not go on: its last line says why."""
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert reason in result.stderr.splitlines()[-1], result.stderr


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.ended().stderr
        assert time.monotonic() < deadline
        time.sleep(0.005)


def same_tensors(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_tensors(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_tensors, a, b))
    return a == b


def assert_same_run(folder, whole, kind, steps):
    """Same bits in weights, averages and optimizers; the same rows of metrics, none missing and none twice."""
    ours, theirs = (load_checkpoint(path / f"{kind}-{steps}.pt", kind) for path in (folder, whole))
    for part in ("model", "ema", "optimizers"):
        assert same_tensors(ours[part], theirs[part]), part
    for name in ("metrics.csv", "held_out_metrics.csv"):
        assert (folder / name).read_text() == (whole / name).read_text()
    with open(folder / "metrics.csv") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, steps + 1))


@pytest.fixture(scope="module")
def whole_line(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    fit_line(folder, total=40)
    return folder


@pytest.mark.parametrize("seed", range(2))
def test_a_run_killed_at_any_moments_ends_with_the_same_bits(tmp_path, seed):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fit_line(whole, total=300, sample_every=100)
    rng = random.Random(seed)
    for _ in range(3):  # at most 50 steps each
        process = start_line(killed, total=300, seconds=0.01, sample_every=100, resume=True)
        wait_for((killed / ".running").exists, process)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.wait()
    fit_line(killed, total=300, sample_every=100, resume=True)
    assert_same_run(killed, whole, "line", 300)


def test_a_run_killed_while_it_writes_a_checkpoint(whole_line, tmp_path):
    save = torch.save

    def half(checkpoint, file):
        if checkpoint["step"] == 14:
            file.write(b"half of a checkpoint")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        save(checkpoint, file)

    def killed():
        torch.save = half
        fit_line(tmp_path, total=40)

    assert Forked(killed).ended().returncode == -signal.SIGKILL
    assert not (tmp_path / "line-14.pt").exists() and list(tmp_path.glob(".*.tmp"))
    fit_line(tmp_path, total=40, resume=True)
    assert not list(tmp_path.glob(".*.tmp"))
    assert_same_run(tmp_path, whole_line, "line", 40)


@pytest.mark.parametrize("kind", STAGES)
def test_every_stage_survives_a_kill(kind, earlier_stages, tmp_path):
    def command(name):
        steps = ("--num_training_steps", 12, "--save_every", 4, "--sample_every", 9, "--ema_decay", 0.9)
        return [*STAGES[kind], *TINY, *steps, *earlier_stages.get(kind, []), "--output_dir", tmp_path / name]

    killed, whole = (folder_of(kind, tmp_path / name) for name in ("killed", "whole"))
    succeeds(*command("whole"))
    process = Forked(succeeds, *command("killed"))
    wait_for((killed / f"{kind}-4.pt").exists, process)
    time.sleep(random.Random(kind).uniform(0, 0.3))
    process.kill()
    process.wait()
    succeeds(*command("killed"), "--resume")
    assert_same_run(killed, whole, kind, 12)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_run_after_its_step_and_saves(number, whole_line, tmp_path):
    process = start_line(tmp_path, total=40, seconds=0.05)
    wait_for((tmp_path / "line-7.pt").exists, process)
    process.send_signal(number)
    result = process.ended()
    assert result.returncode == 128 + number and "--resume" in result.stdout and "Traceback" not in result.stderr
    stopped_at = load_checkpoint(newest_checkpoint(tmp_path, "line"), "line")["step"]
    assert 7 <= stopped_at < 40 and f"Stopped at step {stopped_at}" in result.stdout
    fit_line(tmp_path, total=40, resume=True)
    assert_same_run(tmp_path, whole_line, "line", 40)


def test_under_nohup_a_run_outlives_its_terminal(tmp_path):
    process = start_line(tmp_path, signal.SIG_IGN, total=12, seconds=0.05)
    wait_for((tmp_path / "line-7.pt").exists, process)
    process.send_signal(signal.SIGHUP)
    assert process.ended().returncode == 0 and (tmp_path / "line-12.pt").exists()


def test_a_second_signal_stops_at_once(tmp_path):
    process = start_line(tmp_path, total=3, seconds=60, at_step=lambda step, run: (tmp_path / "begun").touch())
    wait_for((tmp_path / "begun").exists, process)
    process.send_signal(signal.SIGINT)
    time.sleep(1.2)
    assert process.poll() is None  # in the middle of its first step
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 130


def test_a_folder_takes_one_run_at_a_time(tmp_path):
    first = start_line(tmp_path, total=1000, seconds=0.1)
    wait_for((tmp_path / "metrics.csv").exists, first)
    second = start_line(tmp_path, total=2).ended()
    refused(second, f"process {first.pid}")
    first.kill()
    first.wait()
    fit_line(tmp_path, total=2)
    assert not (tmp_path / ".running").exists()


def test_a_disk_that_is_full_leaves_the_earlier_checkpoints_whole(tmp_path):
    fit_line(tmp_path, total=7)

    def limit(step, run):
        if step == 10:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    process = start_line(tmp_path, total=40, resume=True, at_step=limit)
    ended_by(process.ended(), "line-7.pt")
    assert load_checkpoint(tmp_path / "line-7.pt", "line")["step"] == 7
    assert not list(tmp_path.glob(".*.tmp"))
    fit_line(tmp_path, total=40, resume=True)


def test_a_folder_that_vanishes(tmp_path):
    folder = tmp_path / "run"
    process = start_line(folder, total=1000, seconds=0.01)
    wait_for((folder / "line-7.pt").exists, process)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    ended_by(process.ended(), "cannot be written")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        fit_line(tmp_path / "file" / "run")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, bad):
    def poison(step, run):
        if step == 9:
            torch.nn.init.constant_(run.model.layer.weight, bad)

    with pytest.raises(UserError, match=r"at step 10, with a learning rate of 0\.0"):
        fit_line(tmp_path, total=40, at_step=poison)
    assert [path.name for path in tmp_path.glob("*.pt")] == ["line-7.pt"]
    with open(tmp_path / "metrics.csv") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, 10))
