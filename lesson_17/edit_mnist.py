"""What unCLIP can do to an image (DALL·E 2, sections 3 and 4). Writes a figure to output/dall_e_2_samples.

An image is split in two: z_i, its CLIP embedding, which is what CLIP sees in it; and x_T, the noise from which the decoder,
given z_i, comes back to the image, which is everything else. Change one and keep the other:

variations:     the same z_i, and fresh noise on the way from x_T (section 3.1)
interpolation:  from one image's z_i and x_T to another's, and each of the two alone (section 3.2)
text_diff:      z_i turned toward the difference of two captions, the same x_T (section 3.3)
components:     z_i cut to its first principal components, the same x_T and a random one (section 4)
inpaint:        a box of the image drawn anew for another caption (RePaint, arXiv 2201.09865)

R rows of the figure, K images in a row, B images, E size of CLIP's embeddings, C image channels, H image height and width.
"""

import math
import random
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from lesson_17.diffusion import Diffusion, guided
from lesson_17.diffusion_decoder import Decoder, decode_image_embed, from_x_0, to_x_0
from lesson_17.diffusion_prior import draw_image_embed
from lesson_17.pipeline import Pipeline, add_model_flags
from torch import Tensor
from utils.cli import ROOT, ArgumentParser, UserError, arguments_for, bounded, new_folder, seed_number, shortened, start
from utils.data import CaptionedImages
from utils.datasets import add_data_flags, data_source, load_images
from utils.machine import Threads
from utils.plots import save_grid
from utils.prompts import Prompts
from utils.samples import SeededNoise, sample_captions, say_what_is_cut

PAIRS = ("interpolation", "text_diff", "inpaint")  # modes that take the prompts two by two
DIGIT_PROMPTS = ["3", "8", "4", "9", "7", "1", "0", "6"]
COLOR_PROMPTS = ["red 7", "blue 7", "thin green 4", "thick green 4", "yellow 3", "yellow 8", "purple 0", "orange 0"]
DEFAULT_PROMPTS = {"mnist": DIGIT_PROMPTS, "mnist_5k": DIGIT_PROMPTS, "colored_mnist": COLOR_PROMPTS}
GUIDANCE_SCALE = 2.0  # by default, where z_i or a caption has to win over noise or over the form that the image had
NUM_COLUMNS = 8
NUM_COMPONENTS = [1, 2, 4, 6, 9, 16, 32, 64]


def main() -> None:
    args = parse_args()
    pipeline = Pipeline.load(**arguments_for(args, Pipeline.load))
    Threads().choose()
    size, images_size = pipeline.decoder.config.image_size, pipeline.data["image_size"]
    if size != images_size:
        raise UserError(
            f"The decoder draws {size}x{size} pixels of images of {images_size}x{images_size}, and what an up-sampler adds has no "
            f"x_T to come back from; edit with a decoder that was trained without --decoder_image_size."
        )
    train_set, test_set, source = load_images(data_source(args, pipeline.data), args.data_dir, pipeline.device)
    if not args.prompts:
        usual = None if args.image else DEFAULT_PROMPTS.get(source.dataset)
        args.prompts = usual or sample_captions(test_set, NUM_COLUMNS)
        if args.mode in PAIRS:
            args.prompts = args.prompts[: len(args.prompts) // 2 * 2]
    args.prompts = Prompts.of_checkpoint(pipeline.data).check(args.prompts)
    say_what_is_cut(args.prompts, pipeline.read)
    cells, captions = EDITS[args.mode](pipeline, train_set, test_set, args)  # (R, K, C, H, H), R rows of K
    args.output_dir.mkdir(parents=True, exist_ok=True)
    file = args.output_dir / f"{args.mode}.png"
    save_grid(cells.flatten(0, 1), file, cells.shape[1], sum(captions, []))
    print(f"{file} is written.")


def parse_args():
    about, split_in_two, modes, _ = __doc__.split("\n\n")
    parser = ArgumentParser(f"{about} {split_in_two}", usage="%(prog)s MODE [flags]")
    parser.add_argument(
        "mode", choices=list(EDITS), help="; ".join(" ".join(mode.split()) for mode in modes.splitlines())
    )
    parser.add_argument(
        "--prompts",
        nargs="+",
        metavar="PROMPT",
        help="a test image of each is edited; interpolation, text_diff and inpaint take them two by two, from and to "
        "(default: eight of the digits' captions, or of those of the test images)",
    )
    parser.add_argument(
        "--image",
        nargs="+",
        metavar="FILE",
        help="edit these pictures in the place of test images; they have to look like the training images",
    )
    parser.add_argument("--eta", type=bounded(float, 0, 1), default=1.0, help="how much fresh noise variations get")
    parser.add_argument(
        "--fraction",
        type=bounded(float, 0, 1),
        default=0.5,
        help="how far text_diff turns the embedding: 0 not at all, 1 to the difference of the captions",
    )
    parser.add_argument(
        "--box",
        type=bounded(int, 0, 4096),
        nargs=4,
        metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"),
        default=[4, 4, 14, 24],
        help="the pixels that inpaint draws anew",
    )
    parser.add_argument(
        "--guidance_scale",
        type=bounded(float, 0, 100),
        default=GUIDANCE_SCALE,
        help="of the decoder, in variations, text_diff and inpaint, which are to show something else than the image",
    )
    parser.add_argument(
        "--sampling_steps", type=bounded(int, 5, 1000), default=50, help="from the image to x_T, and again back"
    )
    parser.add_argument("--seed", type=seed_number, default=0, help="of the choice of images and of fresh noise")
    parser.add_argument(
        "--output_dir", type=new_folder, default=ROOT / "output" / "dall_e_2_samples", help="where the figure goes"
    )
    add_model_flags(parser)
    add_data_flags(parser)
    args = parser.parse_args()
    if args.mode in PAIRS and len(args.prompts or ()) % 2:
        raise UserError(f"{args.mode} takes the prompts two by two, and there are {len(args.prompts)}.")
    if args.image and args.mode == "interpolation" and len(args.image) % 2:
        raise UserError(f"interpolation takes the images two by two, and there are {len(args.image)}.")
    if args.image and args.mode in ("text_diff", "inpaint") and len(args.prompts or ()) != 2 * len(args.image):
        raise UserError(f"{args.mode} with --image takes two --prompts for each image, from and to.")
    return args


def variations(pipeline: Pipeline, train_set: CaptionedImages, test_set: CaptionedImages, args):
    """Section 3.1: the same z_i, to which the decoder is guided, and fresh noise on the way from x_T; without both, the
    image comes back."""
    x_0, z_i, x_T = split(pipeline, images_to_edit(test_set, args.prompts, args), args.sampling_steps)
    rows = [x_0, decode(pipeline.decoder, z_i, x_T, args.sampling_steps)]
    for column in range(NUM_COLUMNS - 1):
        seeds = [args.seed + column + NUM_COLUMNS * i for i in range(len(z_i))]
        noise = {"eta": args.eta, "randn": SeededNoise(seeds).randn}
        rows.append(decode(pipeline.decoder, z_i, x_T, args.sampling_steps, args.guidance_scale, **noise))
    captions = ["image", "eta 0"] + [f"eta {args.eta:g}"] * (NUM_COLUMNS - 1)
    return torch.stack(rows, dim=1), [captions] * len(z_i)


def interpolation(pipeline: Pipeline, train_set: CaptionedImages, test_set: CaptionedImages, args):
    """Section 3.2: z_i and x_T go from one image to another on the sphere, then z_i alone, then x_T alone."""
    x_0, z_i, x_T = split(pipeline, images_to_edit(test_set, args.prompts, args), args.sampling_steps)
    cells, captions = [], []
    for i in range(0, len(x_0), 2):
        pair, (z_a, z_b), (x_a, x_b) = x_0[i : i + 2], z_i[i : i + 2, None], x_T[i : i + 2, None]
        fractions = torch.linspace(0, 1, NUM_COLUMNS - 1, device=x_0.device)
        between_z = torch.cat([slerp(z_a, z_b, fraction) for fraction in fractions])
        between_x = torch.cat([slerp(x_a, x_b, fraction) for fraction in fractions])
        for moving, z, x in (
            ("both", between_z, between_x),
            ("z_i", between_z, x_a.expand_as(between_x)),
            ("x_T", z_a.expand_as(between_z), between_x),
        ):
            drawn = decode(pipeline.decoder, z, x, args.sampling_steps)
            cells.append(torch.cat([pair[:1], drawn, pair[1:]]))
            captions.append([moving, *[f"{fraction:.2f}" for fraction in fractions], "image"])
    return torch.stack(cells), captions


def text_diff(pipeline: Pipeline, train_set: CaptionedImages, test_set: CaptionedImages, args):
    """Section 3.3: z_i turned toward the direction from one caption to the other, the same x_T. This holds the old form, so
    the decoder is guided to what is new in z_i."""
    from_prompts, to_prompts = args.prompts[::2], args.prompts[1::2]
    x_0, z_i, x_T = split(pipeline, images_to_edit(test_set, from_prompts, args), args.sampling_steps)
    rows, fractions = [x_0], torch.linspace(0, args.fraction, NUM_COLUMNS, device=x_0.device)
    z_d = text_difference(pipeline, from_prompts, to_prompts)
    for fraction in fractions:
        turned = slerp(z_i, z_d, fraction)
        rows.append(decode(pipeline.decoder, turned, x_T, args.sampling_steps, args.guidance_scale))
    captions = ["image", *[f"{fraction:.2f}" for fraction in fractions]]
    return torch.stack(rows, dim=1), [captions] * len(x_0)


def components(pipeline: Pipeline, train_set: CaptionedImages, test_set: CaptionedImages, args):
    """Section 4: z_i with only the first principal components of all embeddings left, with the image's x_T and a random
    one."""
    x_0, z_i, x_T = split(pipeline, images_to_edit(test_set, args.prompts, args), args.sampling_steps)
    mean, directions = principal_components(pipeline.clip.encode_images(train_set))
    numbers = [number for number in NUM_COMPONENTS if number <= len(mean)]
    random_x_T = SeededNoise([args.seed + i for i in range(len(x_T))]).randn(x_T.shape).to(x_T)
    cells, captions = [], []
    for noise, name in ((x_T, "its x_T"), (random_x_T, "random")):
        row = [x_0]
        for number in numbers:
            cut = mean + (z_i - mean) @ directions[:number].T @ directions[:number]
            row.append(decode(pipeline.decoder, F.normalize(cut, dim=-1), noise, args.sampling_steps))
        cells.append(torch.stack(row, dim=1))
        captions.append([name, *map(str, numbers)])
    return torch.stack(cells, dim=1).flatten(0, 1), captions * len(x_0)


def inpainting(pipeline: Pipeline, train_set: CaptionedImages, test_set: CaptionedImages, args):
    """A box of an image drawn anew for another caption, several times."""
    from_prompts, to_prompts = args.prompts[::2], args.prompts[1::2]
    x_0 = images_to_edit(test_set, from_prompts, args).images()
    known = outside(args.box, x_0)
    rows = [x_0, torch.where(known, x_0, 0.5)]
    for column in range(NUM_COLUMNS - 1):
        seeds = [args.seed + column + NUM_COLUMNS * i for i in range(len(x_0))]
        rows.append(inpaint(pipeline, x_0, known, to_prompts, seeds, args.sampling_steps, args.guidance_scale))
    return torch.stack(rows, dim=1), [["image", "kept", *[to] * (NUM_COLUMNS - 1)] for to in to_prompts]


EDITS = {
    "variations": variations,
    "interpolation": interpolation,
    "text_diff": text_diff,
    "components": components,
    "inpaint": inpainting,
}


def images_to_edit(test_set: CaptionedImages, prompts: list[str], args) -> CaptionedImages:
    """The pictures of --image, or else a test image for each prompt."""
    if args.image:
        return read_pictures(args.image, test_set)
    return choose_images(test_set, prompts, args.seed)


def read_pictures(files: list[str], like: CaptionedImages) -> CaptionedImages:
    """Pictures, without captions, as own images are read, in the size and the channels of the images `like`. Raises UserError
    if a file is no picture."""
    from utils.datasets.own_images import to_pixels

    _, channels, size, _ = like.pixels.shape
    pixels = []
    for file in files:
        try:
            flat = torch.frombuffer(bytearray(to_pixels(Path(file), size, channels)), dtype=torch.uint8)
        except Exception as error:  # whatever a broken image provokes
            raise UserError(f"{shortened(file)} cannot be read as a picture.") from error
        pixels.append(flat.view(channels, size, size))
    return CaptionedImages(torch.stack(pixels), [], torch.full((len(files), 1), -1, device=like.device))


def choose_images(test_set: CaptionedImages, prompts: list[str], seed: int) -> CaptionedImages:
    """A test image for each prompt. Raises UserError for a prompt that is a caption of none."""
    rng, chosen = random.Random(seed), []
    for prompt in prompts:
        fitting = test_set.index_of(prompt).tolist()
        if not fitting:
            raise UserError(f"No test image has the caption {shortened(prompt)}; give one of theirs.")
        chosen.append(rng.choice(fitting))
    return test_set.subset(torch.tensor(chosen, device=test_set.device))


def split(pipeline: Pipeline, images: CaptionedImages, num_steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """B images: their pixels x_0 (B, C, H, H) in [0, 1], their embeddings z_i (B, E), and the noise x_T (B, C, H, H) from
    which `decode` comes back to x_0 in as many steps."""
    x_0, z_i = images.images(), pipeline.clip.encode_images(images)
    network = guided(pipeline.decoder, 1.0, z_i, None)
    return x_0, z_i, invert(pipeline.decoder.diffusion, network, to_x_0(x_0), num_steps)


def decode(decoder: Decoder, z_i: Tensor, x_T: Tensor, num_steps: int, guidance_scale=1.0, **noise) -> Tensor:
    """Images (B, C, H, H) in [0, 1] of z_i (B, E) and x_T (B, C, H, H), without caption. The predicted x_0 is not cut off on
    the way, as it is not in `split`: then eta 0, without guidance, gives the image back."""
    return decode_image_embed(decoder, z_i, None, x_T, guidance_scale, num_steps, math.inf, **noise)


def principal_components(z_i: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (E,) of embeddings (N, E), and the directions along which they spread, (E, E), one a row, the widest first."""
    mean = z_i.mean(dim=0)
    covariance = torch.cov((z_i - mean).T).cpu()  # MPS was long without eigh
    _, directions = torch.linalg.eigh(covariance)  # columns, the widest last
    return mean, directions.flip(1).T.to(z_i)


def slerp(a: Tensor, b: Tensor, fraction: float | Tensor) -> Tensor:
    """The point at `fraction` of the way from a (B, ...) to b (B, ...) along the arc between them."""
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    cos = F.cosine_similarity(flat_a, flat_b, dim=1).clamp(-1 + 1e-6, 1 - 1e-6)
    angle = torch.arccos(cos).view(-1, *[1] * (a.ndim - 1))
    return (torch.sin((1 - fraction) * angle) * a + torch.sin(fraction * angle) * b) / torch.sin(angle)


def text_difference(pipeline: Pipeline, from_prompts: list[str], to_prompts: list[str]) -> Tensor:
    """The normalized difference z_d of the embeddings of captions, B each: (B, E). Raises UserError if a caption is to
    become itself, which has no direction."""
    for prompt, to_prompt in zip(from_prompts, to_prompts):
        if prompt == to_prompt:
            raise UserError(f"From {shortened(prompt)} to the same caption there is no difference; give two captions.")
    (z_from, _), (z_to, _) = (
        pipeline.clip.encode_prompts(texts, pipeline.device) for texts in (from_prompts, to_prompts)
    )
    return F.normalize(z_to - z_from, dim=-1)


def outside(box: list[int], x_0: Tensor) -> Tensor:
    """Which pixels of images (B, C, H, H) are not in the box (left, top, right, bottom): (H, H) bool. Raises UserError
    if the box is empty or does not lie in the image."""
    size, (left, top, right, bottom) = x_0.shape[-1], box
    if not (0 <= left < right <= size and 0 <= top < bottom <= size):
        raise UserError(f"--box {left} {top} {right} {bottom} is no box in an image of {size}x{size} pixels.")
    known = torch.ones(size, size, dtype=torch.bool, device=x_0.device)
    known[top:bottom, left:right] = False
    return known


def inpaint(
    pipeline: Pipeline,
    x_0: Tensor,
    known: Tensor,
    prompts: list[str],
    seeds: list[int],
    num_steps: int,
    guidance_scale: float,
    num_repeats: int = 5,
) -> Tensor:
    """Images (B, C, H, H) in [0, 1] with their `known` (H, H) pixels as they were and the others drawn for prompts, by an
    embedding from the prior; each image a function of its seed."""
    text_embed, text_encodings = pipeline.clip.encode_prompts(prompts, pipeline.device)
    randn = SeededNoise(seeds).randn
    image_embed = draw_image_embed(pipeline.prior, text_embed, text_encodings, randn=randn)
    network = guided(pipeline.decoder, guidance_scale, image_embed, text_encodings)
    drawn = repaint(
        pipeline.decoder.diffusion, network, to_x_0(x_0), known, num_steps, num_repeats, randn=randn, x_0_range=1.0
    )
    return from_x_0(drawn)


@torch.no_grad()
def invert(diffusion: Diffusion, network: Callable, x_0: Tensor, num_steps: int, num_iterations: int = 3) -> Tensor:
    """The noise x_T from which `Diffusion.sample` by DDIM, in as many steps, with eta 0 and no x_0_range, comes to x_0 (B, ...).

    In terms of v a DDIM step is a rotation, x_s = cos(angle) x_t - sin(angle) v (arXiv 2202.00512, appendix D).
    Its v is predicted at the very x_t that is sought, so x_t is found by fixed-point iteration; one iteration is
    the usual approximation (DDIM, section 4.3).
    """
    x_s = x_0
    steps = diffusion.timesteps(num_steps)[::-1]
    for s, t in zip(steps, steps[1:]):
        (a_s, b_s), (a_t, b_t) = diffusion.at(s, x_s), diffusion.at(t, x_s)
        cos, sin = a_s * a_t + b_s * b_t, b_t * a_s - a_t * b_s
        x_t = x_s
        for _ in range(num_iterations):
            predicted_x_0, eps = diffusion.x_0_and_eps(network(x_t, t.expand(len(x_t)).to(x_t.device)), x_t, t)
            x_t = (x_s + sin * (a_t * eps - b_t * predicted_x_0)) / cos
        x_s = x_t
    return x_s


@torch.no_grad()
def repaint(
    diffusion: Diffusion,
    network: Callable,
    x_0: Tensor,
    known: Tensor,
    num_steps: int,
    num_repeats: int = 5,
    randn: Callable = torch.randn,
    x_0_range: float = math.inf,
) -> Tensor:
    """x_0 (B, ...) where `known` (bool, of a shape that broadcasts), and samples that fit to it elsewhere: RePaint
    (arXiv 2201.09865, algorithm 1), in num_steps * num_repeats calls of the network.

    What is known is put in at each step, with as much noise as there is at that step. The rest was drawn before that, and
    may not fit; so each step is taken `num_repeats` times, with noise put back in between.
    """
    x = randn(x_0.shape).to(x_0)
    steps = diffusion.timesteps(num_steps)
    for t, s in zip(steps, steps[1:]):
        (a_s, b_s), (a_t, _) = diffusion.at(s, x), diffusion.at(t, x)
        for _ in range(num_repeats):
            drawn, _ = diffusion.step(network, x, t, s, 1.0, randn, x_0_range)
            x_s = torch.where(known, a_s * x_0 + b_s * randn(x.shape).to(x), drawn)
            alpha = (a_t / a_s) ** 2
            x = alpha.sqrt() * x_s + (1 - alpha).sqrt() * randn(x.shape).to(x)
        x = x_s
    return x


if __name__ == "__main__":
    start(main)
