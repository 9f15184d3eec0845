"""A trained, frozen CLIP and its embeddings, which the prior and the decoder learn from.

B batch, T text tokens, E embedding size, D text width, M captions, N images.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from lesson_17.clip import CLIP, CLIPConfig
from torch import Tensor
from utils.bpe import PAD_ID, Tokenizer
from utils.checkpoints import find_checkpoint, fingerprint, load_checkpoint, load_model
from utils.cli import ROOT, UserError
from utils.data import CaptionedImages, DataSource
from utils.datasets import LoadedImages
from utils.machine import free_memory, get_device, say

NUM_HELD_OUT = 1000  # test images that each sample step of the prior and the decoder measures with


@dataclass
class FrozenCLIP:
    """A trained CLIP, and where it came from."""

    model: CLIP
    tokenizer: Tokenizer
    source: dict  # {"file", "fingerprint"}, for the checkpoints of the prior and the decoder
    data: dict | None  # what its checkpoint says of the images that it learned from

    @classmethod
    def load(cls, clip_checkpoint: str | None = None, models: Path = ROOT / "output") -> "FrozenCLIP":
        """From a checkpoint, for None the newest in the folder `models`. Raises UserError if there is none."""
        file = find_checkpoint(clip_checkpoint, "clip", models)
        if file is None:
            raise UserError("There is no trained CLIP yet; train one with python lesson_17/train_clip.py, at the root.")
        checkpoint = load_checkpoint(file, "clip")
        model = load_model(checkpoint, CLIP, CLIPConfig).to(get_device())
        source = {"file": str(file.absolute()), "fingerprint": fingerprint(model.state_dict())}
        return cls(model, Tokenizer.from_json(checkpoint["tokenizer"]), source, checkpoint["data"] or None)

    @property
    def sizes(self) -> dict[str, int]:
        """What the configs of the prior and the decoder take from CLIP."""
        c = self.model.config
        return {"clip_embed_dim": c.embed_dim, "clip_text_width": c.text_width, "clip_text_seq_len": c.text_seq_len}

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Prompts to text tokens (B, T)."""
        return tokenize(self.tokenizer, prompts, self.model.config.text_seq_len, self.model.config.pad_id)

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str], device) -> tuple[Tensor, Tensor]:
        """Prompts to CLIP's text embeddings (B, E) and token encodings (B, T, D)."""
        parts = [self.model.encode_text(tokens.to(device)) for tokens in self.tokenize(prompts).split(500)]
        text_embed, text_encodings = zip(*parts)
        return torch.cat(text_embed), torch.cat(text_encodings)

    @torch.no_grad()
    def encode_images(self, images: CaptionedImages) -> Tensor:
        """The embeddings (N, E) of all `images`."""
        return images.map(self.model.encode_image)


class EncodedCaptions:
    """CLIP's encodings of M captions, computed once if they fit into the memory, or else whenever they are indexed."""

    def __init__(self, clip: FrozenCLIP, captions: list[str], device):
        self.clip, self.tokens = clip, clip.tokenize(captions).to(device)
        fits = 4 * self.tokens.numel() * clip.model.config.text_width < free_memory(device) / 4  # in float32
        self.encoded = clip.encode_prompts(captions, device) if fits else None

    @torch.no_grad()
    def __getitem__(self, caption: Tensor) -> tuple[Tensor, Tensor]:
        """The text embeddings (B, E) and token encodings (B, T, D) of captions (B,) in 0 .. M - 1."""
        if self.encoded is None:
            return self.clip.model.encode_text(self.tokens[caption])
        return tuple(table[caption] for table in self.encoded)


@dataclass
class EmbeddedImages:
    """Captioned images with CLIP's embeddings."""

    images: CaptionedImages
    image_embed: Tensor  # (N, E)
    captions: EncodedCaptions

    @classmethod
    def of(cls, clip: FrozenCLIP, images: CaptionedImages) -> "EmbeddedImages":
        return cls(images, clip.encode_images(images), EncodedCaptions(clip, images.captions, images.device))


class EmbeddedData(NamedTuple):
    """What the prior and the decoder learn from."""

    clip: FrozenCLIP
    train: EmbeddedImages
    held_out: EmbeddedImages  # test images
    source: DataSource


def embed(clip: FrozenCLIP, data: LoadedImages) -> EmbeddedData:
    """The training images, and NUM_HELD_OUT test images, with CLIP's embeddings."""
    say("Embedding the images ...")
    held_out = data.test_set.subset(slice(NUM_HELD_OUT))
    return EmbeddedData(clip, EmbeddedImages.of(clip, data.train_set), EmbeddedImages.of(clip, held_out), data.source)


def zero_shot_accuracy(image_embed: Tensor, text_embed: Tensor, images: CaptionedImages) -> float:
    """The fraction of images, embedded as (N, E), whose nearest caption, embedded as (M, E), is valid for them."""
    with torch.autocast(image_embed.device.type, enabled=False):  # bfloat16 cannot tell near captions apart
        nearest = (image_embed @ text_embed.T).argmax(dim=1)
    return (images.caption_ids == nearest[:, None]).any(dim=1).float().mean().item()


def tokenize(tokenizer: Tokenizer, prompts: list[str], text_seq_len: int, pad_id: int = PAD_ID) -> Tensor:
    """Prompts to text tokens (B, T), each with at least one pad behind it, the end of the text."""
    return add_end(tokenizer.encode(prompts, text_seq_len - 1, pad_id), pad_id)


def add_end(text_tokens: Tensor, pad_id: int = PAD_ID) -> Tensor:
    """Text tokens (B, T - 1) followed by a pad, (B, T)."""
    return F.pad(text_tokens, (0, 1), value=pad_id)
