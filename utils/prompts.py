"""Prompts for digits: what each digit is called, and which prompts the models know."""

import torch
from torch import Tensor

from utils.cli import UserError, shortened

DIGIT_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SPELLINGS = [(word, str(digit)) for digit, word in enumerate(DIGIT_WORDS)]  # what each digit is called
PROMPTS = [spelling for spellings in SPELLINGS for spelling in spellings]
DIGIT_OF_PROMPT = {spelling: digit for digit, spellings in enumerate(SPELLINGS) for spelling in spellings}


def prompt_ids(labels: Tensor, spelling: int) -> Tensor:
    """The place in PROMPTS of each digit's (B,) word, spelling 0, or numeral, 1."""
    return len(SPELLINGS[0]) * labels + spelling


def draw_prompt_ids(labels: Tensor) -> Tensor:
    """A place in PROMPTS for each digit (B,): its word or its numeral, by torch's random state."""
    return prompt_ids(labels, torch.randint(len(SPELLINGS[0]), labels.shape, device=labels.device))


def known_prompts(prompts: list[str]) -> list[str]:
    """The prompts as the models know them, lower-cased and without outer blanks.

    Raises UserError for one that is not a digit's word or numeral: letters alone would pass the tokenizer, and the model
    would draw something for them, but nothing it was taught.
    """
    known = [" ".join(prompt.lower().split()) for prompt in prompts]
    for prompt, normalized in zip(prompts, known):
        if normalized not in DIGIT_OF_PROMPT:
            raise UserError(f"the prompt {shortened(prompt)} is unknown; the models learned {', '.join(PROMPTS)}.")
    return known
