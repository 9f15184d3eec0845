"""Captions to text tokens: byte-pair encoding with dropout (DALL·E, arXiv 2102.12092, section 2.2 and appendix B.2).

Byte-pair encoding cuts a word into letters, and merges the pair of neighbors that was commonest in the captions it was
trained on, again and again. With dropout (arXiv 1910.13267) a merge is sometimes passed over, so that in training a word
comes in several cuts.

M captions, T text tokens, V vocabulary.
"""

import json
import random

import torch
from torch import Tensor

PAD_ID = 0  # fills a caption up to T tokens; a caption of nothing else is the null caption
BPE_DROPOUT = 0.1  # in training, as in the paper


class Tokenizer:
    """Lower-cased byte-pair encoding of captions to a fixed number of ids.

    `Tokenizer.train()` learns one; `to_json()` and `from_json()` carry it through a checkpoint.
    """

    def __init__(self, bpe):
        """bpe: a tokenizers.Tokenizer, which learned the vocabulary and the merges."""
        self.bpe = bpe
        merges = json.loads(bpe.to_str())["model"]["merges"]
        self.merge_rank = {tuple(pair): rank for rank, pair in enumerate(merges)}

    @classmethod
    def train(cls, captions: list[str], vocab_size: int = 64) -> "Tokenizer":
        """A tokenizer of at most `vocab_size` ids (the paper's has 16,384), its merges learned from `captions`."""
        from tokenizers import Tokenizer as Library
        from tokenizers import models, normalizers, pre_tokenizers, trainers

        bpe = Library(models.BPE())
        bpe.normalizer = normalizers.Lowercase()
        bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        bpe.train_from_iterator(
            captions, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["[PAD]"], show_progress=False)
        )
        return cls(bpe)

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """The inverse of `to_json`."""
        from tokenizers import Tokenizer as Library

        return cls(Library.from_str(text))

    def to_json(self) -> str:
        """The vocabulary and the merges."""
        return self.bpe.to_str()

    @property
    def vocab_size(self) -> int:
        """Ids, V, with PAD_ID."""
        return self.bpe.get_vocab_size()

    def encode(
        self, captions: list[str], text_seq_len: int, dropout: float = 0.0, rng: random.Random | None = None
    ) -> Tensor:
        """Captions to text tokens (M, T) int64 in 0 .. V - 1, PAD_ID after a caption's end.

        dropout: probability that a merge is passed over, as drawn from `rng`. Raises ValueError for a caption that is
        empty, has more than T tokens, or letters that the captions trained on do not have.
        """
        rows = []
        for caption in captions:
            tokens = [token for word in caption.lower().split() for token in self.merge(word, dropout, rng)]
            ids = [self.bpe.token_to_id(token) for token in tokens]
            if not ids:
                raise ValueError("a prompt is empty")
            if None in ids:
                raise ValueError(f"the prompt {caption[:80]!r} has letters that no training prompt has")
            if len(ids) > text_seq_len:
                raise ValueError(f"the prompt {caption[:80]!r} has {len(ids)} tokens, the model reads {text_seq_len}")
            rows.append(ids + [PAD_ID] * (text_seq_len - len(ids)))
        return torch.tensor(rows)

    def merge(self, word: str, dropout: float, rng: random.Random | None) -> list[str]:
        """A word to its tokens: algorithm 1 of BPE-dropout. The library has it too, but from a random state that cannot
        be seeded."""
        tokens = list(word)
        while True:
            pairs = enumerate(zip(tokens, tokens[1:]))
            merges = [(self.merge_rank[pair], i) for i, pair in pairs if pair in self.merge_rank]
            if dropout:
                merges = [merge for merge in merges if rng.random() >= dropout]
            if not merges:
                return tokens
            _, i = min(merges)
            tokens[i : i + 2] = ["".join(tokens[i : i + 2])]


class CaptionTable:
    """M captions, each tokenized `num_draws` times with dropout beforehand, so that a batch is an index look-up.

    Raises ValueError if a caption, cut into letters, does not fit into text_seq_len tokens.
    """

    def __init__(self, tokenizer: Tokenizer, captions: list[str], text_seq_len: int, device, num_draws: int = 256):
        rng = random.Random(0)  # the table is the same in every run; a run's own seed decides what is drawn from it
        repeated = [caption for caption in captions for _ in range(num_draws)]
        try:
            tokenizer.encode(captions, text_seq_len, dropout=1.0, rng=rng)  # as finely as chance can cut them
            tokens = tokenizer.encode(repeated, text_seq_len, BPE_DROPOUT, rng)
        except ValueError as error:
            raise ValueError(f"{error}; choose a larger text_seq_len.") from error
        self.table = tokens.view(len(captions), num_draws, text_seq_len).to(device)

    def draw(self, caption_ids: Tensor) -> Tensor:
        """Captions (B,) in 0 .. M - 1 to their text tokens (B, T), by torch's random state."""
        draw = torch.randint(self.table.shape[1], caption_ids.shape, device=caption_ids.device)
        return self.table[caption_ids, draw]
