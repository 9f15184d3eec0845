"""A run's sample grids become an animation."""

from PIL import Image
from scripts import ROOT, refused, script, succeeds


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
