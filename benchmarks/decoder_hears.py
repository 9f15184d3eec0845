"""What lesson 17's decoder listens to, unguided: to the embedding, the caption or both, by how clear the embedding is; and at
which timestep the digit is decided. Writes decoder_hears.csv.

An image's margin is the cosine of its embedding with the nearest caption of its digit, less that with the nearest other
one. The rows `from t` start from a real image with the noise of t: what is right from there, and not from T, went wrong
before t. How much a picture follows its embedding is the slope of its embedding's deviation over that of the image's,
each from the mean of its digit: 1 if it is taken over whole, 0 if not at all.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
import torch.nn.functional as F
from lesson_17.clip import valid_pairs
from lesson_17.diffusion import guided
from lesson_17.diffusion_decoder import from_x_0, to_x_0
from lesson_17.frozen_clip import EmbeddedImages
from lesson_17.pipeline import DEFAULT_SAMPLING, Pipeline, add_model_flags
from torch import Tensor
from utils.cli import ArgumentParser, UserError, arguments_for, bounded, new_folder, positive_int, start
from utils.data import map_in_chunks
from utils.datasets import add_data_flags, data_source, load_images
from utils.samples import SeededNoise
from utils.scoring import Judge, at_random, check_digits, digits_of
from utils.tables import write_rows

ETA = 1.0  # without guidance, all of the fresh noise has the most right
STARTS = [900, 800, 700, 600, 500, 400, 250]


def main() -> None:
    args = parse_args()
    pipeline = Pipeline.load(**arguments_for(args, Pipeline.load))
    asked = data_source(args, pipeline.data)
    if asked.dataset == "colored_mnist" or asked.image_size != pipeline.decoder.config.image_size:
        raise UserError("decoder_hears.py needs plain digits, and a decoder of their size.")
    train_set, test_set, source = load_images(asked, args.data_dir, pipeline.device)
    check_digits(source, "decoder_hears.py")
    judge = Judge(source, train_set, test_set)
    images = at_random(test_set, args.num_images)
    held_out, digits, decoder = EmbeddedImages.of(pipeline.clip, images), digits_of(images), pipeline.decoder
    z_i, x_0 = held_out.image_embed, to_x_0(images.images())
    z_text, encodings = held_out.captions[images.caption_ids[:, 0]]
    noise = SeededNoise(list(range(len(x_0)))).randn(x_0.shape).to(x_0)
    fifths = margins(held_out).argsort().chunk(5)
    no_image = decoder.null_image_embed.expand_as(z_i)
    no_caption = decoder.null_caption.expand_as(encodings)

    def measured(name: str, z: Tensor, text: Tensor, x_t: Tensor, first_t: int) -> dict:
        drawn = from_x_0(draw(decoder, z, text, x_t, first_t))
        right = judge.reader.read(drawn)["digit"] == digits
        parts = {f"fifth {i + 1}": right[fifth].float().mean().item() for i, fifth in enumerate(fifths)}
        z_drawn = map_in_chunks(torch.no_grad()(pipeline.clip.model.encode_image), drawn)
        follows = slope(deviation(z_i, digits), deviation(z_drawn, digits))
        row = {"decoded": name, "right": right.float().mean().item(), **parts, "follows": follows}
        print(", ".join(f"{k} {v:.3f}" if isinstance(v, float) else v for k, v in row.items()), flush=True)
        return row

    last_t = decoder.diffusion.num_timesteps
    rows = [
        measured("embedding and caption", z_i, encodings, noise, last_t),
        measured("embedding alone", z_i, no_caption, noise, last_t),
        measured("caption alone", no_image, encodings, noise, last_t),
        measured("the caption's embedding alone", z_text, no_caption, noise, last_t),
    ]
    for t in args.starts:
        x_t = decoder.diffusion.q_sample(x_0, torch.full((len(x_0),), t, device=x_0.device), noise)
        rows.append(measured(f"embedding and caption, from t {t}", z_i, encodings, x_t, t))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_rows(args.output_dir / "decoder_hears.csv", rows)


def draw(decoder, z_i: Tensor, encodings: Tensor, x_t: Tensor, first_t: int) -> Tensor:
    """x_0 (B, C, H, H) from x_t (B, C, H, H) at first_t, by the default number of steps."""
    later = [t for t in decoder.diffusion.timesteps(DEFAULT_SAMPLING["sampling_steps"]) if t < first_t]
    steps = [torch.tensor(first_t), *later]

    def chunk(z_i: Tensor, encodings: Tensor, x: Tensor, seeds: list[int]) -> Tensor:
        network, randn = guided(decoder, 1.0, z_i, encodings), SeededNoise(seeds).randn
        with torch.no_grad():
            for t, s in zip(steps, steps[1:]):
                x, _ = decoder.diffusion.step(network, x, t, s, ETA, randn, 1.0)
        return x

    fresh = list(range(len(x_t), 2 * len(x_t)))  # other seeds than those of x_t
    return map_in_chunks(chunk, z_i, encodings, x_t, fresh, batch_size=128)


def deviation(z: Tensor, digits: Tensor) -> Tensor:
    """Embeddings (B, E) less the mean of their digit, of digits (B,)."""
    is_digit = F.one_hot(digits).float()  # (B, 10)
    mean = is_digit.T @ z / is_digit.sum(dim=0).clamp(min=1)[:, None]
    return z - mean[digits]


def slope(x: Tensor, y: Tensor) -> float:
    """That of the line through 0 nearest to y (B, E) over x (B, E)."""
    return ((x * y).sum() / x.square().sum()).item()


def margins(held_out: EmbeddedImages) -> Tensor:
    """How much nearer each image is to a caption of its own than to the best other one, (N,)."""
    every_caption = torch.arange(len(held_out.images.captions), device=held_out.image_embed.device)
    text_embed, _ = held_out.captions[every_caption]
    cosines = held_out.image_embed @ text_embed.T
    is_valid = valid_pairs(every_caption, held_out.images.caption_ids)
    own, other = cosines.masked_fill(~is_valid, -2), cosines.masked_fill(is_valid, -2)
    return own.amax(dim=1) - other.amax(dim=1)


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--num_images", type=positive_int, default=1000, help="test images")
    starts = {"type": bounded(int, 1, 1000), "default": STARTS, "help": "timesteps to start from real images"}
    parser.add_argument("--starts", nargs="*", **starts)
    parser.add_argument("--output_dir", type=new_folder, default=ROOT / "output/hears", help="where the table goes")
    add_model_flags(parser)
    add_data_flags(parser)
    return parser.parse_args()


if __name__ == "__main__":
    start(main)
