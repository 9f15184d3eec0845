"""Draw digits for prompts with a trained DALL·E. Writes PNGs, samples.csv and a grid to output/dall_e_samples."""

import csv
import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from accelerate import PartialState
from dall_e import DallE, DallEConfig
from dvae import DiscreteVAE, DVAEConfig
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from utils.checkpoints import find_checkpoint, fingerprint, load_checkpoint, load_model
from utils.cli import ROOT, ArgumentParser, UserError, add_data_flags, number, positive_int, run, seed_number
from utils.data import load_digits
from utils.plots import save_grid
from utils.prompts import DIGIT_OF_PROMPT, PROMPTS, PromptTokenizer, check_prompt

NUM_RANDOM = 64  # prompts where none are given, an 8x8 grid
SLICE = 128  # images drawn at once
DEFAULT_SAMPLING = {"temperature": 1.0, "top_k": 0, "top_p": 0.95, "guidance_scale": 2.0}


@dataclass
class Pipeline:
    """Prompts to pictures: a tokenizer, a transformer, and the dVAE whose tokens the transformer learned."""

    tokenizer: PromptTokenizer
    dall_e: DallE
    dvae: DiscreteVAE

    @classmethod
    def load(cls, dvae_checkpoint: str | None, dall_e_checkpoint: str | None, device) -> "Pipeline":
        """From checkpoint files, the newest ones for None. Raises UserError if there are none, or they do not match."""
        dvae_file = find_checkpoint(dvae_checkpoint, "dvae")
        dall_e_file = find_checkpoint(dall_e_checkpoint, "dall_e")
        if dvae_file is None or dall_e_file is None:
            raise UserError("There is no trained model yet; run train_mnist.py first.")
        checkpoint = load_checkpoint(dall_e_file, "dall_e")
        dvae = load_model(load_checkpoint(dvae_file, "dvae"), DiscreteVAE, DVAEConfig)
        if fingerprint(dvae) != checkpoint["dvae"]["fingerprint"]:
            trained_on = checkpoint["dvae"]["file"]
            raise UserError(
                f"{dall_e_file} learned the tokens of another dVAE than {dvae_file}; pass --dvae_checkpoint {trained_on}."
            )
        dall_e = load_model(checkpoint, DallE, DallEConfig)
        return cls(PromptTokenizer.from_json(checkpoint["tokenizer"]), dall_e.to(device), dvae.to(device))

    def draw(self, prompts: list[str], seeds: list[int], prefix: Tensor | None = None, **sampling) -> Tensor:
        """One image per prompt, (B, C, H, H) in [0, 1], a function of its prompt, its seed and `sampling`, the
        arguments of DallE.generate; `prefix` (B, n) are image tokens to go on from."""
        device = self.dall_e.start.device
        text_tokens = self.tokenizer.encode(prompts, self.dall_e.config.text_seq_len).to(device)
        num_tokens = self.dall_e.config.image_seq_len
        u = torch.stack([torch.rand(num_tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds]).to(
            device
        )
        images = []
        for i in range(0, len(prompts), SLICE):
            part = slice(i, i + SLICE)
            tokens = self.dall_e.generate(
                text_tokens[part], u=u[part], prefix=None if prefix is None else prefix[part], **sampling
            )
            images.append(self.dvae.decode(tokens))
        return torch.cat(images)


def main() -> None:
    args = parse_args()
    pipeline = Pipeline.load(args.dvae_checkpoint, args.dall_e_checkpoint, PartialState().device)
    prompts, columns = choose_prompts(args)
    seeds = [args.seed + i for i in range(len(prompts))]
    sampling = {name: getattr(args, name) for name in DEFAULT_SAMPLING}
    if args.complete_rows:
        originals, prefix = image_tops(pipeline, prompts, args)
        images = pipeline.draw(prompts, seeds, prefix=prefix, **sampling)
    else:
        images = pipeline.draw(prompts, seeds, **sampling)

    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_images(images, prompts, seeds, args.output_dir)
    if args.complete_rows:
        kept = originals.clone()
        kept[:, :, args.complete_rows * images.shape[-1] // pipeline.dvae.config.grid_size :] = 0.5
        images = torch.cat([torch.cat(parts) for parts in zip(*(x.split(columns) for x in (originals, kept, images)))])
        captions = [c for row in range(0, len(prompts), columns) for c in row_captions(prompts[row : row + columns])]
        save_grid(images, args.output_dir / "grid.png", columns, captions)
    else:
        save_grid(images, args.output_dir / "grid.png", columns, prompts)
    print(f"{len(prompts)} images, samples.csv and grid.png are in {args.output_dir}")


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--prompts", nargs="+", metavar="PROMPT", help="digits as words or numerals (default: 64 random ones)"
    )
    parser.add_argument("--num_samples", type=positive_int, default=1, help="images of each prompt")
    parser.add_argument(
        "--temperature", type=number(float, 0, 100), help="below 1 plays safe; 0 takes the likeliest token"
    )
    parser.add_argument("--top_k", type=number(int, 0), help="draw among the k likeliest tokens; 0: among all")
    parser.add_argument(
        "--top_p",
        type=number(float, 1e-6, 1),
        help="draw among the likeliest tokens of this total probability",
    )
    parser.add_argument(
        "--guidance_scale",
        type=number(float, 0, 100),
        help="how much the caption is exaggerated; 1: not at all",
    )
    parser.add_argument(
        "--complete_rows",
        type=number(int, 0),
        default=0,
        help="keep so many rows of tokens of test images, and draw the rest",
    )
    parser.add_argument("--seed", type=seed_number, default=0, help="of the first image; the next has the next seed")
    parser.add_argument("--dvae_checkpoint", help="(default: the newest in output/dvae)")
    parser.add_argument("--dall_e_checkpoint", help="(default: the newest in output/dall_e)")
    parser.add_argument(
        "--output_dir", type=Path, default=ROOT / "output" / "dall_e_samples", help="where the images go"
    )
    add_data_flags(parser)
    parser.set_defaults(**DEFAULT_SAMPLING)
    return parser.parse_args()


def choose_prompts(args) -> tuple[list[str], int]:
    """The prompt of each image, and the columns of the grid: num_samples of each given prompt, or random ones."""
    if args.prompts is None:
        rng = random.Random(args.seed)
        prompts = [rng.choice(PROMPTS) for _ in range(NUM_RANDOM)]
        for row in range(0, NUM_RANDOM, 8):
            print(" ".join(prompts[row : row + 8]))
        return [prompt for prompt in prompts for _ in range(args.num_samples)], 8 * args.num_samples
    try:
        known = [check_prompt(prompt) for prompt in args.prompts]
    except ValueError as error:
        raise UserError(f"{error}.") from error
    prompts = [prompt for prompt in known for _ in range(args.num_samples)]
    return prompts, args.num_samples if args.num_samples > 1 else min(len(prompts), 10)


def image_tops(pipeline: Pipeline, prompts: list[str], args) -> tuple[Tensor, Tensor]:
    """For each prompt a test image of its digit (B, C, H, H), and the tokens of its top rows, computed from those
    rows alone, (B, rows * w)."""
    config = pipeline.dvae.config
    if args.complete_rows >= config.grid_size:
        raise UserError(
            f"--complete_rows {args.complete_rows} leaves nothing to draw; images have {config.grid_size} rows of tokens."
        )
    device = pipeline.dall_e.start.device
    _, test_set = load_digits(args.dataset, args.data_dir, config.image_channels, device)
    rng = random.Random(args.seed)
    of_digit = {digit: torch.where(test_set.labels == digit)[0].tolist() for digit in DIGIT_OF_PROMPT.values()}
    images, _ = test_set[
        torch.tensor([rng.choice(of_digit[DIGIT_OF_PROMPT[prompt]]) for prompt in prompts], device=device)
    ]
    pixel_rows = args.complete_rows * config.image_size // config.grid_size
    return images, pipeline.dvae.encode(images[:, :, :pixel_rows])


def row_captions(prompts: list[str]) -> list[str]:
    return ["original"] * len(prompts) + ["kept"] * len(prompts) + prompts


def write_images(images: Tensor, prompts: list[str], seeds: list[int], folder: Path) -> None:
    """Each image (C, H, H) in [0, 1] as a PNG of its own size, and samples.csv with a row for each."""
    names = [f"{i:04d}-{prompt}.png" for i, prompt in enumerate(prompts)]
    for name, image in zip(names, (images.cpu() * 255).round().to(torch.uint8)):
        to_pil_image(image).save(folder / name)
    with open(folder / "samples.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "prompt", "seed"])
        writer.writerows(zip(names, prompts, seeds))


if __name__ == "__main__":
    run(main)
