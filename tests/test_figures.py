"""The pages' figures are what their commands draw with the included weights: none is of an older model or of older code."""

import pytest
from scripts import ROOT, read_image, succeeds

NEEDED = "lesson_08.complete_mnist lesson_17.edit_mnist lesson_17.upsample_mnist utils.datasets.colored_mnist utils.gif"
for needed in NEEDED.split():
    pytest.importorskip(needed, reason=f"no {needed} here")

MOST = 0.05  # of the pixels may differ: on another CPU, rounding may change a token, and with it all that follows
EACH = ("--prompts", "0", "one", "2", "three", "4", "five", "6", "seven", "8", "nine", "--num_samples", 8)
ANYWHERE = {
    "lesson_08/samples": ("lesson_08/generate_mnist.py", *EACH),
    "lesson_17/samples": ("lesson_17/generate_mnist.py", *EACH),
    "lesson_08/sampling": ("benchmarks/figures_08.py", "sampling", "--dataset", "mnist_5k"),
    "lesson_17/guidance": ("benchmarks/figures_17.py", "guidance", "--dataset", "mnist_5k"),
}
WITH_MNIST = {
    "lesson_08/completion": (
        "lesson_08/complete_mnist.py",
        "--rows",
        3,
        "--prompts",
        "3",
        "8",
        "five",
        *EACH[-2:],
    ),
    **{f"lesson_08/{name}": ("benchmarks/figures_08.py", name) for name in ("codes", "codebook", "masks")},
    **{
        f"lesson_17/{name}": ("benchmarks/figures_17.py", name) for name in ("embeddings", "noise", "schedule", "steps")
    },
    **{
        f"lesson_17/{mode}": ("lesson_17/edit_mnist.py", mode)
        for mode in ("variations", "interpolation", "text_diff", "components", "inpaint")
    },
}
needs_mnist = pytest.mark.skipif(not (ROOT / "data/MNIST/raw").is_dir(), reason="no MNIST in data/")


def difference(figure, command, folder):
    """The fraction of pixels in which a figure and what its command draws differ."""
    succeeds(*command, "--pretrained", "mnist", "--output_dir", folder)
    lesson, name = figure.split("/")
    drawn = next(folder / f"{one}.png" for one in (name, "grid") if (folder / f"{one}.png").exists())
    before, after = (read_image(file).int() for file in (ROOT / lesson / f"figures/{name}.png", drawn))
    assert before.shape == after.shape
    return ((before - after).abs() > 32).float().mean()


@pytest.mark.parametrize("figure", ANYWHERE)
def test_a_figure_is_not_stale(figure, tmp_path):
    assert difference(figure, ANYWHERE[figure], tmp_path) < MOST


@needs_mnist
@pytest.mark.parametrize("figure", WITH_MNIST)
def test_a_figure_of_test_images_is_not_stale(figure, tmp_path):
    assert difference(figure, WITH_MNIST[figure], tmp_path) < MOST


def test_another_model_would_be_noticed(tmp_path):
    other = (*ANYWHERE["lesson_08/samples"], "--seed", 1000)
    assert difference("lesson_08/samples", other, tmp_path) > 2 * MOST
