"""Captions to text tokens: the library's merges, its dropout, and the table that training draws from."""

import random
import time
import unicodedata
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders

from utils.bpe import BPE_DROPOUT, MOST_TOKENS, PAD_ID, CaptionTable, Tokenizer
from utils.datasets.mnist import DIGIT_CAPTIONS


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(DIGIT_CAPTIONS)


def library_ids(tokenizer, caption, text_seq_len=6):
    ids = tokenizer.bpe.encode(caption).ids
    return ids + [PAD_ID] * (text_seq_len - len(ids))


def test_tokens_without_dropout_are_the_librarys(tokenizer):
    for prompt in DIGIT_CAPTIONS:
        assert tokenizer.encode([prompt], 6)[0].tolist() == library_ids(tokenizer, prompt)
    assert torch.equal(tokenizer.encode([" SeVen "], 6), tokenizer.encode(["seven"], 6))


def test_merges_are_made_in_the_librarys_order():
    rng = random.Random(0)
    words = ["".join(rng.choices("abc", k=rng.randint(1, 12))) for _ in range(400)]
    tokenizer = Tokenizer.train(words[:200], vocab_size=300)  # of few letters, so that merges get in each other's way
    assert tokenizer.vocab_size == 300
    captions = [f"{first} {second}" for first, second in zip(words[200:300], words[300:])]
    assert tokenizer.encode(captions, 24).tolist() == [library_ids(tokenizer, caption, 24) for caption in captions]


def test_dropout_is_distributed_as_the_librarys(tokenizer):
    rng = random.Random(0)
    ours = Counter(tuple(tokenizer.merge("\u0120seven", 0.3, rng)) for _ in range(4000))
    theirs = Tokenizer.from_json(tokenizer.to_json()).bpe
    theirs.model.dropout = 0.3
    library = Counter(tuple(theirs.encode("seven").tokens) for _ in range(4000))
    for tokens in ours.keys() | library.keys():
        assert ours[tokens] / 4000 == pytest.approx(library[tokens] / 4000, abs=0.04)


def test_without_merges_a_caption_is_its_bytes(tokenizer):
    assert len(tokenizer.ids("seven", dropout=1.0, rng=random.Random(0))) == len(" seven")
    assert len(tokenizer.ids("é", dropout=1.0, rng=random.Random(0))) == 3  # a blank and two bytes


def test_one_letter_in_two_spellings_is_one(tokenizer):
    assert tokenizer.ids("caf\u00e9") == tokenizer.ids("cafe\u0301") != tokenizer.ids("cafe")


def test_t_is_what_captions_need_when_dropout_cuts_them(tokenizer):
    plain = max(len(tokenizer.ids(caption)) for caption in DIGIT_CAPTIONS)
    table = CaptionTable(tokenizer, DIGIT_CAPTIONS, None, "cpu")
    assert plain < table.text_seq_len == (table.table != PAD_ID).sum(dim=-1).max()


def test_words_without_end_take_no_time_without_end():
    """Their length squared would be minutes; cut into pieces it is less than a second."""
    started = time.process_time()
    captions = ["one " + "x" * 2100, "字" * 2100, "a short one"]
    tokenizer = Tokenizer.train(captions)
    table = CaptionTable(tokenizer, captions, None, "cpu")
    assert table.num_cut == 2 and time.process_time() - started < 20
    assert tokenizer.ids("one " + "x" * 31)[:2] == tokenizer.ids("one x" + "x" * 30)[:2]


def test_ordinary_words_are_not_cut():
    whole = Tokenizer.train(["a" * 31, "ab " * 40, "short"])
    assert len(whole.bpe.pre_tokenizer.pre_tokenize_str("a" * 31)) == 1
    assert len(whole.bpe.pre_tokenizer.pre_tokenize_str("ab ab")) == 2
    assert len(whole.bpe.pre_tokenizer.pre_tokenize_str("a" * 65)) == 3


@given(st.text(max_size=40))
def test_every_text_can_be_cut_and_put_together_again(tokenizer, text):
    ids = tokenizer.ids(text)
    assert PAD_ID not in ids and all(0 < i < tokenizer.vocab_size for i in ids)
    tokens = [tokenizer.bpe.id_to_token(i) for i in ids]
    again = decoders.ByteLevel().decode(tokens)
    assert again.split() == unicodedata.normalize("NFC", " ".join(text.split())).lower().split()


def test_what_is_longer_is_cut_off(tokenizer):
    whole = tokenizer.encode(["one two three"], 6)
    assert torch.equal(tokenizer.encode(["one two three"], 2), whole[:, :2])


def test_the_tokenizer_survives_its_json(tokenizer):
    again = Tokenizer.from_json(tokenizer.to_json())
    assert torch.equal(again.encode(DIGIT_CAPTIONS, 6), tokenizer.encode(DIGIT_CAPTIONS, 6))
    assert again.vocab_size == tokenizer.vocab_size == tokenizer.encode(DIGIT_CAPTIONS, 6).max() + 1


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
        tables.append(CaptionTable(tokenizer, DIGIT_CAPTIONS, 6, "cpu").table)
    assert torch.equal(*tables)


def test_a_table_is_as_wide_as_its_captions_need(tokenizer):
    captions = ["one", "one two three four five six seven"]
    table = CaptionTable(tokenizer, captions, None, "cpu")
    assert 7 <= table.text_seq_len < len(captions[1]) - 10 and table.num_cut == 0
    assert CaptionTable(tokenizer, ["seven " * 2000], None, "cpu", num_draws=1).text_seq_len == MOST_TOKENS
    cut = CaptionTable(tokenizer, captions, 3, "cpu")
    assert cut.table.shape[-1] == 3 and cut.num_cut == 1
    assert torch.equal(cut.table[1].unique(dim=0), tokenizer.encode(["one two three"], 3))


def test_a_draw_is_of_the_caption_that_was_asked_for_and_seedable(tokenizer):
    table = CaptionTable(tokenizer, DIGIT_CAPTIONS, 6, "cpu")
    caption_ids = torch.arange(len(DIGIT_CAPTIONS)).repeat(50)
    torch.manual_seed(1)
    tokens = table.draw(caption_ids)
    assert tokens.shape == (1000, 6) and tokens.dtype == torch.int64
    assert [text(tokenizer, row) for row in tokens] == DIGIT_CAPTIONS * 50
    assert len(set(map(tuple, tokens[caption_ids == DIGIT_CAPTIONS.index("seven")].tolist()))) > 1
    torch.manual_seed(1)
    assert torch.equal(table.draw(caption_ids), tokens)


def text(tokenizer, tokens):
    return "".join(tokenizer.bpe.id_to_token(token) for token in tokens.tolist() if token != PAD_ID).lstrip("\u0120")
