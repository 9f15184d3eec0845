"""The models together: a prompt -> CLIP text -> prior -> image embedding -> decoder (-> up-samplers) -> picture."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from diffusion_decoder import Decoder, DecoderConfig, decode_image_embed
from diffusion_prior import DiffusionPrior, PriorConfig, draw_image_embed
from diffusion_upsampler import Upsampler, UpsamplerConfig, upsample
from frozen_clip import FrozenCLIP
from torch import Tensor
from utils.checkpoints import (
    MODELS_HELP,
    PRETRAINED,
    PRETRAINED_HELP,
    find_checkpoint,
    find_checkpoints,
    load_checkpoint,
    load_model,
    models_folder,
)
from utils.cli import ROOT, ArgumentParser, UserError, bounded
from utils.data import map_in_parts
from utils.samples import SeededNoise

DEFAULT_SAMPLING = {
    "prior_guidance_scale": 1.5,
    "guidance_scale": 1.5,
    "guidance_interval": (0.0, 1.0),
    "sampling_steps": 20,
    "sampler": "ddim",
}


def add_model_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--models", metavar="FOLDER", help=MODELS_HELP)
    for name in ("clip", "prior", "decoder"):
        parser.add_argument(f"--{name}_checkpoint", help=f"(default: the newest in FOLDER/{name})")
    parser.add_argument(
        "--upsampler_checkpoint",
        nargs="+",
        metavar="FILE",
        help="one for each doubling of the decoder's images, if they are smaller than the data's (default: the newest in "
        "FOLDER/upsampler_SIZE)",
    )
    parser.add_argument(
        "--clip_model", metavar="NAME", help="the pretrained CLIP (default: the one that the prior was trained with)"
    )
    parser.add_argument("--pretrained", choices=PRETRAINED, help=PRETRAINED_HELP)


def add_sampling_flags(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--guidance_scale",
        type=bounded(float, 0, 100),
        help="how much the decoder exaggerates embedding and caption; 1: not at all",
    )
    parser.add_argument(
        "--guidance_interval",
        type=bounded(float, 0, 1),
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="the part of the timesteps, 0 clean and 1 noise, in which there is guidance",
    )
    parser.add_argument(
        "--prior_guidance_scale",
        type=bounded(float, 0, 100),
        help="how much the prior exaggerates the caption; 1: not at all",
    )
    parser.add_argument(
        "--sampling_steps", type=bounded(int, 1, 1000), help="of each diffusion model; more is finer and slower"
    )
    parser.add_argument(
        "--sampler", choices=["ddim", "ddpm"], help="ddim adds no noise on the way, ddpm does and wants more steps"
    )
    parser.set_defaults(**DEFAULT_SAMPLING)


@dataclass
class Pipeline:
    """unCLIP: all that it takes from a prompt to a picture."""

    clip: FrozenCLIP
    prior: DiffusionPrior
    decoder: Decoder
    upsamplers: list[Upsampler]  # one after another, to the data's size; none where the decoder's images have it
    device: torch.device
    files: dict[str, str]  # the checkpoints that it was loaded from
    data: dict  # what the prior's says of the data that it learned from

    @classmethod
    def load(cls, args, device) -> "Pipeline":
        """From the checkpoints that `args` names, the newest ones for None.

        Raises UserError if there are none, or they do not belong together.
        """
        if args.pretrained and (args.clip_checkpoint or args.clip_model):
            raise UserError("--pretrained brings its own CLIP; give one of the two.")
        given = {"prior": args.prior_checkpoint, "decoder": args.decoder_checkpoint}
        files = find_checkpoints(given, args.models, ROOT / "lesson_17/pretrained", args.pretrained)
        prior_file, decoder_file = files.values()
        models = models_folder(args.models)
        prior, decoder = load_checkpoint(prior_file, "prior"), load_checkpoint(decoder_file, "decoder")
        clip_file = args.clip_checkpoint
        if clip_file is None and prior_file.suffix == ".safetensors":  # which has its CLIP beside it
            clip_file = prior_file.with_name("clip.safetensors")
        clip = FrozenCLIP.load(args.clip_model or prior["sources"]["clip"]["pretrained"], clip_file, device, models)
        for file, checkpoint in ((prior_file, prior), (decoder_file, decoder)):
            source = checkpoint["sources"]["clip"]
            if source["fingerprint"] != clip.source["fingerprint"]:
                trained_on = source["pretrained"] or source["file"]
                raise UserError(f"{file} learned the embeddings of another CLIP, {trained_on}; name the right files.")
        upsamplers = load_upsamplers(decoder, args.upsampler_checkpoint, models)
        return cls(
            clip,
            load_model(prior, DiffusionPrior, PriorConfig).to(device),
            load_model(decoder, Decoder, DecoderConfig).to(device, memory_format=torch.channels_last),
            [upsampler.to(device, memory_format=torch.channels_last) for upsampler in upsamplers.values()],
            device,
            {"clip": clip.source["pretrained"] or clip.source["file"]}
            | {"prior": str(prior_file), "decoder": str(decoder_file)}
            | {f"upsampler_{upsampler.config.image_size}": file for file, upsampler in upsamplers.items()},
            prior["data"],
        )

    def draw(
        self,
        prompts: list[str],
        seeds: list[int],
        prior_guidance_scale: float,
        guidance_scale: float,
        guidance_interval: tuple[float, float],
        sampling_steps: int,
        sampler: str,
    ) -> Tensor:
        """One image per prompt, (B, C, H, H) in [0, 1], a function of its prompt, its seed and the sampling."""

        def draw_part(prompts: list[str], seeds: list[int]) -> Tensor:
            settings = {"num_steps": sampling_steps, "sampler": sampler, "randn": SeededNoise(seeds).randn}
            image_embed, text_encodings, x_T = self.inputs(prompts, prior_guidance_scale, **settings)
            images = decode_image_embed(
                self.decoder, image_embed, text_encodings, x_T, guidance_scale, guidance_interval, **settings
            )
            return self.upsample(images, **settings)

        return map_in_parts(draw_part, prompts, seeds, batch_size=128)

    def inputs(
        self, prompts: list[str], prior_guidance_scale: float, randn: Callable, **settings
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the decoder takes for prompts: image embeddings (B, E) from the prior, the prompts' token encodings (B, T, D),
        and noise x_T (B, C, h, h). randn(shape) gives all noise; `settings` go to Diffusion.sample."""
        text_embed, text_encodings = self.clip.encode_prompts(prompts, self.device)
        image_embed = draw_image_embed(
            self.prior, text_embed, text_encodings, prior_guidance_scale, randn=randn, **settings
        )
        return image_embed, text_encodings, randn((len(prompts), *self.image_shape)).to(self.device)

    def upsample(self, images: Tensor, randn: Callable = torch.randn, **settings) -> Tensor:
        """Images (B, C, h, h) in [0, 1] of the decoder's size through all up-samplers, (B, C, H, H); `settings` go to
        Diffusion.sample."""
        for upsampler in self.upsamplers:
            c = upsampler.config
            x_T = randn((len(images), c.image_channels, c.image_size, c.image_size)).to(images.device)
            images = upsample(upsampler, images, x_T, randn=randn, **settings)
        return images

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of what the decoder draws."""
        c = self.decoder.config
        return c.image_channels, c.image_size, c.image_size


def load_upsamplers(decoder: dict, files: list[str] | None, models: Path) -> dict[str, Upsampler]:
    """What brings the images of a decoder, given as its checkpoint, to the data's size: up-samplers by their files, which
    are the newest ones in the folder `models` for None.

    Raises UserError if one is missing or they do not fit.
    """
    size, data, upsamplers = decoder["config"]["image_size"], decoder["data"], {}
    needed = doublings(size, data["image_size"])
    if files and len(files) != len(needed):
        raise UserError(f"The decoder's images want {len(needed)} up-samplers, and {len(files)} are given.")
    for (_, image_size), given in zip_longest(needed, files or ()):
        name = f"upsampler_{image_size}"
        file = find_checkpoint(given, name, models)
        if file is None:
            raise UserError(
                f"The decoder draws {size}x{size} pixels, and there is no up-sampler to {image_size}x{image_size} yet; run "
                f"train_mnist.py --stage upsampler --decoder_image_size {size} --dataset {shlex.quote(data['dataset'])} "
                f"--image_size {data['image_size']} --image_channels {data['image_channels']} --output_dir {models}."
            )
        upsampler = load_model(load_checkpoint(file, name), Upsampler, UpsamplerConfig)
        channels = upsampler.config.image_channels, decoder["config"]["image_channels"]
        if channels[0] != channels[1]:
            raise UserError(f"{file} enlarges images of {channels[0]} channels, and the decoder draws {channels[1]}.")
        upsamplers[str(file)] = upsampler
    return upsamplers


def doublings(size: int, image_size: int) -> list[tuple[int, int]]:
    """The sizes before and after each up-sampler that brings images of `size` to those of image_size: they double them.

    Raises UserError if that does not lead there.
    """
    sizes = [size]
    while sizes[-1] < image_size:
        sizes.append(2 * sizes[-1])
    if sizes[-1] != image_size:
        raise UserError(
            f"Images of {size}x{size} pixels do not come to {image_size}x{image_size} by doubling; --decoder_image_size is "
            f"half of that, or a quarter, and so on."
        )
    return list(zip(sizes, sizes[1:]))
