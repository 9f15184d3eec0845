"""Draw the figures of lesson 17 from the models in output/: all of them, or those named."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
import torch.nn.functional as F
from lesson_17.diffusion import Diffusion, guided
from lesson_17.diffusion_decoder import from_x_0, shrink, to_x_0
from lesson_17.diffusion_prior import draw_image_embed
from lesson_17.edit_mnist import principal_components
from benchmarks.figures import add_figure_flags, draw_figures, save_rows
from lesson_17.pipeline import DEFAULT_SAMPLING, Pipeline, add_model_flags
from lesson_17.upsample_mnist import load_upsamplers, upsample_all
from torch import Tensor
from utils.cli import ArgumentParser, arguments_for, start
from utils.data import CaptionedImages
from utils.datasets.mnist import DIGIT_CAPTIONS, DIGIT_WORDS
from utils.scoring import digits_of, at_random

NUM_COLUMNS = 11
TWO_EACH = [caption for word in DIGIT_WORDS for caption in (word, "")]  # above the columns


def main() -> None:
    args = parse_args()
    pipeline = Pipeline.load(**arguments_for(args, Pipeline.load))
    draw_figures(FIGURES, pipeline, pipeline.device, args)


def parse_args():
    parser = ArgumentParser(__doc__)
    add_figure_flags(parser, FIGURES, ROOT / "output" / "dall_e_2_figures")
    add_model_flags(parser)
    return parser.parse_args()


def embeddings(pipeline: Pipeline, test_set: CaptionedImages, folder: Path) -> None:
    """CLIP's embeddings of 2,000 test images and of all prompts, on the two axes along which the images spread most."""
    from matplotlib.figure import Figure

    shown = at_random(test_set, 2000)
    image_embed = pipeline.clip.encode_images(shown)
    text_embed, _ = pipeline.clip.encode_prompts(DIGIT_CAPTIONS, pipeline.device)
    mean, directions = principal_components(image_embed)
    image_xy, text_xy = (((embed - mean) @ directions[:2].T).cpu() for embed in (image_embed, text_embed))
    figure = Figure(figsize=(7, 6), dpi=80, layout="constrained")
    axes = figure.subplots()
    points = axes.scatter(*image_xy.T, c=digits_of(shown).cpu(), cmap="tab10", s=5)
    for digit, (x, y) in enumerate(text_xy.view(2, 10, 2).mean(dim=0).tolist()):  # both spellings lie at one place
        above = {"va": "bottom" if digit < 5 else "top", "ha": "center"}  # two and eight lie close
        axes.text(
            x, y, f"{DIGIT_WORDS[digit]}, {digit}", fontsize=9, bbox={"fc": "white", "alpha": 0.7, "pad": 1}, **above
        )
        axes.plot(x, y, "kx")
    axes.legend(*points.legend_elements(), title="images of", fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set(xlabel="first principal component", ylabel="second")
    figure.savefig(folder / "embeddings.png")


def schedule(pipeline: Pipeline, test_set: CaptionedImages, folder: Path) -> None:
    """How much of the image's variance is left at each timestep, by both schedules."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.6), dpi=80, layout="constrained")
    axes = figure.subplots()
    for name in ("cosine", "linear"):
        axes.plot(Diffusion(1000, name).sqrt_alphas_cumprod.square(), label=name)
    axes.set(xlabel="t", ylabel="fraction of the variance")
    axes.legend()
    figure.savefig(folder / "schedule.png")


def noise(pipeline: Pipeline, test_set: CaptionedImages, folder: Path) -> None:
    """An image on its way into the noise; and a sample on its way out, with the x_0 that is predicted on the way."""
    decoder, diffusion = pipeline.decoder, pipeline.decoder.diffusion
    torch.manual_seed(1)
    images = shrink(test_set.images(slice(1)), decoder.config.image_size)
    eps = torch.randn_like(images)
    t = torch.linspace(0, diffusion.num_timesteps, NUM_COLUMNS, device=images.device).round().long()
    drowned = torch.cat([diffusion.q_sample(to_x_0(images), step[None], eps) for step in t])

    text_embed, text_encodings = pipeline.clip.encode_prompts(["seven"], pipeline.device)
    scale = DEFAULT_SAMPLING["prior_guidance_scale"]
    image_embed = draw_image_embed(pipeline.prior, text_embed, text_encodings, scale)
    x, predicted = [], []
    network = guided(decoder, DEFAULT_SAMPLING["guidance_scale"], image_embed, text_encodings)

    def recorded(x_t: Tensor, t: Tensor) -> Tensor:
        prediction = network(x_t, t)
        x.append(x_t)
        predicted.append(diffusion.x_0_and_eps(prediction, x_t, t)[0])
        return prediction

    x_0 = diffusion.sample(recorded, eps, NUM_COLUMNS - 1, x_0_range=1.0)
    rows = {
        "q: noise comes in": drowned,
        "p: noise goes out": torch.cat([*x, x_0]).flip(0),
        "x_0 as predicted": torch.cat([*predicted, x_0]).flip(0),
    }
    save_rows({name: from_x_0(row) for name, row in rows.items()}, folder / "noise.png", [f"t {step}" for step in t])


def guidance(pipeline: Pipeline, test_set: CaptionedImages, folder: Path) -> None:
    """The same seeds under the decoder's guidance, from none to too much."""
    save_rows(
        {f"guidance_scale {scale}": draw_words(pipeline, guidance_scale=float(scale)) for scale in (0, 1, 2, 4, 8, 16)},
        folder / "guidance.png",
        TWO_EACH,
    )


def steps(pipeline: Pipeline, test_set: CaptionedImages, folder: Path) -> None:
    """The same seeds in few and many steps, by DDIM and by DDPM."""
    ways = [(0.0, number) for number in (1, 2, 5, 10, 20, 50)] + [(1.0, number) for number in (5, 10, 20, 50, 250)]
    save_rows(
        {f"eta {eta:g}, {number} steps": draw_words(pipeline, eta=eta, sampling_steps=number) for eta, number in ways},
        folder / "steps.png",
        TWO_EACH,
    )


def draw_words(pipeline: Pipeline, **sampling) -> Tensor:
    """Two images of each digit's word, always from the same seeds."""
    prompts = [word for word in DIGIT_WORDS for _ in range(2)]
    return pipeline.draw(prompts, list(range(len(prompts))), **{**DEFAULT_SAMPLING, **sampling})


def upsampling(pipeline: Pipeline, test_set: CaptionedImages, folder: Path) -> None:
    """Test images made as small as the decoder's, then enlarged by hand and by the up-samplers, above the real ones."""
    size = pipeline.decoder.config.image_size
    if size == test_set.pixels.shape[-1]:
        return print("upsampling is left out: the decoder's images have the data's size, and there are no up-samplers.")
    models = Path(pipeline.files["decoder"]).parents[1]
    upsamplers = load_upsamplers(size, pipeline.decoder.config.image_channels, models)
    torch.manual_seed(0)
    real = test_set.of_different_captions(NUM_COLUMNS - 1).images()
    _, _, height, width = real.shape
    small = shrink(real, size)
    rows = {
        f"{size}x{size}": F.interpolate(small, size=(height, width)),
        "enlarged by hand (bicubic)": F.interpolate(small, size=(height, width), mode="bicubic"),
        "up-sampled": upsample_all(upsamplers, small, list(range(len(small))), DEFAULT_SAMPLING["sampling_steps"]),
        f"real, {height}x{width}": real,
    }
    save_rows(rows, folder / "upsampling.png")


FIGURES = {f.__name__: f for f in (embeddings, schedule, noise, guidance, steps, upsampling)}

if __name__ == "__main__":
    start(main)
