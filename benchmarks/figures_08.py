"""Draw the figures of lesson 8 from the models in output/: all of them, or those named."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
import torch.nn.functional as F
from lesson_08.dall_e import attention_masks
from lesson_08.dvae import DiscreteVAE, DVAEConfig, map_pixels, tau_schedule, unmap_pixels
from einops import rearrange
from benchmarks.figures import add_figure_flags, draw_figures, save_rows
from lesson_08.pipeline import DEFAULT_SAMPLING, Pipeline, add_model_flags
from utils.checkpoints import checkpoints_in, load_checkpoint, load_model
from utils.cli import ArgumentParser, arguments_for, start
from utils.data import CaptionedImages
from utils.machine import get_device
from utils.gif import save_gif
from utils.plots import save_grid
from utils.datasets.mnist import DIGIT_WORDS

PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance_scale": 1.0}
NUM_IMAGES = 10  # a row


def main() -> None:
    args = parse_args()
    device = get_device()
    pipeline = Pipeline.load(**arguments_for(args, Pipeline.load))
    draw_figures(FIGURES, pipeline, device, args)


def parse_args():
    parser = ArgumentParser(__doc__)
    add_figure_flags(parser, FIGURES, ROOT / "output" / "dall_e_figures")
    add_model_flags(parser)
    return parser.parse_args()


def relaxation(pipeline: Pipeline, test_set: CaptionedImages, folder: Path) -> None:
    """Soft codes, which training sees, and hard ones, which tokens are, at each checkpoint of the dVAE (section 2.1)."""
    images = test_set.images(slice(500))
    rows = {"test images": images[:NUM_IMAGES]}
    for step, file in checkpoints_in(Path(pipeline.files["dvae"]).parent, "dvae").items():
        checkpoint = load_checkpoint(file, "dvae")
        dvae = load_model(checkpoint, DiscreteVAE, DVAEConfig).to(images.device)
        tau = tau_schedule(step / checkpoint["training"]["num_training_steps"])
        torch.manual_seed(0)
        weights = F.gumbel_softmax(dvae.encoder(map_pixels(images)), tau=tau, dim=1)
        mixture = torch.einsum("bkhw,kd->bdhw", weights, dvae.codebook.weight)
        soft = unmap_pixels(dvae.decoder(mixture).chunk(2, dim=1)[0].sigmoid())
        for name, decoded in ((f"tau {tau:.2f}, soft", soft), ("hard", dvae.decode(dvae.encode(images)))):
            mse = (decoded - images).square().mean()
            rows[f"step {step}, {name}: MSE {mse:.4f}"] = decoded[:NUM_IMAGES]
    save_rows(rows, folder / "relaxation.png")


def codes(pipeline: Pipeline, test_set: CaptionedImages, folder: Path) -> None:
    """The codes used most: what each draws on average, among the others of an image, and below it alone in the dark."""
    dvae, c = pipeline.dvae, pipeline.dvae.config
    cell = c.image_size // c.grid_size
    image_tokens = test_set.map(dvae.encode)
    counts = torch.bincount(image_tokens.flatten(), minlength=c.codebook_size)
    shown = counts.argsort(descending=True)[:32]

    tokens = image_tokens[:2000]
    around = F.unfold(F.pad(dvae.decode(tokens), [cell] * 4), 3 * cell, stride=cell)  # each cell and what is around it
    around = rearrange(around, "b (c h w) n -> b n c h w", c=c.image_channels, h=3 * cell)
    average = torch.stack([around[tokens == code].mean(dim=0) for code in shown])

    middle = c.grid_size // 2
    c = pipeline.dvae.config
    black = torch.zeros(1, c.image_channels, c.image_size, c.image_size, device=pipeline.device)
    alone = pipeline.dvae.encode(black).repeat(len(shown), 1)
    alone[:, middle * c.grid_size + middle] = shown
    near = slice((middle - 1) * cell, (middle + 2) * cell)
    alone = dvae.decode(alone)[:, :, near, near]
    fractions = [f"{fraction:.1%}" for fraction in (counts[shown] / counts.sum()).tolist()]
    rows = [row for pair in zip(average.split(16), alone.split(16)) for row in pair]
    captions = [caption for i in (0, 16) for caption in fractions[i : i + 16] + ["alone"] * 16]
    save_grid(torch.cat(rows), folder / "codes.png", 16, captions)


def codebook(pipeline: Pipeline, test_set: CaptionedImages, folder: Path) -> None:
    """How often the test images use each code, the commonest first."""
    from matplotlib.figure import Figure

    counts = torch.bincount(test_set.map(pipeline.dvae.encode).flatten(), minlength=pipeline.dvae.config.codebook_size)
    figure = Figure(figsize=(8, 2.4), dpi=80, layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(counts)), (counts / counts.sum()).cpu().sort(descending=True).values, width=1)
    axes.set(yscale="log", xlabel="code, the commonest first", ylabel="fraction of tokens")
    axes.set_title(f"{(counts > 0).sum()} of {len(counts)} codes are used", fontsize=9)
    figure.savefig(folder / "codebook.png")


def masks(pipeline: Pipeline, test_set: CaptionedImages, folder: Path) -> None:
    """The attention masks, at the sizes of the paper's figure 11."""
    from matplotlib.figure import Figure

    num_text, grid_size, conv_kernel_size = 6, 4, 3
    figure = Figure(figsize=(9, 3.4), dpi=80, layout="constrained")
    drawn = attention_masks(num_text, grid_size, conv_kernel_size)
    for axes, (name, mask) in zip(figure.subplots(1, len(drawn)), drawn.items()):
        axes.imshow(mask, cmap="Blues", vmax=1.4)
        axes.axhline(num_text - 0.5, color="C3")
        axes.axvline(num_text - 0.5, color="C3")
        axes.set(title=name, xlabel="attends to (text | image)", ylabel="position")
    figure.savefig(folder / "masks.png")


def tokens(pipeline: Pipeline, test_set: CaptionedImages, folder: Path) -> None:
    """An image for each digit as its tokens appear, one by one."""
    dvae, c, frames = pipeline.dvae, pipeline.dvae.config, []
    text_tokens, u = pipeline.inputs(DIGIT_WORDS, list(range(len(DIGIT_WORDS))))
    image_tokens = pipeline.dall_e.generate(text_tokens, u=u, **DEFAULT_SAMPLING)
    black = torch.zeros(len(u), c.image_channels, c.image_size, c.image_size, device=pipeline.device)
    place = torch.arange(u.shape[1], device=pipeline.device)
    for number in range(u.shape[1] + 1):
        images = dvae.decode(torch.where(place < number, image_tokens, dvae.encode(black)))
        drawn = F.interpolate((place < number).view(1, 1, c.grid_size, -1).float(), images.shape[-2:])
        frames.append(torch.cat(list(F.pad(torch.where(drawn > 0, images, 0.4), (1, 1, 1, 1))), dim=2))
    save_gif(frames, folder / "tokens.gif", milliseconds=80, scale=3)


def sampling(pipeline: Pipeline, test_set: CaptionedImages, folder: Path) -> None:
    """The same seeds drawn in different ways."""
    prompts = [word for word in DIGIT_WORDS for _ in range(2)]
    changes = {
        "plain": {},
        "temperature 0": {"temperature": 0.0},
        "temperature 0.5": {"temperature": 0.5},
        "temperature 2": {"temperature": 2.0},
        "top_k 5": {"top_k": 5},
        "top_p 0.95": {"top_p": 0.95},
        "guidance_scale 0": {"guidance_scale": 0.0},
        "guidance_scale 1.3": {"guidance_scale": 1.3},
        "guidance_scale 2": {"guidance_scale": 2.0},
        "guidance_scale 8": {"guidance_scale": 8.0},
    }
    seeds = list(range(len(prompts)))
    rows = {name: pipeline.draw(prompts, seeds, **{**PLAIN, **change}) for name, change in changes.items()}
    save_rows(rows, folder / "sampling.png", [caption for word in DIGIT_WORDS for caption in (word, "")])


FIGURES = {f.__name__: f for f in (relaxation, codes, codebook, masks, tokens, sampling)}

if __name__ == "__main__":
    start(main)
