"""The models together: a prompt -> CLIP text -> prior -> image embedding -> decoder -> picture."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from lesson_17.diffusion_decoder import Decoder, DecoderConfig, decode_image_embed
from lesson_17.diffusion_prior import DiffusionPrior, PriorConfig, draw_image_embed
from lesson_17.frozen_clip import FrozenCLIP
from torch import Tensor
from utils.checkpoints import find_checkpoints, load_checkpoint, load_model, models_folder
from utils.cli import ROOT, ArgumentParser, UserError, bounded
from utils.data import map_in_chunks
from utils.machine import get_device
from utils.samples import SeededNoise, add_checkpoint_flags

DEFAULT_SAMPLING = {"prior_guidance_scale": 1.0, "guidance_scale": 1.25, "sampling_steps": 20, "eta": 0.5}


def add_model_flags(parser: ArgumentParser) -> None:
    """The arguments of Pipeline.load."""
    add_checkpoint_flags(parser, "clip", "prior", "decoder")


def add_sampling_flags(parser: ArgumentParser) -> None:
    """The arguments of Pipeline.draw."""
    add, scale = parser.add_argument, bounded(float, 0, 100)
    add("--guidance_scale", type=scale, help="how much the decoder exaggerates embedding and caption; 1: not at all")
    add("--prior_guidance_scale", type=scale, help="how much the prior exaggerates the caption; 1: not at all")
    add("--sampling_steps", type=bounded(int, 1, 1000), help="of each diffusion model; more is finer and slower")
    add("--eta", type=bounded(float, 0, 1), help="fresh noise in the decoder's steps: 0 is none (DDIM), 1 is DDPM")
    parser.set_defaults(**DEFAULT_SAMPLING)


@dataclass
class Pipeline:
    """Prompts to images: CLIP, the prior and the decoder."""

    clip: FrozenCLIP
    prior: DiffusionPrior
    decoder: Decoder
    device: torch.device
    files: dict[str, str]  # the checkpoints that it was loaded from
    data: dict  # what the prior's checkpoint says of its data

    @classmethod
    def load(
        cls, *, clip_checkpoint=None, prior_checkpoint=None, decoder_checkpoint=None, models=None, pretrained=None
    ) -> "Pipeline":
        """From checkpoint files, for None the newest in the folder `models`; or the included weights for the data set
        `pretrained`. Raises UserError if there are none, or they do not match."""
        if pretrained and clip_checkpoint:
            raise UserError("--pretrained brings its own CLIP; give one of the two.")
        given = {"prior": prior_checkpoint, "decoder": decoder_checkpoint}
        files = find_checkpoints(given, models, ROOT / "lesson_17/pretrained", pretrained)
        checkpoints = {name: load_checkpoint(file, name) for name, file in files.items()}
        if clip_checkpoint is None and files["prior"].suffix == ".safetensors":  # which has its CLIP beside it
            clip_checkpoint = str(files["prior"].with_name("clip.safetensors"))
        clip, device = FrozenCLIP.load(clip_checkpoint, models_folder(models)), get_device()
        for name, checkpoint in checkpoints.items():
            source = checkpoint["sources"]["clip"]
            if source["fingerprint"] != clip.source["fingerprint"]:
                problem = f"{files[name]} learned the embeddings of another CLIP, {source['file']}"
                raise UserError(f"{problem}; name it with --clip_checkpoint.")
        prior = load_model(checkpoints["prior"], DiffusionPrior, PriorConfig).to(device)
        decoder = load_model(checkpoints["decoder"], Decoder, DecoderConfig)
        decoder = decoder.to(device, memory_format=torch.channels_last)
        named = {"clip": clip.source["file"], "prior": str(files["prior"]), "decoder": str(files["decoder"])}
        return cls(clip, prior, decoder, device, named, checkpoints["prior"]["data"])

    def read(self, prompt: str) -> str:
        """What of a prompt CLIP reads."""
        return self.clip.tokenizer.read(prompt, self.clip.model.config.text_seq_len - 1)

    def draw(
        self, prompts: list[str], seeds: list[int],
        prior_guidance_scale: float, guidance_scale: float, sampling_steps: int, eta: float,
    ) -> Tensor:  # fmt: skip
        """One image per prompt, (B, C, H, H) in [0, 1], decided by its prompt, its seed and the other arguments."""

        def draw_chunk(prompts: list[str], seeds: list[int]) -> Tensor:
            randn = SeededNoise(seeds).randn
            image_embed, text_encodings, x_T = self.inputs(prompts, prior_guidance_scale, sampling_steps, randn)
            return decode_image_embed(
                self.decoder, image_embed, text_encodings, x_T, guidance_scale, sampling_steps, eta=eta, randn=randn
            )

        return map_in_chunks(draw_chunk, prompts, seeds, batch_size=128)

    def inputs(
        self, prompts: list[str], prior_guidance_scale: float, num_steps: int, randn: Callable
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The decoder's inputs for prompts: image embeddings (B, E) from the prior, the prompts' token encodings (B, T,
        D), and noise x_T (B, C, H, H). randn(shape) draws all noise."""
        text_embed, text_encodings = self.clip.encode_prompts(prompts, self.device)
        image_embed = draw_image_embed(self.prior, text_embed, text_encodings, prior_guidance_scale, num_steps, randn)
        c = self.decoder.config
        x_T = randn((len(prompts), c.image_channels, c.image_size, c.image_size)).to(self.device)
        return image_embed, text_encodings, x_T
