"""Two digits in one picture: the data set, the reading of what is drawn, and both lessons' scripts on it."""

import csv

import bpe
import pytest
import torch
from scripts import TINY, read_image, refused, script, succeeds
from stages import STAGES

import lesson_08.bpe
import utils.data
from benchmarks.binding import OUTCOMES, outcomes, questions, read, train_small_scorer
from utils.data import CaptionedImages, mnist_5k
from utils.digits import INKS
from utils.scoring import nearest_ink
from utils.two_digits import (
    captions_of_two,
    cut_apart,
    make_small,
    never_together,
    pair_up,
    put_together,
    two_asked_for,
)


@pytest.fixture(scope="module")
def gray():
    return mnist_5k()


@pytest.fixture(scope="module")
def pairs(gray):
    return [CaptionedImages(*one) for one in pair_up(gray)]


@pytest.fixture(scope="module")
def scorer(pairs):
    return train_small_scorer(pairs[0], num_steps=80)


def asked_of(images, which=0):
    return two_asked_for([images.captions[i] for i in images.caption_ids[:, which]])


def test_captions_in_words_and_numerals_ask_for_what_they_were_made_of():
    assert captions_of_two([3, 7], [0, 3], 0) == ["a red three left of a blue seven", "a red 3 left of a blue 7"]
    assert captions_of_two([8, 1], [5, 4], 1) == ["an orange eight above a purple one", "an orange 8 above a purple 1"]
    for arrangement in (0, 1):
        digits, inks, arrangements = two_asked_for(captions_of_two([9, 0], [2, 5], arrangement))
        assert digits.tolist() == [[9, 0]] * 2 and inks.tolist() == [[2, 5]] * 2
        assert arrangements.tolist() == [arrangement] * 2


def test_pictures_show_what_their_captions_say(gray, pairs):
    for (pixels, labels), images in zip(gray, pairs):
        assert images.pixels.shape == (len(labels), 3, 28, 28) and images.pixels.dtype == torch.uint8
        for which in (0, 1):  # in words and in numerals
            digits, inks, arrangements = asked_of(images, which)
            assert torch.equal(digits[:, 0], labels)
            assert (digits[:, 0] != digits[:, 1]).all() and (inks[:, 0] != inks[:, 1]).all()
        small = cut_apart(images.pixels, arrangements)
        assert torch.equal(nearest_ink(small.flatten(0, 1).float()).view(-1, 2), inks)
        assert torch.equal(put_together(small, arrangements), images.pixels)  # nothing is drawn elsewhere
        real, shown = make_small(pixels).round().flatten(1), small.amax(dim=2).float().flatten(2)
        torch.testing.assert_close(shown[:, 0], real, rtol=0, atol=1)
        distances = torch.cdist(shown[:100, 1], real, p=torch.inf)
        assert (distances.min(dim=1).values <= 1).all()
        assert torch.equal(labels[distances.argmin(dim=1)], digits[:100, 1])


def test_digits_that_differ_by_five_are_never_together_in_training(pairs):
    seen, of_test = (asked_of(images) for images in pairs)
    assert not never_together(seen[0]).any()
    kinds = {tuple(pair) for pair in of_test[0][never_together(of_test[0])].tolist()}
    assert len(kinds) == 10  # both orders of five pairs
    for place in (0, 1):  # but each digit is there in each ink, first and second, in both arrangements
        kinds = torch.stack([seen[0][:, place], seen[1][:, place], seen[2]], dim=1).unique(dim=0)
        assert len(kinds) == 10 * len(INKS) * 2


def test_real_pictures_are_read_right(pairs, scorer):
    images, prompts, never = questions(pairs[1], 20)
    assert len(images) == len(prompts) == 40 and never.tolist() == [False] * 20 + [True] * 20
    digits, inks, arrangements = two_asked_for(prompts)
    read_digits, read_inks = read(scorer, images.images(), arrangements)
    assert torch.equal(read_inks, inks)
    assert (read_digits == digits).float().mean() > 0.85


def test_swaps_are_told_apart(gray, scorer):
    """A red three left of a blue seven, and what is drawn in its place, composed by hand."""
    pixels, labels = gray[1]
    small = make_small(pixels) / 255
    one_of = {}
    for digit in (3, 7, 4):
        of_digit = put_together(small[labels == digit][:, None, None].expand(-1, 2, 3, -1, -1), torch.zeros(50).long())
        right = (read(scorer, of_digit, torch.zeros(50).long())[0] == digit).all(dim=1)
        one_of[digit] = small[labels == digit][right][0]
    pictures = [  # digits and inks, left and right
        ((3, "red"), (7, "blue")),
        ((3, "blue"), (7, "red")),
        ((7, "red"), (3, "blue")),
        ((7, "blue"), (3, "red")),
        ((3, "red"), (4, "blue")),
        ((3, "red"), (7, "green")),
        ((3, "red"), (7, "red")),
        ((3, "red"), (3, "red")),
    ]
    colors = {ink: torch.tensor(color)[:, None, None] / 255 for ink, color in INKS.items()}
    halves = torch.stack([torch.stack([one_of[d] * colors[ink] for d, ink in picture]) for picture in pictures])
    arrangements = torch.zeros(len(pictures)).long()
    asked = two_asked_for(["a red three left of a blue seven"] * len(pictures))
    found = outcomes(asked, read(scorer, put_together(halves, arrangements), arrangements))
    assert [OUTCOMES[i] for i in found] == [*OUTCOMES[:4], *["other"] * 4]
    above = outcomes(asked, read(scorer, put_together(halves, 1 - arrangements), arrangements))
    assert OUTCOMES[above[0]] == "other"  # the right digits and inks, in the other arrangement


@pytest.fixture(scope="module")
def trained(gray, tmp_path_factory):
    """The models of both lessons, after one step each on a few digits: the flags that name them."""
    folder, few = tmp_path_factory.mktemp("two digits"), [(pixels[::5], labels[::5]) for pixels, labels in gray]
    flags = {name: [f"--{name}_checkpoint", folder / f"{name}/{name}-1.pt"] for name in STAGES}
    needed = {"dall_e": flags["dvae"], "prior": flags["clip"], "decoder": flags["clip"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils.data, "mnist", lambda data_dir, or_fall_back: (few, "mnist"))
        for module in (bpe, lesson_08.bpe):  # lesson 17 knows it by the second name
            patch.setattr(module, "MOST_ROWS", 1)
        for name in ("dvae", "dall_e", "clip", "prior", "decoder"):
            output_dir = folder if "lesson_17" in STAGES[name][0] else folder / name
            one_step = ("--dataset", "two_digits", "--num_training_steps", 1, "--output_dir", output_dir)
            succeeds(*STAGES[name], *TINY, *one_step, *needed.get(name, []))
        lesson_17 = [*flags["clip"], *flags["prior"], *flags["decoder"]]
        yield {"lesson_08": [*flags["dvae"], *flags["dall_e"]], "lesson_17": lesson_17}


@pytest.mark.parametrize("lesson", ["lesson_08", "lesson_17"])
def test_both_lessons_draw_two_digits(trained, tmp_path, lesson):
    prompts = ("--prompts", "a red three left of a blue seven", "--output_dir", tmp_path)
    succeeds(f"{lesson}/generate_mnist.py", *trained[lesson], *prompts)
    assert read_image(tmp_path / "0000-a-red-three-left-of-a-blue-seven.png").shape == (3, 28, 28)


def test_no_single_digit_is_looked_for(trained, tmp_path):
    few = ("--num_samples", 1, "--output_dir", tmp_path)
    result = succeeds("lesson_08/evaluate_mnist.py", *trained["lesson_08"], *few)
    assert "samples, nearest training image" in result.stdout and "prompt accuracy" not in result.stdout


def test_binding_writes_its_table_and_figure(trained, tmp_path):
    few = ("--num_samples", 3, "--scorer_steps", 1, "--output_dir", tmp_path)
    result = succeeds("benchmarks/binding.py", *trained["lesson_08"], *trained["lesson_17"], *few)
    with open(tmp_path / "binding.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["digits"] for row in rows] == ["seen together", "never seen together"] * (len(rows) // 2)
    assert {row["what"] for row in rows} >= {"real test images", "DALL·E", "unCLIP", "unCLIP, decoder without caption"}
    for row in rows[:-2]:  # the last ones are CLIP's
        assert row["samples"] == "3" and sum(int(row[outcome]) for outcome in OUTCOMES) == 3
        assert f"| {row['what']} | {row['digits']} |" in result.stdout
    assert read_image(tmp_path / "binding.png").shape[2] > 400


def test_binding_wants_models_of_two_digits(trained, tmp_path):
    file = trained["lesson_17"][3]  # the prior's checkpoint says what unCLIP learned from
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["data"]["dataset"] = "colored_mnist"
    torch.save(checkpoint, tmp_path / "prior-1.pt")
    models = (*trained["lesson_08"], *trained["lesson_17"], "--prior_checkpoint", tmp_path / "prior-1.pt")
    refused(script("benchmarks/binding.py", *models), "these models learned colored_mnist")
