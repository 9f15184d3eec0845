"""A CLIP that somebody else has trained, any that transformers loads, in the place of ours (--clip_model NAME).

B batch, T text tokens, E embedding size, D text width, H image height and width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from utils.cli import UserError
from utils.machine import say


def load_pretrained(name: str) -> "PretrainedCLIP":
    """The CLIP of a name on the hub, or of a local folder. Raises UserError if transformers finds none."""
    say(f"Loading the pretrained CLIP {name} ...")
    try:
        return PretrainedCLIP(name)
    except (OSError, ValueError) as error:
        raise UserError(
            f"transformers finds no CLIP named {name}; give the name of one on its hub, or a folder."
        ) from error


@dataclass
class Sizes:
    """What of a CLIP's config others ask for."""

    embed_dim: int  # E
    text_width: int  # D
    text_seq_len: int  # T


class PretrainedCLIP(nn.Module):
    """Any CLIP that transformers loads, frozen, with the interface of ours: images are resized and normalized, and
    their channels repeated, as it was trained to see them."""

    def __init__(self, name: str, text_seq_len: int = 16):
        """name: of a model on the hub, or a local folder. Raises OSError or ValueError where there is none."""
        super().__init__()
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel  # here, as it takes seconds

        self.model = CLIPModel.from_pretrained(name, dtype=torch.float32).eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        processor = CLIPImageProcessor.from_pretrained(name)
        self.image_size = self.model.config.vision_config.image_size
        self.register_buffer("mean", torch.tensor(processor.image_mean)[:, None, None])
        self.register_buffer("std", torch.tensor(processor.image_std)[:, None, None])
        c = self.model.config
        self.config = Sizes(c.projection_dim, c.text_config.hidden_size, text_seq_len)

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Prompts to text tokens (B, T) of the model's own tokenizer."""
        lengths = {"padding": "max_length", "truncation": True, "max_length": self.config.text_seq_len}
        return self.tokenizer(prompts, return_tensors="pt", **lengths).input_ids

    def encode_image(self, images: Tensor) -> Tensor:
        """Images (B, 1 or 3, H, H) in [0, 1] to embeddings of length 1, (B, E)."""
        images = F.interpolate(images, size=(self.image_size, self.image_size), mode="bicubic", antialias=True)
        x = (images.expand(-1, 3, -1, -1).clamp(0, 1) - self.mean) / self.std
        return F.normalize(self.model.visual_projection(self.model.vision_model(x).pooler_output), dim=-1)

    def encode_text(self, text_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Text tokens (B, T) to embeddings of length 1, (B, E), and the encodings of the tokens, (B, T, D)."""
        text = self.model.text_model(text_tokens)
        return F.normalize(self.model.text_projection(text.pooler_output), dim=-1), text.last_hidden_state
