"""Draw pictures for prompts with a trained DALL·E. Writes PNGs, samples.csv and a grid to output/dall_e_samples."""

import random
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from bpe import Tokenizer
from dall_e import DallE, DallEConfig
from dvae import DiscreteVAE, DVAEConfig
from lesson_17.frozen_clip import FrozenCLIP
from torch import Tensor
from utils.checkpoints import (
    MODELS_HELP,
    PRETRAINED,
    PRETRAINED_HELP,
    find_checkpoints,
    fingerprint,
    load_checkpoint,
    load_model,
    models_folder,
    newest_checkpoint,
)
from utils.cli import ROOT, ArgumentParser, UserError, bounded, start
from utils.data import add_data_flags, data_source, load_images, map_in_parts
from utils.machine import Threads, get_device
from utils.plots import save_grid
from utils.prompts import Prompts
from utils.samples import SeededNoise, add_sample_flags, choose_prompts, nearest_candidates, write_images

DEFAULT_SAMPLING = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "guidance_scale": 2.0,
    "first_guidance_scale": 1.0,
}


@dataclass
class Pipeline:
    """Prompts to pictures: a tokenizer, a transformer, and the dVAE whose tokens the transformer learned."""

    tokenizer: Tokenizer
    dall_e: DallE
    dvae: DiscreteVAE
    files: dict[str, str]  # the checkpoints that it was loaded from
    data: dict  # what the transformer's says of the data that it learned from

    @classmethod
    def load(
        cls,
        dvae_checkpoint: str | None,
        dall_e_checkpoint: str | None,
        device,
        models: str | None = None,
        pretrained: str | None = None,
    ) -> "Pipeline":
        """From checkpoint files, the newest ones in the folder `models` for None; or the included weights for the data set
        `pretrained`.

        Raises UserError if there are none, or they do not match.
        """
        given = {"dvae": dvae_checkpoint, "dall_e": dall_e_checkpoint}
        dvae_file, dall_e_file = find_checkpoints(given, models, ROOT / "lesson_08/pretrained", pretrained).values()
        checkpoint = load_checkpoint(dall_e_file, "dall_e")
        dvae = load_model(load_checkpoint(dvae_file, "dvae"), DiscreteVAE, DVAEConfig)
        source = checkpoint["sources"].get("dvae", {})
        if fingerprint(dvae.state_dict()) != source.get("fingerprint"):
            trained_on = source.get("file")
            raise UserError(
                f"{dall_e_file} learned the tokens of another dVAE than {dvae_file}; pass --dvae_checkpoint {trained_on}."
            )
        dall_e = load_model(checkpoint, DallE, DallEConfig)
        tokenizer = Tokenizer.from_json(checkpoint["tokenizer"])
        files = {"dvae": str(dvae_file), "dall_e": str(dall_e_file)}
        return cls(tokenizer, dall_e.to(device), dvae.to(device), files, checkpoint["data"])

    def draw(self, prompts: list[str], seeds: list[int], prefix: Tensor | None = None, **sampling) -> Tensor:
        """One image per prompt, (B, C, H, H) in [0, 1], a function of its prompt, its seed and `sampling`, the
        arguments of DallE.generate; `prefix` (B, n) are image tokens to go on from."""
        text_tokens, u = self.inputs(prompts, seeds)
        prefix = text_tokens[:, :0] if prefix is None else prefix

        def draw_part(text_tokens: Tensor, u: Tensor, prefix: Tensor) -> Tensor:
            return self.dvae.decode(self.dall_e.generate(text_tokens, u=u, prefix=prefix, **sampling))

        return map_in_parts(draw_part, text_tokens, u, prefix, batch_size=128)

    def inputs(self, prompts: list[str], seeds: list[int]) -> tuple[Tensor, Tensor]:
        """What DallE.generate takes for prompts and seeds, B each: text tokens (B, T), and the numbers u (B, N) by which each
        seed decides its image's draws."""
        device, config = self.dall_e.start.device, self.dall_e.config
        u = SeededNoise(seeds).rand((len(seeds), config.image_seq_len))
        return self.tokenizer.encode(prompts, config.text_seq_len).to(device), u.to(device)

    def decode_so_far(self, image_tokens: Tensor) -> Tensor:
        """The first n tokens of images, (B, n), to images (B, C, H, H) in [0, 1], gray where no token is yet. Around them the
        dVAE is given the tokens of a black image."""
        c, n = self.dvae.config, image_tokens.shape[1]
        rest = self.empty_image[n:].expand(len(image_tokens), -1)
        images = self.dvae.decode(torch.cat([image_tokens, rest], dim=1))
        drawn = torch.arange(c.grid_size**2, device=images.device).view(1, 1, c.grid_size, c.grid_size) < n
        return torch.where(F.interpolate(drawn.float(), images.shape[-2:]) > 0, images, 0.4)

    @cached_property
    def empty_image(self) -> Tensor:
        """The tokens of a black image, (N,)."""
        c = self.dvae.config
        black = torch.zeros(1, c.image_channels, c.image_size, c.image_size, device=self.dall_e.start.device)
        return self.dvae.encode(black)[0]


def main() -> None:
    args = parse_args()
    device = get_device()
    pipeline = Pipeline.load(args.dvae_checkpoint, args.dall_e_checkpoint, device, args.models, args.pretrained)
    Threads(0)
    if args.candidates:
        clip = load_clip(args, pipeline.data, device)
    prompts, columns = choose_prompts(args, Prompts.of_checkpoint(pipeline.data))
    seeds = [args.seed + i for i in range(len(prompts))]
    sampling = {name: getattr(args, name) for name in DEFAULT_SAMPLING}
    if args.complete_rows:
        originals, kept, prefix = image_tops(pipeline, prompts, args)
        images = pipeline.draw(prompts, seeds, prefix=prefix, **sampling)
    else:
        images = pipeline.draw(prompts, seeds, **sampling)
    if args.candidates:  # section 2.6
        kept = nearest_candidates(clip.similarity(images, prompts), args.candidates, args.num_samples)
        images, prompts, seeds = images[kept], [prompts[i] for i in kept], [seeds[i] for i in kept]

    write_images(images, prompts, seeds, args.output_dir)
    if args.complete_rows:
        images = torch.cat([torch.cat(parts) for parts in zip(*(x.split(columns) for x in (originals, kept, images)))])
        rows = [prompts[i : i + columns] for i in range(0, len(prompts), columns)]
        captions = [c for row in rows for c in ["original"] * len(row) + ["kept"] * len(row) + row]
        save_grid(images, args.output_dir / "grid.png", columns, captions)
    else:
        save_grid(images, args.output_dir / "grid.png", columns, prompts)
    print(f"{len(prompts)} images, samples.csv and grid.png are in {args.output_dir}")


def parse_args():
    parser = ArgumentParser(__doc__)
    add_sample_flags(parser, ROOT / "output" / "dall_e_samples")
    add_sampling_flags(parser)
    parser.add_argument(
        "--complete_rows",
        type=bounded(int, 0),
        default=0,
        help="take this many rows of tokens from a test image, of --dataset, and draw the rest",
    )
    parser.add_argument(
        "--clip_checkpoint",
        help="chooses among --candidates (default: the newest in output/clip, or the included one)",
    )
    parser.add_argument(
        "--clip_model", metavar="NAME", help="a pretrained CLIP to choose, in place of --clip_checkpoint"
    )
    add_model_flags(parser)
    add_data_flags(parser)
    args = parser.parse_args()
    if args.candidates and args.complete_rows:
        raise UserError(
            "--candidates are all of one prompt, and --complete_rows of different images; give one of the two."
        )
    if not args.candidates and (args.clip_checkpoint or args.clip_model):
        raise UserError("CLIP chooses among --candidates; say how many.")
    return args


def add_model_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--models", metavar="FOLDER", help=MODELS_HELP)
    parser.add_argument("--dvae_checkpoint", help="(default: the newest in FOLDER/dvae)")
    parser.add_argument("--dall_e_checkpoint", help="(default: the newest in FOLDER/dall_e)")
    parser.add_argument("--pretrained", choices=PRETRAINED, help=PRETRAINED_HELP)


def load_clip(args, data: dict, device) -> FrozenCLIP:
    """The CLIP that chooses among candidates: the one that was named, the newest, or the included one for `data`.

    Raises UserError if there is none, or it learned from other images.
    """
    file, models = args.clip_checkpoint, models_folder(args.models)
    trained = newest_checkpoint(models / "clip", "clip")
    if not file and (args.pretrained or trained is None) and data["dataset"] in PRETRAINED:
        file = ROOT / "lesson_17/pretrained" / data["dataset"] / "clip.safetensors"
    clip = FrozenCLIP.load(args.clip_model, file, device, models)
    clip.check_data(data)
    return clip


def add_sampling_flags(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--temperature",
        type=bounded(float, 0, 100),
        help="below 1, likely tokens become likelier; 0 takes the likeliest",
    )
    parser.add_argument("--top_k", type=bounded(int, 0), help="draw among the k likeliest tokens; 0: among all")
    parser.add_argument(
        "--top_p",
        type=bounded(float, 1e-6, 1),
        help="draw among the likeliest tokens of this total probability",
    )
    parser.add_argument(
        "--guidance_scale",
        type=bounded(float, 0, 100),
        help="how much the caption is exaggerated at the last token; 1: not at all",
    )
    parser.add_argument(
        "--first_guidance_scale",
        type=bounded(float, 0, 100),
        help="the same at the first token; between the two it changes evenly",
    )
    parser.set_defaults(**DEFAULT_SAMPLING)


def image_tops(pipeline: Pipeline, prompts: list[str], args) -> tuple[Tensor, Tensor, Tensor]:
    """For each prompt a test image of which it may be said, or any if there is none; the same with only its top rows left,
    (B, C, H, H) both; and the tokens of those rows, computed from them alone, (B, rows * w)."""
    config = pipeline.dvae.config
    if args.complete_rows >= config.grid_size:
        raise UserError(
            f"--complete_rows {args.complete_rows} leaves nothing to draw; images have {config.grid_size} rows of tokens."
        )
    _, test_set, _ = load_images(data_source(args, pipeline.data), args.data_dir, pipeline.dall_e.start.device)
    rng = random.Random(args.seed)
    chosen = [rng.choice(test_set.showing(prompt).tolist() or range(len(test_set))) for prompt in prompts]
    images = test_set.images(torch.tensor(chosen))
    pixel_rows = args.complete_rows * config.image_size // config.grid_size
    kept = images.clone()
    kept[:, :, pixel_rows:] = 0.5
    return images, kept, pipeline.dvae.encode(images[:, :, :pixel_rows])


if __name__ == "__main__":
    start(main)
