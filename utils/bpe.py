"""Captions to text tokens: byte-pair encoding with dropout (DALL·E, arXiv 2102.12092, section 2.2 and appendix B.2).

It cuts a word into bytes (as GPT-2 does, so that it can cut any text), then merges the pair of neighbors that was
commonest in the captions it learned from, again and again. Dropout (arXiv 1910.13267) sometimes skips a merge in
training, so that a word comes in several cuts. M captions, T text tokens, V vocabulary.
"""

import json
import random

import torch
from torch import Tensor

PAD_ID = 0  # fills a caption up to T tokens; a caption of nothing else is the null caption
BPE_DROPOUT = 0.1  # in training, as in the paper
MOST_TOKENS = 64  # of a caption, where T is not given
LONGEST_WORD = r"\S{32}"  # longer words are cut before the bytes are merged, which takes the square of their length
MOST_ROWS = 20_000  # of a CaptionTable, unless there are more captions


class Tokenizer:
    """Lower-cased byte-pair encoding of captions to a fixed number of ids."""

    def __init__(self, bpe):
        """bpe: a trained tokenizers.Tokenizer."""
        self.bpe = bpe
        merges = json.loads(bpe.to_str())["model"].get("merges", [])
        self.merge_rank = {tuple(pair): rank for rank, pair in enumerate(merges)}

    @classmethod
    def train(cls, captions: list[str], vocab_size: int = 1024) -> "Tokenizer":
        """At most `vocab_size` ids (the paper's has 16,384), but at least 257, PAD_ID and the bytes."""
        from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Library

        bpe = Library(models.BPE())
        bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        pieces = pre_tokenizers.Split(Regex(LONGEST_WORD), behavior="isolated")
        bpe.pre_tokenizer = pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=True)])
        options = {"special_tokens": ["[PAD]"], "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, **options)
        bpe.train_from_iterator(captions, trainer)
        return cls(bpe)

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """The inverse of `to_json`."""
        from tokenizers import Tokenizer as Library

        return cls(Library.from_str(text))

    def to_json(self) -> str:
        """The vocabulary and the merges, for a checkpoint."""
        return self.bpe.to_str()

    @property
    def vocab_size(self) -> int:
        """Ids, V, with PAD_ID."""
        return self.bpe.get_vocab_size()

    def encode(self, captions: list[str], text_seq_len: int, pad_id: int = PAD_ID) -> Tensor:
        """Captions to text tokens (M, T) int64 in 0 .. V - 1, pad_id after a caption's end; longer ones are cut off."""
        return padded([self.ids(caption) for caption in captions], text_seq_len, pad_id)

    def read(self, caption: str, text_seq_len: int) -> str:
        """What of a caption is read where T tokens are: all of it, or, as it is spelled in the vocabulary, its beginning."""
        from tokenizers.decoders import ByteLevel

        ids = self.ids(caption)
        if len(ids) <= text_seq_len:
            return caption
        return ByteLevel().decode([self.bpe.id_to_token(i) for i in ids[:text_seq_len]]).strip()

    def ids(self, caption: str, dropout: float = 0.0, rng: random.Random | None = None, enough: int = 0) -> list[int]:
        """The ids of a caption; `dropout` is the probability that `rng` skips a merge, and then the words behind the
        first `enough` ids are left out."""
        caption = " ".join(caption.split())
        if not dropout:
            return self.bpe.encode(caption).ids
        ids = []
        for word, _ in self.bpe.pre_tokenizer.pre_tokenize_str(self.bpe.normalizer.normalize_str(caption)):
            if not enough or len(ids) < enough:
                ids += [self.bpe.token_to_id(token) for token in self.merge(word, dropout, rng)]
        return ids

    def merge(self, word: str, dropout: float, rng: random.Random) -> list[str]:
        """A word's tokens: algorithm 1 of BPE-dropout. The library's own cannot be seeded."""
        tokens = list(word)
        while True:
            pairs = enumerate(zip(tokens, tokens[1:]))
            known = [(self.merge_rank[pair], i) for i, pair in pairs if pair in self.merge_rank]
            merges = [merge for merge in known if rng.random() >= dropout]
            if not merges:
                return tokens
            _, i = min(merges)
            tokens[i : i + 2] = ["".join(tokens[i : i + 2])]


def padded(rows: list[list[int]], text_seq_len: int, pad_id: int = PAD_ID) -> Tensor:
    """Rows of ids as one tensor (M, T), cut off at T and filled up with pad_id."""
    return torch.tensor([row[:text_seq_len] + [pad_id] * (text_seq_len - len(row)) for row in rows])


class CaptionTable:
    """M captions, each tokenized several times with dropout beforehand, fewer times if they are many, so that a batch
    is an index look-up. `num_cut` of them are longer than T, and lose their ends.

    text_seq_len: T, or None for what these captions need with dropout, but at most MOST_TOKENS.
    """

    def __init__(self, tokenizer: Tokenizer, captions: list[str], text_seq_len: int | None, device, num_draws=256):
        rng = random.Random(0)  # the same table in every run; a run's own seed decides what is drawn from it
        num_draws = min(num_draws, -(-MOST_ROWS // len(captions)))
        enough = 1 + (text_seq_len or MOST_TOKENS)
        rows = [tokenizer.ids(caption, BPE_DROPOUT, rng, enough) for caption in captions for _ in range(num_draws)]
        plain = [tokenizer.ids(caption) for caption in captions]
        self.text_seq_len = text_seq_len or min(MOST_TOKENS, max(map(len, plain + rows)))
        self.num_cut = sum(len(row) > self.text_seq_len for row in plain)
        # A row that dropout made too long gives way to the caption's own, the shortest.
        rows = [row if len(row) <= self.text_seq_len else plain[i // num_draws] for i, row in enumerate(rows)]
        self.table = padded(rows, self.text_seq_len).view(len(captions), num_draws, -1).to(device)

    def draw(self, caption_ids: Tensor) -> Tensor:
        """Captions (B,) in 0 .. M - 1 to their text tokens (B, T), by torch's random state."""
        draw = torch.randint(self.table.shape[1], caption_ids.shape, device=caption_ids.device)
        return self.table[caption_ids, draw]
