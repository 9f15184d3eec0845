"""A playground for DALL·E 2: noise recedes step by step, and images are edited by their embeddings. Needs gradio."""

import sys
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from lesson_17.diffusion import guided
from lesson_17.diffusion_decoder import from_x_0
from lesson_17.edit_mnist import (
    GUIDANCE_SCALE,
    choose_images,
    decode,
    inpaint,
    principal_components,
    slerp,
    split,
    text_difference,
)
from lesson_17.pipeline import DEFAULT_SAMPLING, Pipeline, add_model_flags
from torch import Tensor
from utils.cli import ArgumentParser, UserError, arguments_for, start
from utils.data import CaptionedImages
from utils.datasets import add_data_flags, data_source, load_images
from utils.datasets.colored_mnist import INKS, asked_for
from utils.datasets.mnist import DIGIT_WORDS
from utils.playground import (
    ONE_AT_A_TIME,
    PICTURE,
    add_page_flags,
    asked,
    gr,
    in_a_sentence,
    picture,
    prompt_row,
    seed_field,
    serve,
    slider,
    sliders,
)
from utils.plots import to_picture
from utils.samples import SeededNoise
from utils.scoring import at_random

NUM_SHOWN = 4
EDIT_STEPS = 20
NUM_POINTS = 1000  # test images whose embeddings are shown
SLIDERS = {"sampling_steps": (1, 200, 1), "guidance_scale": (0, 8, 0.05), "prior_guidance_scale": (0, 8, 0.05)}
SCALE_OF_CANVAS = 10  # pixels of the canvas to one of an image
DRAWN = "drawn for the prompt"
POINT_COLORS = {  # of Matplotlib's tab10; of the inks themselves
    **dict(zip(DIGIT_WORDS, "1f77b4 ff7f0e 2ca02c d62728 9467bd 8c564b e377c2 7f7f7f bcbd22 17becf".split())),
    **{ink: bytes(color).hex() for ink, color in INKS.items()},
    "test images": "7f7f7f",
    DRAWN: "ff00ff",
}
PARTS = ["both", "z_i alone", "x_T alone"]


def main() -> None:
    parser = ArgumentParser(__doc__)
    add_page_flags(parser)
    add_model_flags(parser)
    add_data_flags(parser)
    args = parser.parse_args()
    pipeline = Pipeline.load(**arguments_for(args, Pipeline.load))
    source = data_source(args, pipeline.data)
    if not args.dataset and source.dataset == "mnist":
        source = replace(source, dataset=None)  # where it cannot be downloaded, its 5,000 digits will do
    _, test_set, _ = load_images(source, args.data_dir, pipeline.device)
    serve(Playground(pipeline, test_set).page(), args.port, args.share).block_thread()


class Playground:
    """The page and what it answers. It keeps nothing of a visitor but the embeddings of the pictures on it."""

    def __init__(self, pipeline: Pipeline, test_set: CaptionedImages):
        self.pipeline, self.test_set = pipeline, test_set
        self.parts = lru_cache(maxsize=64)(self.parts)  # a slider asks for the same ones again and again

    def page(self) -> gr.Blocks:
        with gr.Blocks(title="DALL·E 2, step by step") as page:
            gr.Markdown(
                "# DALL·E 2, step by step\nA prior draws a CLIP image embedding for a caption, and a decoder an image that has it."
            )
            with gr.Tab("Draw"):
                embeddings = self.noise_tab(page)
            with gr.Tab("Embeddings"):
                gr.Markdown(
                    f"CLIP's embeddings of {NUM_POINTS} test images, and those that the prior drew for the prompt, on the two "
                    f"axes along which the test images spread most."
                )
                plot = gr.ScatterPlot(
                    x="first component",
                    y="second component",
                    color="of",
                    color_map={name: f"#{color}" for name, color in POINT_COLORS.items()},
                    tooltip=["of", "caption"],
                    height=480,
                )
                gr.on([page.load, embeddings.change], self.plot, [embeddings], plot, **ONE_AT_A_TIME)
            if (
                self.test_set.pixels.shape[-1] == self.pipeline.decoder.config.image_size
            ):  # else no x_T leads to an image
                with gr.Tab("Between images"):
                    self.between_tab(page)
                with gr.Tab("Text difference"):
                    self.difference_tab(page)
                with gr.Tab("Fill in"):
                    self.fill_tab(page)
        return page

    def noise_tab(self, page: gr.Blocks) -> gr.State:
        """Pictures of a prompt, and how they come out of noise. Returns their embeddings."""
        prompt, button = prompt_row(self.test_set.captions[0])
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                seed = seed_field()
                sampling = sliders(SLIDERS, DEFAULT_SAMPLING)
                eta = slider(0, 1, DEFAULT_SAMPLING["eta"], 0.1, "Fresh noise (eta)")
            with gr.Column(scale=2, min_width=300):
                shown = gr.Image(alt_text="x_t above the x_0 that is predicted of it", **PICTURE)
                gr.Markdown("Above: x_t, from noise to picture. Below: the x_0 that the decoder predicts of it.")
        embeddings = gr.State()
        inputs, outputs = [prompt, seed, *sampling, eta], [shown, embeddings]
        gr.on([button.click, prompt.submit], self.draw, inputs, outputs, **ONE_AT_A_TIME)
        settings = [setting.change for setting in inputs[1:]]
        gr.on([page.load, *settings], self.redraw, inputs, outputs, trigger_mode="always_last", **ONE_AT_A_TIME)
        return embeddings

    def between_tab(self, page: gr.Blocks) -> None:
        first, second, seed = self.two_captions("A test image of", "A test image of")
        fraction = slider(0, 1, 0.5, 0.05, "Fraction of the way")
        moving = gr.Radio(PARTS, value=PARTS[0], label="What moves")
        shown = gr.Image(alt_text="Two test images and one between them", **PICTURE)
        inputs = [first, second, seed, fraction, moving]
        answer_to(page, self.between, inputs, shown)

    def difference_tab(self, page: gr.Blocks) -> None:
        caption, to_caption, seed = self.two_captions("A test image of", "Toward the caption")
        fraction = slider(0, 1, 0.5, 0.05, "Fraction of the way to the difference")
        shown = gr.Image(alt_text="A test image and what it becomes", **PICTURE)
        answer_to(page, self.difference, [caption, to_caption, seed, fraction], shown)

    def fill_tab(self, page: gr.Blocks) -> None:
        caption, prompt, seed = self.two_captions("A test image of", "Fill what is painted over with")
        size = SCALE_OF_CANVAS * self.test_set.pixels.shape[-1]
        canvas = gr.ImageEditor(
            label="Paint over what is to be filled in",
            sources=(),
            brush=gr.Brush(default_size=size // 14, colors=["#ff00ff"], color_mode="fixed"),
            canvas_size=(size, size),
            fixed_canvas=True,
            transforms=(),
            layers=False,
        )
        button = gr.Button("Fill in", variant="primary")
        shown = gr.Image(alt_text="The image, filled in", **PICTURE)
        gr.on([page.load, caption.submit, seed.change], self.on_canvas, [caption, seed], canvas, **ONE_AT_A_TIME)
        button.click(self.fill, [canvas, caption, prompt, seed], shown, **ONE_AT_A_TIME)

    def two_captions(self, *labels: str) -> tuple[gr.Textbox, gr.Textbox, gr.Number]:
        """Fields, in a row, for two captions and a seed; the captions begin with two of the test images'."""
        captions = self.test_set.captions
        with gr.Row():
            fields = [gr.Textbox(captions[i % len(captions)], label=label) for i, label in zip((3, 8), labels)]
            return *fields, seed_field()

    def draw(self, prompt: str, seed: int, num_steps: int, scale: float, prior_scale: float, eta: float):
        """Step by step, x_t above the predicted x_0 (PIL image), and the embeddings (B, E) that the decoder was given."""
        with in_a_sentence():
            pipeline, diffusion, prompt = self.pipeline, self.pipeline.decoder.diffusion, self.asked(prompt)
            randn = SeededNoise([(seed or 0) + i for i in range(NUM_SHOWN)]).randn
            image_embed, text_encodings, x = pipeline.inputs([prompt] * NUM_SHOWN, prior_scale, num_steps, randn)
            network, steps = (
                guided(pipeline.decoder, scale, image_embed, text_encodings),
                diffusion.timesteps(num_steps),
            )
            for t, s in zip(steps, steps[1:]):
                with torch.no_grad():
                    x, x_0 = diffusion.step(network, x, t, s, eta, randn, x_0_range=1.0)
                yield picture(torch.cat([from_x_0(x), from_x_0(x_0)]), NUM_SHOWN), image_embed

    def redraw(self, *inputs):
        """The last of what `draw` gives."""
        *_, last = self.draw(*inputs)
        return last

    def asked(self, text: str | None) -> str:
        """What a visitor typed as a prompt. Raises UserError if the models cannot be asked for it."""
        return asked(text, self.pipeline.data)

    def parts(self, caption: str, seed: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """A test image of a caption, (1, C, H, H) in [0, 1], its z_i (1, E) and its x_T (1, C, H, H). Raises UserError
        if no test image has that caption."""
        return split(self.pipeline, choose_images(self.test_set, [caption], seed or 0), EDIT_STEPS)

    def between(self, first: str, second: str, seed: int, fraction: float, moving: str):
        """Two test images, and between them the image at a fraction of the way (section 3.2)."""
        with in_a_sentence():
            (x_a, z_a, noise_a), (x_b, z_b, noise_b) = (
                self.parts(self.asked(caption), seed) for caption in (first, second)
            )
            z_i = z_a if moving == "x_T alone" else slerp(z_a, z_b, fraction)
            x_T = noise_a if moving == "z_i alone" else slerp(noise_a, noise_b, fraction)
            return picture(torch.cat([x_a, decode(self.pipeline.decoder, z_i, x_T, EDIT_STEPS), x_b]), 3)

    def difference(self, caption: str, to_caption: str, seed: int, fraction: float):
        """A test image, and what it becomes when z_i turns toward the difference of two captions (section 3.3)."""
        with in_a_sentence():
            caption, to_caption = self.asked(caption), self.asked(to_caption)
            x_0, z_i, x_T = self.parts(caption, seed)
            z_d = text_difference(self.pipeline, [caption], [to_caption])
            turned = slerp(z_i, z_d, fraction)
            return picture(torch.cat([x_0, decode(self.pipeline.decoder, turned, x_T, EDIT_STEPS, GUIDANCE_SCALE)]), 2)

    def on_canvas(self, caption: str, seed: int):
        """A test image of a caption, as large as the canvas."""
        with in_a_sentence():
            x_0, _, _ = self.parts(self.asked(caption), seed)
            return to_picture(F.interpolate(x_0, scale_factor=SCALE_OF_CANVAS)[0])

    def fill(self, canvas: dict, caption: str, prompt: str, seed: int):
        """A test image, the part that was painted over drawn anew for a prompt, in different ways."""
        with in_a_sentence():
            prompt = self.asked(prompt)
            x_0, _, _ = self.parts(self.asked(caption), seed)
            painted = torch.tensor(canvas["layers"][0][..., 3]) if canvas["layers"] else torch.zeros(x_0.shape[-2:])
            painted = F.adaptive_max_pool2d(painted[None].float(), x_0.shape[-2:])[0]
            if not painted.any():
                raise UserError("Nothing is painted over yet; paint on the image first.")
            seeds = [(seed or 0) + i for i in range(NUM_SHOWN)]
            known = (painted == 0).to(x_0.device)
            settings = EDIT_STEPS, GUIDANCE_SCALE
            x_0 = x_0.expand(NUM_SHOWN, -1, -1, -1)
            return picture(inpaint(self.pipeline, x_0, known, [prompt] * NUM_SHOWN, seeds, *settings), NUM_SHOWN)

    @cached_property
    def axes(self) -> tuple[Tensor, Tensor, list[dict]]:
        """The mean (E,) of test images' embeddings, the two directions (E, 2) of their widest spread, and a point for each."""
        images = at_random(self.test_set, NUM_POINTS)
        z_i = self.pipeline.clip.encode_images(images)
        mean, directions = principal_components(z_i)
        directions = directions[:2].T
        captions = [images.captions[i] for i in images.caption_ids[:, 0]]
        return mean, directions, points((z_i - mean) @ directions, [name_of(c) for c in captions], captions)

    def plot(self, image_embed: Tensor | None):
        """The embeddings (B, E) of what was drawn among those of the test images."""
        import pandas

        mean, directions, rows = self.axes
        drawn = [] if image_embed is None else (image_embed - mean) @ directions
        return pandas.DataFrame(rows + points(drawn, [DRAWN] * len(drawn), [DRAWN] * len(drawn)))


def answer_to(page: gr.Blocks, function, inputs: list, output) -> None:
    """Fill `output` at once, whatever of `inputs` changes; a text when it is entered."""
    changes = [one.submit if isinstance(one, gr.Textbox) else one.change for one in inputs]
    gr.on([page.load, *changes], function, inputs, output, trigger_mode="always_last", **ONE_AT_A_TIME)


def name_of(caption: str) -> str:
    """What images of a caption are called in the plot: their ink, or their digit, or else "test images"."""
    ink, digit = (asked_for(caption)[kind] for kind in ("ink", "digit"))
    if ink >= 0:
        return list(INKS)[ink]
    return DIGIT_WORDS[digit] if digit >= 0 else "test images"


def points(xy: Tensor, names: list[str], captions: list[str]) -> list[dict]:
    """Rows of the plot's table."""
    return [
        {"first component": x, "second component": y, "of": name, "caption": caption}
        for (x, y), name, caption in zip([point.tolist() for point in xy], names, captions)
    ]


if __name__ == "__main__":
    start(main)
