"""What unCLIP can do to an image (DALL·E 2, sections 3 and 4). Writes a figure to output/dall_e_2_samples.

An image is split in two: z_i, its CLIP embedding, what CLIP sees in it; and x_T, the noise from which the decoder, given
z_i, comes back to the image, everything else. Change one and keep the other:

variations      fixed z_i, and fresh noise on the way from x_T (section 3.1)
interpolation   from one image's z_i and x_T to another's (section 3.2)
text_diff       z_i moved by the direction between two captions, x_T fixed (section 3.3)
components      z_i cut to its first principal components, x_T fixed (section 4)
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from diffusion import guided
from diffusion_decoder import decode_image_embed, to_x_0
from pipeline import Pipeline, add_model_flags
from torch import Tensor
from utils.cli import ROOT, ArgumentParser, UserError, bounded, seed_number, shortened, start
from utils.data import CaptionedImages, add_data_flags, data_source, load_images
from utils.machine import get_device
from utils.plots import save_grid
from utils.prompts import Prompts
from utils.samples import SeededNoise, sample_captions

PAIRS = ("interpolation", "text_diff")  # modes that take the prompts two by two
DEFAULT_PROMPTS = ["3", "8", "4", "9", "7", "1", "0", "6"]  # of plain digits
NUM_COLUMNS = 8
NUM_COMPONENTS = [1, 2, 4, 6, 9, 16, 32, 64]


def main() -> None:
    args = parse_args()
    pipeline = Pipeline.load(args, get_device())
    if pipeline.upsamplers:
        size = pipeline.decoder.config.image_size
        raise UserError(
            f"The decoder draws {size}x{size} pixels, and what up-samplers add has no x_T of an image to come back from; edit "
            f"with a decoder of the data's size, trained without --decoder_image_size."
        )
    known = Prompts.of_checkpoint(pipeline.data)
    train_set, test_set, _ = load_images(data_source(args, pipeline.data), args.data_dir, pipeline.device)
    args.prompts = known.check(
        args.prompts or (DEFAULT_PROMPTS if known.closed else sample_captions(test_set, NUM_COLUMNS))
    )
    images = choose_images(test_set, args.prompts, args.seed)
    x_0 = images.images()
    z_i = pipeline.clip.encode_images(images)
    x_T = pipeline.decoder.diffusion.invert(guided(pipeline.decoder, 1.0, z_i, None), to_x_0(x_0), args.sampling_steps)

    if args.mode == "variations":
        rows, captions = variations(pipeline, z_i, x_T, args)
    elif args.mode == "interpolation":
        rows, captions = interpolation(pipeline, z_i, x_T, args)
    elif args.mode == "text_diff":
        rows, captions = text_diff(pipeline, z_i[::2], x_T[::2], args)
    else:
        rows, captions = components(pipeline, z_i, x_T, pipeline.clip.encode_images(train_set), args)

    originals = x_0[::2] if args.mode in PAIRS else x_0
    cells = torch.cat([originals[:, None], rows], dim=1)  # (R, 1 + K, C, H, H)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    file = args.output_dir / f"{args.mode}.png"
    save_grid(cells.flatten(0, 1), file, cells.shape[1], ["image", *captions] * len(cells))
    print(f"{file} is written.")


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("mode", choices=["variations", "interpolation", "text_diff", "components"])
    parser.add_argument(
        "--prompts",
        nargs="+",
        metavar="PROMPT",
        help="a test image of each is edited; taken two by two, from and to, by interpolation and text_diff (default: some)",
    )
    parser.add_argument("--eta", type=bounded(float, 0, 1), default=1.0, help="how much fresh noise variations get")
    parser.add_argument("--sampling_steps", type=bounded(int, 5, 1000), default=50, help="there and back")
    parser.add_argument("--seed", type=seed_number, default=0, help="of the choice of images and of fresh noise")
    parser.add_argument(
        "--output_dir", type=Path, default=ROOT / "output" / "dall_e_2_samples", help="where the figure goes"
    )
    add_model_flags(parser)
    add_data_flags(parser)
    args = parser.parse_args()
    if args.mode in PAIRS and len(args.prompts or ()) % 2:
        raise UserError(f"{args.mode} takes the prompts two by two, and there are {len(args.prompts)}.")
    return args


def choose_images(test_set: CaptionedImages, prompts: list[str], seed: int) -> CaptionedImages:
    """A test image for each prompt. Raises UserError for a prompt that may be said of none."""
    rng, chosen = random.Random(seed), []
    for prompt in prompts:
        fitting = test_set.showing(prompt).tolist()
        if not fitting:
            raise UserError(f"No test image has the caption {shortened(prompt)}; give one of theirs.")
        chosen.append(rng.choice(fitting))
    return test_set.subset(torch.tensor(chosen, device=test_set.device))


def decode(pipeline: Pipeline, z_i: Tensor, x_T: Tensor, args, **sampler) -> Tensor:
    """Rows of embeddings (R, K, E) and of noise (R, K, C, H, H) to rows of images."""
    images = decode_image_embed(
        pipeline.decoder, z_i.flatten(0, 1), None, x_T.flatten(0, 1), num_steps=args.sampling_steps, **sampler
    )
    return images.view(x_T.shape)


def variations(pipeline: Pipeline, z_i: Tensor, x_T: Tensor, args) -> tuple[Tensor, list[str]]:
    """Section 3.1: the same z_i, x_T, and fresh noise on the way; without it, the image comes back."""
    back = decode(pipeline, z_i[:, None], x_T[:, None], args)
    z_i, x_T = (x[:, None].expand(-1, NUM_COLUMNS - 1, *x.shape[1:]) for x in (z_i, x_T))
    noise = SeededNoise([args.seed + i for i in range(x_T.shape[0] * x_T.shape[1])])
    varied = decode(pipeline, z_i, x_T, args, eta=args.eta, randn=noise.randn)
    return torch.cat([back, varied], dim=1), ["eta 0"] + [f"eta {args.eta:g}"] * (NUM_COLUMNS - 1)


def interpolation(pipeline: Pipeline, z_i: Tensor, x_T: Tensor, args) -> tuple[Tensor, list[str]]:
    """Section 3.2: both z_i and x_T go from one image to the other on the sphere."""
    fractions = torch.linspace(0, 1, NUM_COLUMNS, device=z_i.device)
    between_z_i = torch.stack([slerp(z_i[::2], z_i[1::2], fraction) for fraction in fractions], dim=1)
    between_x_T = torch.stack([slerp(x_T[::2], x_T[1::2], fraction) for fraction in fractions], dim=1)
    return decode(pipeline, between_z_i, between_x_T, args), [f"{fraction:.2f}" for fraction in fractions]


def text_diff(pipeline: Pipeline, z_i: Tensor, x_T: Tensor, args) -> tuple[Tensor, list[str]]:
    """Section 3.3: z_i turned toward the direction from one caption to the other, x_T as it is."""
    z_t, _ = pipeline.clip.encode_prompts(args.prompts, z_i.device)
    z_d = F.normalize(z_t[1::2] - z_t[::2], dim=-1)
    fractions = torch.linspace(0, 0.5, NUM_COLUMNS, device=z_i.device)
    turned = torch.stack([slerp(z_i, z_d, fraction) for fraction in fractions], dim=1)
    x_T = x_T[:, None].expand(-1, NUM_COLUMNS, *x_T.shape[1:])
    return decode(pipeline, turned, x_T, args), [f"{fraction:.2f}" for fraction in fractions]


def components(pipeline: Pipeline, z_i: Tensor, x_T: Tensor, of_all: Tensor, args) -> tuple[Tensor, list[str]]:
    """Section 4: z_i with only the first principal components of all embeddings (N, E) left."""
    mean = of_all.mean(dim=0)
    _, _, directions = torch.linalg.svd(torch.cov((of_all - mean).T))  # rows, the widest spread first
    numbers = [number for number in NUM_COMPONENTS if number <= len(mean)]
    cut = [mean + (z_i - mean) @ directions[:number].T @ directions[:number] for number in numbers]
    cut = F.normalize(torch.stack(cut, dim=1), dim=-1)
    x_T = x_T[:, None].expand(-1, len(numbers), *x_T.shape[1:])
    return decode(pipeline, cut, x_T, args), [str(number) for number in numbers]


def slerp(a: Tensor, b: Tensor, fraction: Tensor) -> Tensor:
    """The point at `fraction` of the way from a (B, ...) to b (B, ...) along the arc between them."""
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    cos = F.cosine_similarity(flat_a, flat_b, dim=1).clamp(-1 + 1e-6, 1 - 1e-6)
    angle = torch.arccos(cos).view(-1, *[1] * (a.ndim - 1))
    return (torch.sin((1 - fraction) * angle) * a + torch.sin(fraction * angle) * b) / torch.sin(angle)


if __name__ == "__main__":
    start(main)
