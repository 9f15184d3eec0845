"""MNIST in color: inks, strokes, captions, and the pairs that no training image has."""

import pytest
import torch

from utils.cli import UserError
from utils.data import DataSource
from utils.datasets import LOADERS, load_images
from utils.datasets.colored_mnist import INKS, NEVER_SEEN, asked_for, captions_in_color, paint
from utils.datasets.mnist import load_mnist_5k


def last_captions(images):
    """The last caption of each image, which says the most of it."""
    return [images.captions[max(ids)] for ids in images.caption_ids.tolist()]


@pytest.fixture(scope="module")
def in_color(tmp_path_factory):
    """The embedded digits, painted, as MNIST is."""
    gray = [(images.pixels[:, 0], images.caption_ids[:, 0]) for images in load_mnist_5k(DataSource(), None)]
    return gray, paint(gray)


def test_digits_in_color_show_what_their_captions_say(in_color):
    gray, painted = in_color
    for (pixels, labels), images in zip(gray, painted):
        assert torch.equal(images.pixels.amax(dim=1), pixels)  # each ink has a channel at its brightest
        for i, caption in enumerate(last_captions(images)[:500]):
            asked = asked_for(caption)
            assert asked["digit"] == labels[i]
            ink = torch.tensor(list(INKS.values())[asked["ink"]]) / 255
            torch.testing.assert_close(
                images.pixels[i].float(), ink[:, None, None] * pixels[i].float(), rtol=0, atol=0.5
            )


def test_a_third_of_the_training_images_is_thin_and_a_third_thick(in_color):
    (pixels, labels), _ = in_color[0]
    amounts = pixels.flatten(1).sum(dim=1, dtype=torch.float32)
    stroke = torch.tensor([asked_for(caption)["stroke"] for caption in last_captions(in_color[1][0])])
    assert torch.bincount(stroke + 1).tolist() == pytest.approx([1500] * 3, abs=20)
    for digit in range(10):
        of_digit = labels == digit
        thin, open_, thick = (amounts[of_digit & (stroke == s)] for s in (0, -1, 1))
        assert thin.max() <= open_.min() and open_.max() <= thick.min()


def test_pairs_never_seen_are_one_in_five_and_only_in_the_test_images(in_color):
    assert len(NEVER_SEEN) == 12 and {digit for digit, _ in NEVER_SEEN} == set(range(10))
    assert {ink for _, ink in NEVER_SEEN} == set(INKS)
    inks = list(INKS)
    pairs = [
        {(asked["digit"], inks[asked["ink"]]) for asked in map(asked_for, images.captions)} for images in in_color[1]
    ]
    assert len(pairs[0]) == 48 and not pairs[0] & set(NEVER_SEEN)
    assert len(pairs[1]) == 60


def test_captions_in_color_ask_for_what_they_were_made_of():
    for ink in INKS:
        for stroke in (None, "thin", "thick"):
            said = captions_in_color(8, ink, stroke)
            assert len(set(said)) == (12 if stroke else 6)
            for caption in said:
                asked = asked_for(caption)
                assert asked["digit"] == 8 and list(INKS)[asked["ink"]] == ink
                assert asked["stroke"] in (-1, ["thin", "thick"].index(stroke) if stroke else -1)
    assert "an 8 in red" in captions_in_color(8, "red", None) and "an orange 3" in captions_in_color(3, "orange", None)
    assert "a thick orange 3" in captions_in_color(3, "orange", "thick")
    assert asked_for("a red or blue thing") == {"digit": -1, "ink": -1, "stroke": -1}


def test_it_is_in_the_table_and_wants_three_channels(tmp_path):
    assert "colored_mnist" in LOADERS
    with pytest.raises(UserError, match="3 channels"):
        load_images(DataSource("colored_mnist", image_channels=1), tmp_path, "cpu")
    with pytest.raises(UserError, match="28x28"):
        load_images(DataSource("colored_mnist", image_size=32), tmp_path, "cpu")
