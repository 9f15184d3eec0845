"""What a model can be asked for: the prompts it knows, or any."""

import string
from collections.abc import Callable
from dataclasses import asdict, dataclass

from utils.checkpoints import fingerprint
from utils.cli import UserError, shortened
from utils.data import CaptionedImages, DataSource
from utils.machine import say

NUM_EXAMPLES = 1000  # captions that a checkpoint carries, to draw random prompts from
MARKS = string.punctuation + "“”‘’«»„…¿¡。，、！？："  # around a word
NUM_FINGERPRINTED = 10_000  # images that its fingerprint of the data is of, at least


@dataclass
class Prompts:
    """What a model learned to be asked; its checkpoint carries this among its "data"."""

    examples: list[str]  # captions of the training images, some if there are many
    words: list[str]  # of all of them
    closed: bool  # whether the captions are all that it may be asked

    @classmethod
    def of(cls, train_set: CaptionedImages) -> "Prompts":
        every = max(1, len(train_set.captions) // NUM_EXAMPLES)
        words = {word for caption in train_set.captions for word in words_of(caption)}
        return cls(train_set.captions[::every][:NUM_EXAMPLES], sorted(words), train_set.closed)

    @classmethod
    def of_checkpoint(cls, data: dict) -> "Prompts":
        """From the "data" of a checkpoint, see data_entry."""
        return cls(data["examples"], data["words"], data["closed"])

    def check(self, prompts: list[str], say: Callable = say) -> list[str]:
        """The prompts without needless blanks. Says which words no caption had. Raises UserError for an empty prompt,
        and, where the captions are all that a model was taught, for any other."""
        checked = [" ".join(prompt.split()) for prompt in prompts]
        if any("\ud800" <= letter <= "\udfff" for letter in "".join(checked)):
            raise UserError("A prompt is not UTF-8, or has half a letter; type it anew.")
        if self.closed:
            checked = [" ".join(words_of(prompt)) for prompt in checked]
            for given, prompt in zip(prompts, checked):
                if prompt not in self.examples:
                    learned = ", ".join(self.examples)
                    raise UserError(f"the prompt {shortened(given)} is unknown; the models learned {learned}.")
        if "" in checked:
            raise UserError("A prompt is empty; say what to draw.")
        new = sorted({word for prompt in checked for word in words_of(prompt)}.difference(self.words))
        if new:
            named = ", ".join(map(shortened, new[:10])) + f" and {len(new) - 10} others" * (len(new) > 10)
            say(f"No training caption had {named}; what is drawn for that is a guess.")
        return checked


def words_of(text: str) -> list[str]:
    """The words of a text in small letters, without the punctuation around them."""
    return [word for word in (word.strip(MARKS) for word in text.lower().split()) if word]


def data_entry(train_set: CaptionedImages, source: DataSource) -> dict:
    """What a checkpoint says of the data: where they are from, what the model can be asked for, and a fingerprint of some."""
    some = slice(None, None, max(1, len(train_set) // NUM_FINGERPRINTED))
    contents = fingerprint({"pixels": train_set.pixels[some], "captions": train_set.caption_ids[some]})
    return asdict(source) | asdict(Prompts.of(train_set)) | {"contents": contents}
