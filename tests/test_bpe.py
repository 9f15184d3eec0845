"""Captions to text tokens: the library's merges, its dropout, and the table that training draws from."""

import random
from collections import Counter

import pytest
import torch
from bpe import BPE_DROPOUT, PAD_ID, CaptionTable, Tokenizer

from utils.prompts import PROMPTS, draw_prompt_ids


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(PROMPTS)


def library_ids(tokenizer, caption, text_seq_len=6):
    ids = tokenizer.bpe.encode(caption).ids
    return ids + [PAD_ID] * (text_seq_len - len(ids))


def test_tokens_without_dropout_are_the_librarys(tokenizer):
    for prompt in PROMPTS:
        assert tokenizer.encode([prompt], 6)[0].tolist() == library_ids(tokenizer, prompt)
    assert torch.equal(tokenizer.encode([" SeVen "], 6), tokenizer.encode(["seven"], 6))


def test_merges_are_made_in_the_librarys_order():
    rng = random.Random(0)
    words = ["".join(rng.choices("abc", k=rng.randint(1, 12))) for _ in range(400)]
    tokenizer = Tokenizer.train(words[:200], vocab_size=40)  # of few letters, so that merges get in each other's way
    assert tokenizer.vocab_size == 40
    captions = [f"{first} {second}" for first, second in zip(words[200:300], words[300:])]
    assert tokenizer.encode(captions, 24).tolist() == [library_ids(tokenizer, caption, 24) for caption in captions]


def test_dropout_is_distributed_as_the_librarys(tokenizer):
    rng = random.Random(0)
    ours = Counter(tuple(tokenizer.merge("seven", 0.3, rng)) for _ in range(4000))
    theirs = Tokenizer.from_json(tokenizer.to_json()).bpe
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


def test_the_tokenizer_survives_its_json(tokenizer):
    again = Tokenizer.from_json(tokenizer.to_json())
    assert torch.equal(again.encode(PROMPTS, 6), tokenizer.encode(PROMPTS, 6))
    assert again.vocab_size == tokenizer.vocab_size == tokenizer.encode(PROMPTS, 6).max() + 1


def test_the_table_holds_each_caption_in_the_cuts_that_dropout_makes(tokenizer):
    captions = ["seven", "7", "eight"]
    table = CaptionTable(tokenizer, captions, 6, "cpu", num_draws=4000).table
    assert table.shape == (3, 4000, 6)
    theirs = Tokenizer.from_json(tokenizer.to_json())
    theirs.bpe.model.dropout = BPE_DROPOUT
    for caption, rows in zip(captions, table.tolist()):
        ours = Counter(map(tuple, rows))
        library = Counter(tuple(library_ids(theirs, caption)) for _ in range(4000))
        assert len(ours) > 1 or caption == "7"
        for ids in ours.keys() | library.keys():
            assert ours[ids] / 4000 == pytest.approx(library[ids] / 4000, abs=0.04)


def test_the_table_is_the_same_in_every_run(tokenizer):
    tables = []
    for seed in (1, 2):
        random.seed(seed)
        torch.manual_seed(seed)
        tables.append(CaptionTable(tokenizer, PROMPTS, 6, "cpu").table)
    assert torch.equal(*tables)


def test_a_table_that_a_caption_does_not_fit_into_is_refused(tokenizer):
    with pytest.raises(ValueError, match="larger text_seq_len"):
        CaptionTable(tokenizer, PROMPTS, 2, "cpu")


def test_a_draw_is_of_the_caption_that_was_asked_for_and_seedable(tokenizer):
    table = CaptionTable(tokenizer, PROMPTS, 6, "cpu")
    caption_ids = torch.arange(len(PROMPTS)).repeat(50)
    torch.manual_seed(1)
    tokens = table.draw(caption_ids)
    assert tokens.shape == (1000, 6) and tokens.dtype == torch.int64
    assert [text(tokenizer, row) for row in tokens] == PROMPTS * 50
    assert len(set(map(tuple, tokens[caption_ids == PROMPTS.index("seven")].tolist()))) > 1
    torch.manual_seed(1)
    assert torch.equal(table.draw(caption_ids), tokens)


def test_a_digits_captions_are_its_word_and_its_numeral_alike(tokenizer):
    torch.manual_seed(1)
    tokens = CaptionTable(tokenizer, PROMPTS, 6, "cpu").draw(draw_prompt_ids(torch.tensor([7]).repeat(2000)))
    counts = Counter(text(tokenizer, row) for row in tokens)
    assert counts.keys() == {"seven", "7"} and 900 < counts["seven"] < 1100


def text(tokenizer, tokens):
    return "".join(tokenizer.bpe.id_to_token(token) for token in tokens.tolist() if token != PAD_ID)
