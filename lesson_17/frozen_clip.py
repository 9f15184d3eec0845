"""A trained CLIP, frozen, as others use it: the prior and the decoder learn from its embeddings, and the generators of both
lessons let it choose among candidates.

B batch, T text tokens, E embedding size, D text width, M captions, N images.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from lesson_08.bpe import PAD_ID, Tokenizer
from lesson_17.clip import CLIP, CLIPConfig, PretrainedCLIP
from torch import Tensor
from utils.checkpoints import find_checkpoint, fingerprint, load_checkpoint, load_model
from utils.cli import ROOT, UserError
from utils.data import CaptionedImages, map_in_parts
from utils.machine import free_memory, say


@dataclass
class FrozenCLIP:
    """A trained CLIP as the other two models see it, and where it came from.

    source: {"file", "pretrained", "fingerprint"}; the prior's and the decoder's checkpoints carry it. data: what its
    checkpoint says of the images that it learned from; None of a pretrained one.
    """

    model: CLIP | PretrainedCLIP
    tokenizer: Tokenizer | None
    source: dict
    data: dict | None = None

    @classmethod
    def load(
        cls, clip_model: str | None, clip_checkpoint: str | None, device, models: Path = ROOT / "output"
    ) -> "FrozenCLIP":
        """The pretrained `clip_model`, or our own from a checkpoint, for None the newest one in the folder `models`.

        Raises UserError if there is none.
        """
        if clip_model is not None:
            say(f"Loading the pretrained CLIP {clip_model} ...")
            try:
                model = PretrainedCLIP(clip_model).to(device)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"transformers finds no CLIP named {clip_model}; give the name of one on its hub, or a folder."
                ) from error
            return cls(
                model, None, {"file": None, "pretrained": clip_model, "fingerprint": fingerprint(model.state_dict())}
            )
        file = find_checkpoint(clip_checkpoint, "clip", models)
        if file is None:
            raise UserError(
                "There is no trained CLIP yet; train one with python lesson_17/train_mnist.py --stage clip."
            )
        checkpoint = load_checkpoint(file, "clip")
        model = load_model(checkpoint, CLIP, CLIPConfig).to(device)
        source = {"file": str(file), "pretrained": None, "fingerprint": fingerprint(model.state_dict())}
        return cls(model, Tokenizer.from_json(checkpoint["tokenizer"]), source, checkpoint["data"])

    @property
    def sizes(self) -> dict[str, int]:
        return sizes_from_clip(self.model if self.tokenizer is None else self.model.config)

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Prompts to text tokens (B, T)."""
        if self.tokenizer is None:
            return self.model.tokenize(prompts)
        return tokenize(self.tokenizer, prompts, self.model.config.text_seq_len)

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

    @torch.no_grad()
    def similarity(self, images: Tensor, prompts: list[str]) -> Tensor:
        """The cosine of each image (B, C, H, H) in [0, 1] and its own prompt, of B: (B,)."""
        distinct = list(dict.fromkeys(prompts))
        text_embed, _ = self.encode_prompts(distinct, images.device)
        own = text_embed[[distinct.index(prompt) for prompt in prompts]]
        return (map_in_parts(self.model.encode_image, images) * own).sum(dim=1)

    def check_data(self, data: dict) -> None:
        """Raises UserError if this CLIP learned from other images or captions than a model whose checkpoint says `data` of
        its own."""
        if self.data and any(self.data[name] != data[name] for name in ("image_size", "image_channels", "examples")):
            ours, theirs = ("{dataset}, {image_size}x{image_size}".format(**one) for one in (self.data, data))
            raise UserError(
                f"{self.source['file']} learned from {ours}, and the pictures are of {theirs}; name a CLIP of the same images "
                f"with --clip_checkpoint, or a pretrained one with --clip_model."
            )


class EncodedCaptions:
    """What CLIP makes of M captions: computed once, if that fits into the memory, or else each time it is asked for."""

    def __init__(self, clip: FrozenCLIP, captions: list[str], device):
        self.clip, self.tokens = clip, clip.tokenize(captions).to(device)
        floats = len(captions) * (clip.sizes["clip_text_seq_len"] * clip.sizes["clip_text_width"])
        fits = 4 * floats < free_memory(device) / 4
        self.encoded = clip.encode_prompts(captions, device) if fits else None

    @torch.no_grad()
    def __getitem__(self, caption: Tensor) -> tuple[Tensor, Tensor]:
        """The text embeddings (B, E) and token encodings (B, T, D) of captions (B,) in 0 .. M - 1."""
        if self.encoded is None:
            return self.clip.model.encode_text(self.tokens[caption])
        return tuple(table[caption] for table in self.encoded)


def sizes_from_clip(c: CLIPConfig | PretrainedCLIP) -> dict[str, int]:
    """What the configs of the prior and the decoder take from CLIP."""
    return {"clip_embed_dim": c.embed_dim, "clip_text_width": c.text_width, "clip_text_seq_len": c.text_seq_len}


def zero_shot_accuracy(image_embed: Tensor, text_embed: Tensor, images: CaptionedImages) -> float:
    """The fraction of images, embedded as (N, E), whose nearest caption, embedded as (M, E), may be said of them."""
    with torch.autocast(image_embed.device.type, enabled=False):  # bfloat16 cannot tell near captions apart
        nearest = (image_embed @ text_embed.T).argmax(dim=1)
    return (images.caption_ids == nearest[:, None]).any(dim=1).float().mean().item()


def tokenize(tokenizer: Tokenizer, prompts: list[str], text_seq_len: int) -> Tensor:
    """Prompts to text tokens (B, T), each with at least one pad behind it, the end of the text."""
    return add_end(tokenizer.encode(prompts, text_seq_len - 1))


def add_end(text_tokens: Tensor) -> Tensor:
    return F.pad(text_tokens, (0, 1), value=PAD_ID)
