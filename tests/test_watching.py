"""Long runs that people watch: TensorBoard's files say what the CSV files do, and a run's sample grids become an animation."""

import sys

import pytest
from PIL import Image
from scripts import ROOT, TINY, read_image, refused, script, succeeds

from utils.tables import read_numbers

SHORT = ("lesson_08/train_dvae.py", *TINY, "--hidden_dim", 8, "--sample_every", 2, "--save_every", 2)


def test_tensorboard_has_the_metrics_and_the_grids(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = (*SHORT, "--tensorboard", "--output_dir", tmp_path)
    succeeds(*run, "--num_training_steps", 4)
    succeeds(*run, "--num_training_steps", 6, "--resume")
    board = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    for kind, file in (("training", "metrics.csv"), ("held_out", "held_out_metrics.csv")):
        rows = read_numbers(tmp_path / file)
        for name in rows[0].keys() - {"step"}:
            written = [(scalar.step, scalar.value) for scalar in board.Scalars(f"{kind}/{name}")]
            assert written == [(row["step"], pytest.approx(row[name], rel=1e-5)) for row in rows]
    assert [image.step for image in board.Images("samples")] == [2, 4, 6]
    grid = read_image(tmp_path / "sample-6.png")
    assert (board.Images("samples")[-1].height, board.Images("samples")[-1].width) == grid.shape[1:]


def test_without_tensorboard_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = script(*SHORT, "--tensorboard", "--num_training_steps", 2, "--output_dir", tmp_path)
    refused(result, "pip install tensorboard")


def test_a_run_becomes_an_animation(tmp_path):
    for step, color in ((100, "red"), (20, "blue"), (3, "black")):
        Image.new("RGB", (8, 4), color).save(tmp_path / f"sample-{step}.png")
    succeeds("utils/gif.py", tmp_path, "--milliseconds", 100)
    with Image.open(tmp_path / "samples.gif") as animation:
        shown = []
        for i in range(animation.n_frames):
            animation.seek(i)
            shown.append((animation.convert("RGB").getpixel((1, 1)), animation.info["duration"]))
    assert shown == [((0, 0, 0), 100), ((0, 0, 255), 100), ((255, 0, 0), 2500)]
    refused(script("utils/gif.py", tmp_path / "none"), "no sample grids")


def test_the_gif_on_the_page_has_many_steps_and_rests_on_the_last():
    with Image.open(ROOT / "lesson_08/figures/training.gif") as animation:
        assert animation.n_frames > 10
        animation.seek(animation.n_frames - 1)
        assert animation.info["duration"] == 2500
