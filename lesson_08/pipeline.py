"""The models together: a prompt -> text tokens -> transformer -> image tokens -> dVAE -> picture."""

from dataclasses import dataclass

import torch
from lesson_08.dall_e import DallE, DallEConfig
from lesson_08.dvae import DiscreteVAE, DVAEConfig
from torch import Tensor
from utils.bpe import Tokenizer
from utils.checkpoints import find_checkpoints, fingerprint, load_checkpoint, load_model
from utils.cli import ROOT, ArgumentParser, UserError, bounded
from utils.data import map_in_chunks
from utils.machine import get_device
from utils.samples import SeededNoise, add_checkpoint_flags

DEFAULT_SAMPLING = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance_scale": 1.3}


def add_model_flags(parser: ArgumentParser) -> None:
    """The arguments of Pipeline.load."""
    add_checkpoint_flags(parser, "dvae", "dall_e")


def add_sampling_flags(parser: ArgumentParser) -> None:
    """The arguments of DallE.generate."""
    add, scale = parser.add_argument, bounded(float, 0, 100)
    add("--temperature", type=scale, help="below 1, likely tokens become likelier; 0 takes the likeliest")
    add("--top_k", type=bounded(int, 0), help="draw among the k likeliest tokens; 0: among all")
    add("--top_p", type=bounded(float, 1e-6, 1), help="draw among the likeliest tokens of this total probability")
    add("--guidance_scale", type=scale, help="how much the caption is exaggerated; 1: not at all")
    parser.set_defaults(**DEFAULT_SAMPLING)


@dataclass
class Pipeline:
    """Prompts to images: a tokenizer, a transformer, and the dVAE whose tokens the transformer learned."""

    tokenizer: Tokenizer
    dall_e: DallE
    dvae: DiscreteVAE
    device: torch.device
    files: dict[str, str]  # the checkpoints that it was loaded from
    data: dict  # what the transformer's checkpoint says of its data

    @classmethod
    def load(cls, *, dvae_checkpoint=None, dall_e_checkpoint=None, models=None, pretrained=None) -> "Pipeline":
        """From checkpoint files, for None the newest in the folder `models`; or the included weights for the data set
        `pretrained`. Raises UserError if there are none, or they do not match."""
        given = {"dvae": dvae_checkpoint, "dall_e": dall_e_checkpoint}
        dvae_file, dall_e_file = find_checkpoints(given, models, ROOT / "lesson_08/pretrained", pretrained).values()
        checkpoint = load_checkpoint(dall_e_file, "dall_e")
        dvae = load_model(load_checkpoint(dvae_file, "dvae"), DiscreteVAE, DVAEConfig)
        source = checkpoint["sources"].get("dvae", {})
        if fingerprint(dvae.state_dict()) != source.get("fingerprint"):
            problem = f"{dall_e_file} learned the tokens of another dVAE than {dvae_file}"
            raise UserError(f"{problem}; pass --dvae_checkpoint {source.get('file')}.")
        dall_e, device = load_model(checkpoint, DallE, DallEConfig), get_device()
        tokenizer = Tokenizer.from_json(checkpoint["tokenizer"])
        files = {"dvae": str(dvae_file), "dall_e": str(dall_e_file)}
        return cls(tokenizer, dall_e.to(device), dvae.to(device), device, files, checkpoint["data"])

    def read(self, prompt: str) -> str:
        """What of a prompt the transformer reads."""
        return self.tokenizer.read(prompt, self.dall_e.config.text_seq_len)

    def draw(self, prompts: list[str], seeds: list[int], prefix: Tensor | None = None, **sampling) -> Tensor:
        """One image per prompt, (B, C, H, H) in [0, 1], decided by its prompt and seed and by prefix (B, n) and
        `sampling`, arguments of DallE.generate."""
        text_tokens, u = self.inputs(prompts, seeds)
        prefix = text_tokens[:, :0] if prefix is None else prefix

        def draw_chunk(text_tokens: Tensor, u: Tensor, prefix: Tensor) -> Tensor:
            return self.dvae.decode(self.dall_e.generate(text_tokens, u=u, prefix=prefix, **sampling))

        return map_in_chunks(draw_chunk, text_tokens, u, prefix, batch_size=128)

    def inputs(self, prompts: list[str], seeds: list[int]) -> tuple[Tensor, Tensor]:
        """Arguments of DallE.generate for prompts and seeds, B each: text tokens (B, T), and u (B, N) of the seeds."""
        text_tokens = self.tokenizer.encode(prompts, self.dall_e.config.text_seq_len)
        u = SeededNoise(seeds).rand((len(seeds), self.dall_e.config.image_seq_len))
        return text_tokens.to(self.device), u.to(self.device)
