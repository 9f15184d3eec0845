"""Data, prompts, checkpoints, and the training loop's promises."""

import csv
import random
from argparse import Namespace
from collections import Counter

import pytest
import torch
from line import fit_line

from utils.checkpoints import TRAINED, find_checkpoint, load_checkpoint, newest_checkpoint, save_checkpoint
from utils.cli import UserError
from utils.data import load_digits
from utils.prompts import PAD_ID, PROMPTS, PromptSampler, PromptTokenizer, check_prompt
from utils.training import batch_index


@pytest.fixture(scope="module")
def tokenizer():
    return PromptTokenizer.train()


def test_tokens_without_dropout_are_the_librarys(tokenizer):
    for prompt in PROMPTS:
        ids = tokenizer.tokenizer.encode(prompt).ids
        assert tokenizer.encode([prompt], 6)[0].tolist() == ids + [PAD_ID] * (6 - len(ids))
    assert torch.equal(tokenizer.encode([" SeVen "], 6), tokenizer.encode(["seven"], 6))


def test_dropout_is_distributed_as_the_librarys(tokenizer):
    rng = random.Random(0)
    ours = Counter(tuple(tokenizer._merge("seven", 0.3, rng)) for _ in range(4000))
    theirs = PromptTokenizer.from_json(tokenizer.to_json()).tokenizer
    theirs.model.dropout = 0.3
    library = Counter(tuple(theirs.encode("seven").tokens) for _ in range(4000))
    for tokens in ours.keys() | library.keys():
        assert ours[tokens] / 4000 == pytest.approx(library[tokens] / 4000, abs=0.04)


def test_every_prompt_fits_even_when_no_merge_is_made(tokenizer):
    letters = tokenizer.encode(PROMPTS, 6, dropout=1.0, rng=random.Random(0))
    assert (letters[PROMPTS.index("seven")] != PAD_ID).sum() == 5


@pytest.mark.parametrize(
    "prompt,reason", [("", "empty"), ("  ", "empty"), ("???", "letters"), ("one two three", "tokens")]
)
def test_prompts_that_cannot_be_tokens_are_refused(tokenizer, prompt, reason):
    with pytest.raises(ValueError, match=reason):
        tokenizer.encode([prompt], 2)


def test_only_taught_prompts_are_known():
    assert check_prompt(" Seven ") == "seven"
    for prompt in ("eleven", "none", "12", "", "../7"):
        with pytest.raises(ValueError, match="unknown"):
            check_prompt(prompt)


def test_the_tokenizer_survives_its_json(tokenizer):
    again = PromptTokenizer.from_json(tokenizer.to_json())
    assert torch.equal(again.encode(PROMPTS, 6), tokenizer.encode(PROMPTS, 6))


def test_sampled_prompts_are_the_labels_words_and_numerals_alike_and_seedable(tokenizer):
    sampler = PromptSampler(tokenizer, 6, dropout=0.0, device="cpu")
    labels = torch.tensor([7]).repeat(2000)
    torch.manual_seed(1)
    tokens = sampler(labels)
    words = (tokens == tokenizer.encode(["seven"], 6)).all(1)
    numerals = (tokens == tokenizer.encode(["7"], 6)).all(1)
    assert (words | numerals).all() and 900 < words.sum() < 1100
    torch.manual_seed(1)
    assert torch.equal(sampler(labels), tokens)


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
        with pytest.raises(UserError, match="t10k-images-idx3-ubyte is broken"):
            load_digits(None, tmp_path, 1, "cpu")
    else:
        assert len(load_digits(None, tmp_path, 1, "cpu")[1]) == 5


def test_checkpoints_are_checked(tmp_path):
    path = tmp_path / "dvae-10.pt"
    save_checkpoint(path, {"kind": "dvae", "step": 10})
    with pytest.raises(UserError, match="without config, ema, "):
        load_checkpoint(path, "dvae")
    save_checkpoint(path, {**dict.fromkeys(TRAINED), "kind": "dvae", "step": 10})
    assert load_checkpoint(path, "dvae")["step"] == 10
    assert [file.name for file in tmp_path.iterdir()] == ["dvae-10.pt"]
    with pytest.raises(UserError, match="a dall_e checkpoint is needed"):
        load_checkpoint(path, "dall_e")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="half-written"):
        load_checkpoint(path, "dvae")
    with pytest.raises(UserError, match="no checkpoint"):
        find_checkpoint(str(tmp_path / "none.pt"), "dvae")


def test_the_newest_checkpoint_is_the_one_written_last(tmp_path):
    assert newest_checkpoint(tmp_path, "dvae") is None
    for step in (1000, 200):
        save_checkpoint(tmp_path / f"dvae-{step}.pt", {})
    assert newest_checkpoint(tmp_path, "dvae").name == "dvae-200.pt"


def test_a_stopped_and_resumed_run_ends_with_the_same_bits(tmp_path):
    def stop(step):
        if step == 9:
            raise KeyboardInterrupt

    whole = load_checkpoint(fit_line(tmp_path / "whole"), "line")
    with pytest.raises(KeyboardInterrupt):
        fit_line(tmp_path / "stopped", at_step=stop)
    resumed = load_checkpoint(fit_line(tmp_path / "stopped", resume=True), "line")
    for part in ("model", "ema"):
        for name, tensor in whole[part].items():
            assert torch.equal(resumed[part][name], tensor), (part, name)
    for a, b in zip(whole["optimizer"], resumed["optimizer"]):
        assert str(a) == str(b)
    for name in ("metrics.csv", "held_out_metrics.csv"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "stopped" / name).read_text()
    with open(tmp_path / "whole/metrics.csv") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, 13))


def test_each_epoch_shows_each_image_once_however_many_processes():
    alone = Namespace(num_processes=1, process_index=0, device="cpu")
    pair = [Namespace(num_processes=2, process_index=i, device="cpu") for i in range(2)]
    seen = torch.cat([batch_index(step, 10, 4, 0, alone) for step in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    shared = torch.cat([batch_index(2, 10, 4, 0, process) for process in pair])
    assert torch.equal(shared, batch_index(2, 10, 4, 0, alone))
