"""Prompts for digits, and the text tokens they become: byte-pair encoding with dropout (DALL·E, section 2.2)."""

import json
import random

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from utils.cli import UserError, shortened

DIGIT_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SPELLINGS = [(word, str(digit)) for digit, word in enumerate(DIGIT_WORDS)]  # what each label is called
PROMPTS = [spelling for spellings in SPELLINGS for spelling in spellings]
DIGIT_OF_PROMPT = {spelling: digit for digit, spellings in enumerate(SPELLINGS) for spelling in spellings}

PAD_ID = 0  # fills a caption up to its fixed length; a caption of nothing else is the null caption


class PromptTokenizer:
    """Lower-cased byte-pair encoding of prompts to a fixed number of ids.

    `PromptTokenizer.train()` learns one; `to_json()` and `from_json()` carry it through a checkpoint.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        merges = json.loads(tokenizer.to_str())["model"]["merges"]
        self.merge_rank = {tuple(pair): rank for rank, pair in enumerate(merges)}

    @classmethod
    def train(cls, prompts: list[str] = PROMPTS, vocab_size: int = 64) -> "PromptTokenizer":
        """A tokenizer of at most `vocab_size` ids (the paper's has 16,384), its merges learned from `prompts`."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["[PAD]"], show_progress=False)
        tokenizer.train_from_iterator(prompts, trainer)
        return cls(tokenizer)

    @classmethod
    def from_json(cls, text: str) -> "PromptTokenizer":
        return cls(Tokenizer.from_str(text))

    def to_json(self) -> str:
        return self.tokenizer.to_str()

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode(
        self, prompts: list[str], text_seq_len: int, dropout: float = 0.0, rng: random.Random | None = None
    ) -> Tensor:
        """Prompts to text tokens (B, T) int64, PAD_ID after the caption's end.

        With `dropout`, each merge is passed over with that probability, as drawn from `rng`.
        Raises ValueError for a prompt that is empty, longer than T tokens, or written with unknown letters.
        """
        rows = []
        for prompt in prompts:
            words = prompt.lower().split()
            tokens = [token for word in words for token in self._merge(word, dropout, rng)]
            ids = [self.tokenizer.token_to_id(token) for token in tokens]
            if not ids:
                raise ValueError("a prompt is empty")
            if None in ids:
                raise ValueError(f"the prompt {shortened(prompt)} has letters that no training prompt has")
            if len(ids) > text_seq_len:
                raise ValueError(
                    f"the prompt {shortened(prompt)} has {len(ids)} tokens, the model reads {text_seq_len}"
                )
            rows.append(ids + [PAD_ID] * (text_seq_len - len(ids)))
        return torch.tensor(rows)

    def _merge(self, word: str, dropout: float, rng: random.Random | None) -> list[str]:
        # The library applies its merges with dropout too, but from a random state that cannot be seeded. This is
        # BPE-dropout, algorithm 1 of Provilkov et al. (arXiv 1910.13267).
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


def check_prompt(prompt: str) -> str:
    """The prompt as the models know it, lower-cased and without outer blanks.

    Raises ValueError unless it is a digit's word or numeral: letters alone would pass the tokenizer, and the
    model would draw something for them, but nothing it was taught.
    """
    known = " ".join(prompt.lower().split())
    if known not in DIGIT_OF_PROMPT:
        raise ValueError(f"the prompt {shortened(prompt)} is unknown; the models learned {', '.join(PROMPTS)}")
    return known


class PromptSampler:
    """Draws a fresh prompt for each label, word or numeral, as text tokens that lie ready on the device.

    Each spelling is tokenised `num_draws` times with BPE dropout beforehand, so a batch is an index look-up.
    Raises UserError if a prompt, cut into letters, does not fit into text_seq_len tokens.
    """

    def __init__(self, tokenizer: PromptTokenizer, text_seq_len: int, dropout: float, device, num_draws: int = 256):
        rng = random.Random(0)  # the table is the same in every run, and a run's own seed decides what is drawn from it
        try:
            drawn = tokenizer.encode([p for p in PROMPTS for _ in range(num_draws)], text_seq_len, dropout, rng)
        except ValueError as error:
            raise UserError(f"{error}; choose a larger --text_seq_len.") from error
        self.table = drawn.view(len(SPELLINGS), -1, text_seq_len).to(device)  # (digit, spelling and draw, T)

    def __call__(self, labels: Tensor) -> Tensor:
        """Labels (B,) in 0..9 to text tokens (B, T), by torch's random state."""
        draw = torch.randint(self.table.shape[1], labels.shape, device=labels.device)
        return self.table[labels, draw]
