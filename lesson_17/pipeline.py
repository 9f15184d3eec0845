"""The three models together: a prompt -> CLIP text -> prior -> image embedding -> decoder -> picture."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from clip import CLIP, CLIPConfig, PretrainedCLIP
from diffusion_decoder import Decoder, DecoderConfig, decode_image_embed
from diffusion_prior import DiffusionPrior, PriorConfig, draw_image_embed
from lesson_08.bpe import PAD_ID, Tokenizer
from torch import Tensor
from utils.checkpoints import find_checkpoint, fingerprint, load_checkpoint, load_model
from utils.cli import ArgumentParser, UserError, bounded
from utils.data import CaptionedImages, map_in_parts
from utils.machine import free_memory, say
from utils.samples import SeededNoise

DEFAULT_SAMPLING = {
    "prior_guidance_scale": 1.0,
    "guidance_scale": 2.0,
    "sampling_steps": 20,
    "sampler": "ddim",
}


def add_model_flags(parser: ArgumentParser) -> None:
    for name in ("clip", "prior", "decoder"):
        parser.add_argument(f"--{name}_checkpoint", help=f"(default: the newest in output/{name})")
    parser.add_argument(
        "--clip_model", metavar="NAME", help="the pretrained CLIP (default: the one that the prior was trained with)"
    )


def add_sampling_flags(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--guidance_scale",
        type=bounded(float, 0, 100),
        help="how much the decoder exaggerates embedding and caption; 1: not at all",
    )
    parser.add_argument(
        "--prior_guidance_scale",
        type=bounded(float, 0, 100),
        help="how much the prior exaggerates the caption; 1: not at all",
    )
    parser.add_argument(
        "--sampling_steps", type=bounded(int, 1, 1000), help="of the prior and the decoder; more is finer and slower"
    )
    parser.add_argument(
        "--sampler", choices=["ddim", "ddpm"], help="ddim adds no noise on the way, ddpm does and wants more steps"
    )
    parser.set_defaults(**DEFAULT_SAMPLING)


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
    def load(cls, clip_model: str | None, clip_checkpoint: str | None, device, folder=None) -> "FrozenCLIP":
        """The pretrained `clip_model`, or our own from a checkpoint, the newest one for None.

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
            return cls(model, None, {"file": None, "pretrained": clip_model, "fingerprint": fingerprint(model)})
        file = find_checkpoint(clip_checkpoint, "clip", folder)
        if file is None:
            raise UserError("There is no trained CLIP yet; run train_mnist.py first.")
        checkpoint = load_checkpoint(file, "clip")
        model = load_model(checkpoint, CLIP, CLIPConfig).to(device)
        source = {"file": str(file), "pretrained": None, "fingerprint": fingerprint(model)}
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
    nearest = (image_embed @ text_embed.T).argmax(dim=1)
    return (images.caption_ids == nearest[:, None]).any(dim=1).float().mean().item()


def tokenize(tokenizer: Tokenizer, prompts: list[str], text_seq_len: int) -> Tensor:
    """Prompts to text tokens (B, T), each with at least one pad behind it, the end of the text."""
    return add_end(tokenizer.encode(prompts, text_seq_len - 1))


def add_end(text_tokens: Tensor) -> Tensor:
    return F.pad(text_tokens, (0, 1), value=PAD_ID)


@dataclass
class Pipeline:
    """unCLIP: all that it takes from a prompt to a picture."""

    clip: FrozenCLIP
    prior: DiffusionPrior
    decoder: Decoder
    device: torch.device
    files: dict[str, str]  # the checkpoints that it was loaded from
    data: dict  # what the prior's says of the data that it learned from

    @classmethod
    def load(cls, args, device) -> "Pipeline":
        """From the checkpoints that `args` names, the newest ones for None.

        Raises UserError if there are none, or they do not belong together.
        """
        prior_file = find_checkpoint(args.prior_checkpoint, "prior")
        decoder_file = find_checkpoint(args.decoder_checkpoint, "decoder")
        if prior_file is None or decoder_file is None:
            raise UserError("There is no trained prior and decoder yet; run train_mnist.py first.")
        prior, decoder = load_checkpoint(prior_file, "prior"), load_checkpoint(decoder_file, "decoder")
        clip = FrozenCLIP.load(args.clip_model or prior["sources"]["clip"]["pretrained"], args.clip_checkpoint, device)
        for file, checkpoint in ((prior_file, prior), (decoder_file, decoder)):
            source = checkpoint["sources"]["clip"]
            if source["fingerprint"] != clip.source["fingerprint"]:
                trained_on = source["pretrained"] or source["file"]
                raise UserError(f"{file} learned the embeddings of another CLIP, {trained_on}; name the right files.")
        return cls(
            clip,
            load_model(prior, DiffusionPrior, PriorConfig).to(device),
            load_model(decoder, Decoder, DecoderConfig).to(device, memory_format=torch.channels_last),
            device,
            {"clip": clip.source["pretrained"] or clip.source["file"]}
            | {"prior": str(prior_file), "decoder": str(decoder_file)},
            prior["data"],
        )

    def draw(
        self,
        prompts: list[str],
        seeds: list[int],
        prior_guidance_scale: float,
        guidance_scale: float,
        sampling_steps: int,
        sampler: str,
    ) -> Tensor:
        """One image per prompt, (B, C, H, H) in [0, 1], a function of its prompt, its seed and the sampling."""

        def draw_part(prompts: list[str], seeds: list[int]) -> Tensor:
            text_embed, text_encodings = self.clip.encode_prompts(prompts, self.device)
            randn = SeededNoise(seeds).randn
            settings = {"num_steps": sampling_steps, "sampler": sampler, "randn": randn}
            image_embed = draw_image_embed(self.prior, text_embed, text_encodings, prior_guidance_scale, **settings)
            x_T = randn((len(image_embed), *self.image_shape)).to(self.device)
            return decode_image_embed(self.decoder, image_embed, text_encodings, x_T, guidance_scale, **settings)

        return map_in_parts(draw_part, prompts, seeds, batch_size=128)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        c = self.decoder.config
        return c.image_channels, c.image_size, c.image_size
