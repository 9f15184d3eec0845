"""TensorBoard's files say what a run's CSV files and sample grids do, of a run that is finished or still going on."""

import contextlib
import shutil
import sys
import time

import pytest
from PIL import Image
from scripts import Forked, refused, script, succeeds

from utils.board import Board
from utils.tables import read_numbers, write_rows

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def write_run(folder, first, last):
    """What steps first .. last of a run write, with grids and held-out metrics at every second."""
    for step in range(first, last + 1):
        write_rows(folder / "metrics.csv", [{"step": step, "loss": 1 / step, "grad_norm": 2.0 * step}], append=True)
        if step % 2 == 0:
            write_rows(folder / "held_out_metrics.csv", [{"step": step, "mse": 0.5 / step}], append=True)
            Image.new("RGB", (8, step), "red").save(folder / f"sample-{step}.png")


def assert_shown(folder):
    board = event_accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    for kind, file in (("training", "metrics.csv"), ("held_out", "held_out_metrics.csv")):
        rows = read_numbers(folder / file)
        for name in rows[0].keys() - {"step"}:
            written = [(scalar.step, scalar.value) for scalar in board.Scalars(f"{kind}/{name}")]
            assert written == [(row["step"], pytest.approx(row[name], rel=1e-5)) for row in rows]
    steps = sorted(int(path.stem.split("-")[1]) for path in folder.glob("sample-*.png"))
    assert [(image.step, image.height) for image in board.Images("samples")] == [(step, step) for step in steps]


def test_a_finished_run_is_shown_again_from_the_beginning(tmp_path):
    write_run(tmp_path, 1, 4)
    succeeds("utils/board.py", tmp_path)
    assert_shown(tmp_path)
    write_run(tmp_path, 5, 6)
    succeeds("utils/board.py", tmp_path)
    assert_shown(tmp_path)


def test_a_run_is_followed(tmp_path):
    write_run(tmp_path, 1, 2)
    process = Forked(script, "utils/board.py", tmp_path, "--follow", "--seconds", 0.1)
    deadline = time.monotonic() + 60
    while not (tmp_path / "tensorboard").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    write_run(tmp_path, 3, 6)
    while time.monotonic() < deadline:
        time.sleep(0.1)
        with contextlib.suppress(AssertionError, KeyError):  # until all of it is there
            assert_shown(tmp_path)
            break
    assert process.poll() is None
    process.kill()
    process.wait()
    assert_shown(tmp_path)


def test_without_tensorboard_or_a_run_it_says_so(tmp_path, monkeypatch):
    refused(script("utils/board.py", tmp_path), "no metrics.csv")
    write_run(tmp_path, 1, 2)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    refused(script("utils/board.py", tmp_path), "pip install tensorboard")
    shutil.rmtree(tmp_path)


def test_half_a_grid_is_shown_when_it_is_whole(tmp_path):
    write_run(tmp_path, 1, 4)
    grid = tmp_path / "sample-4.png"
    whole = grid.read_bytes()
    grid.write_bytes(whole[:40])
    board = Board(tmp_path)
    board.write_what_is_new()
    grid.write_bytes(whole)
    board.write_what_is_new()
    assert_shown(tmp_path)


def test_a_run_that_begins_anew_is_shown_anew(tmp_path):
    write_run(tmp_path, 1, 6)
    board = Board(tmp_path)
    board.write_what_is_new()
    for file in [*tmp_path.glob("*.csv"), *tmp_path.glob("*.png")]:
        file.unlink()
    write_run(tmp_path, 1, 2)
    board.write_what_is_new()
    written = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"), purge_orphaned_data=False).Reload()
    assert [image.step for image in written.Images("samples")] == [2, 4, 6, 2]
    assert [scalar.step for scalar in written.Scalars("held_out/mse")] == [2, 4, 6, 2]
