"""Completion: the upper rows of an image are kept, and the rest follows them, the prompt and the seed."""

import torch
from scripts import read_image, refused, script, succeeds

from lesson_08.complete_mnist import choose_images, upper_rows
from lesson_08.pipeline import Pipeline

COMPLETE = ("lesson_08/complete_mnist.py", "--pretrained", "mnist", "--dataset", "mnist_5k")


def test_the_tokens_of_the_upper_rows_are_kept_and_know_nothing_of_the_lower(digits):
    pipeline, images = Pipeline.load(pretrained="mnist"), digits[1].images(slice(0, 500, 100))
    other = images.clone()
    other[:, :, 12:] = 1 - other[:, :, 12:]
    (kept, prefix), (_, of_other) = (upper_rows(pipeline, x, 3) for x in (images, other))
    assert prefix.shape == (5, 3 * 7) and torch.equal(prefix, of_other)
    assert torch.equal(kept[:, :, :12], images[:, :, :12]) and (kept[:, :, 12:] == 0.5).all()
    drawn = pipeline.draw(["3"] * 5, list(range(5)), prefix=prefix)
    upper, _ = upper_rows(pipeline, drawn, 3)
    assert (upper[:, :, :8] - images[:, :, :8]).square().mean() < 0.03
    whole = pipeline.draw(["3"] * 5, list(range(5)))
    assert (whole[:, :, :8] - images[:, :, :8]).square().mean() > 0.03
    of_others = pipeline.draw(["3"] * 5, list(range(5)), prefix=prefix.roll(1, dims=0))
    assert ((of_others - drawn)[:, :, 16:].abs().amax(dim=(1, 2, 3)) > 0.5).all()  # what is below follows what is above


def test_the_image_is_one_of_the_prompt(digits):
    chosen = choose_images(digits[1], ["3", "eight", "3"], seed=0)
    of_three = digits[1].images(digits[1].index_of("3"))
    assert all((of_three == image).flatten(1).all(dim=1).any() for image in chosen[[0, 2]])
    assert not torch.equal(chosen[0], chosen[2])
    assert not torch.equal(chosen, choose_images(digits[1], ["3", "eight", "3"], seed=1))


def test_help_explains_each_flag():
    assert "--rows" in succeeds("lesson_08/complete_mnist.py", "--help").stdout


def test_the_script_writes_images_and_a_grid(tmp_path):
    how = ("--prompts", "3", "eight", "--num_samples", 2, "--output_dir", tmp_path)
    succeeds(*COMPLETE, *how, "--rows", 3)
    assert len(list(tmp_path.glob("0*.png"))) == 4
    before = read_image(tmp_path / "0000-3.png")
    succeeds(*COMPLETE, *how, "--rows", 5)
    assert not torch.equal(before, read_image(tmp_path / "0000-3.png"))
    before = read_image(tmp_path / "0000-3.png")
    succeeds(*COMPLETE, *how, "--rows", 5, "--top_k", 1)
    assert not torch.equal(before, read_image(tmp_path / "0000-3.png"))
    before = read_image(tmp_path / "0000-3.png")
    succeeds(*COMPLETE, *how, "--rows", 5, "--top_k", 1, "--seed", 9)
    assert not torch.equal(before, read_image(tmp_path / "0000-3.png"))  # another image of a three
    assert (tmp_path / "grid.png").exists()
    refused(script(*COMPLETE, *how, "--rows", 7), "leaves nothing to draw")
