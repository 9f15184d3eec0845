"""A playground for DALL·E: pictures appear token by token, and each token shows what it was drawn from. Needs gradio."""

import base64
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from lesson_08.dall_e import filtered_probs
from lesson_08.pipeline import DEFAULT_SAMPLING, Pipeline, add_model_flags
from torch import Tensor
from utils.cli import ArgumentParser, UserError, arguments_for, start
from utils.datasets.colored_mnist import INKS
from utils.playground import (
    ONE_AT_A_TIME,
    PICTURE,
    SCALE,
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

NUM_SHOWN, COLUMNS = 8, 4
NUM_BARS = 12  # of a token's distribution
CANVAS = 280  # pixels of the page that can be drawn on, in each direction
SLIDERS = {
    "temperature": (0, 2, 0.05),
    "top_k": (0, 64, 1),
    "top_p": (0.05, 1, 0.05),
    "guidance_scale": (0, 8, 0.1),
}


def main() -> None:
    parser = ArgumentParser(__doc__)
    add_page_flags(parser)
    add_model_flags(parser)
    args = parser.parse_args()
    pipeline = Pipeline.load(**arguments_for(args, Pipeline.load))
    serve(Playground(pipeline).page(), args.port, args.share).block_thread()


@dataclass
class Drawing:
    """What a visitor sees: for a prompt and some sampling, the image tokens (B, N) of the pictures shown."""

    prompt: str
    sampling: dict
    image_tokens: Tensor


@dataclass
class Playground:
    """The page and what it answers. It keeps the Drawing of each visitor, and nothing else."""

    pipeline: Pipeline

    def page(self) -> gr.Blocks:
        config = self.pipeline.dall_e.config
        with gr.Blocks(title="DALL·E, token by token") as page:
            gr.Markdown(
                "# DALL·E, token by token\nA transformer writes image tokens, one after another; a dVAE paints them."
            )
            prompt, button = prompt_row(self.pipeline.data["examples"][0])
            with gr.Row():
                with gr.Column(scale=1, min_width=260):
                    seed = seed_field()
                    sampling = sliders(SLIDERS, DEFAULT_SAMPLING)
                with gr.Column(scale=2, min_width=300):
                    with gr.Tab("Pictures"):
                        shown = gr.Image(alt_text="The pictures", **PICTURE)
                        gr.Markdown("Click on a token of a picture to see below what it was drawn from.")
                    with gr.Tab("Complete a drawing"):
                        gr.Markdown(
                            "Draw a picture as large as the canvas. Its upper rows are kept, and the rest is drawn."
                        )
                        in_color = self.pipeline.dvae.config.image_channels == 3
                        colors = [f"rgb{ink}" for ink in INKS.values()] if in_color else ["#ffffff"]
                        canvas = gr.ImageEditor(
                            to_picture(torch.zeros(3, CANVAS, CANVAS)),
                            label="Your drawing",
                            sources=(),
                            brush=gr.Brush(default_size=12, colors=colors, color_mode="fixed"),
                            layers=False,
                            canvas_size=(CANVAS, CANVAS),
                            fixed_canvas=True,
                            transforms=(),
                        )
                        label = f"Rows of tokens to keep, of {config.grid_size}"
                        rows = slider(1, config.grid_size - 1, 4, 1, label)
                        complete = gr.Button("Complete")
                        completed = gr.Image(alt_text="The completed drawings", **PICTURE)
            gr.Markdown(
                "## What a token was drawn from\nThe codes that were likeliest at its place, and what the picture would show there with each of them."
            )
            with gr.Row():
                which = slider(1, NUM_SHOWN, 1, 1, "Picture")
                place = slider(1, config.image_seq_len, config.image_seq_len // 2 + 1, 1, "Token")
            bars = gr.HTML()

            drawing = gr.State()
            inputs = [prompt, seed, *sampling]
            gr.on([button.click, prompt.submit], self.draw, inputs, [shown, drawing], **ONE_AT_A_TIME)
            settings = [setting.change for setting in (seed, *sampling)]
            gr.on(
                [page.load, *settings],
                self.redraw,
                inputs,
                [shown, drawing],
                trigger_mode="always_last",
                **ONE_AT_A_TIME,
            )
            gr.on([complete.click], self.complete, [canvas, rows, prompt, seed, *sampling], completed, **ONE_AT_A_TIME)
            shown.select(self.clicked, None, [which, place])
            looked_at = [which.change, place.change, drawing.change]
            gr.on(
                looked_at,
                self.show_distribution,
                [drawing, which, place],
                bars,
                trigger_mode="always_last",
                **ONE_AT_A_TIME,
            )
        return page

    def draw(self, prompt: str, seed: int, *sampling):
        """The pictures of a prompt as each token comes, (PIL image, None), and at last all of them with their Drawing."""
        with in_a_sentence():
            prompt, text_tokens, how = self.inputs(prompt, seed, sampling, NUM_SHOWN)
            for image_tokens in self.token_by_token(text_tokens, how):
                yield picture(self.decode_so_far(image_tokens), COLUMNS), None
            yield self.finished(prompt, sampling, image_tokens)

    def redraw(self, prompt: str, seed: int, *sampling):
        """The last of what `draw` gives, at once."""
        with in_a_sentence():
            prompt, text_tokens, how = self.inputs(prompt, seed, sampling, NUM_SHOWN)
            return self.finished(prompt, sampling, self.pipeline.dall_e.generate(text_tokens, **how))

    def inputs(self, prompt: str | None, seed: int | None, sampling: tuple, number: int) -> tuple[str, Tensor, dict]:
        """A prompt without needless blanks, and what DallE.generate takes for `number` pictures of it. Raises
        UserError for a prompt that the model cannot be asked for."""
        prompt = asked(prompt, self.pipeline.data)
        seeds = [(seed or 0) + i for i in range(number)]
        text_tokens, u = self.pipeline.inputs([prompt] * number, seeds)
        return prompt, text_tokens, {"u": u, **dict(zip(SLIDERS, sampling))}

    def finished(self, prompt: str, sampling: tuple, image_tokens: Tensor):
        """Whole pictures (PIL image) and their Drawing."""
        images = self.pipeline.dvae.decode(image_tokens)
        return picture(images, COLUMNS), Drawing(prompt, dict(zip(SLIDERS, sampling)), image_tokens)

    def complete(self, canvas: dict, rows: int, prompt: str, seed: int, *sampling):
        """A drawing's upper `rows` rows of tokens gone on from in different ways: pictures as each token comes."""
        with in_a_sentence():
            _, text_tokens, how = self.inputs(prompt, seed, sampling, NUM_SHOWN)
            prefix = self.pipeline.dvae.encode(self.top_of(canvas, rows)).expand(NUM_SHOWN, -1)
            for image_tokens in self.token_by_token(text_tokens, how, prefix):
                yield picture(self.decode_so_far(image_tokens), COLUMNS)

    def token_by_token(self, text_tokens: Tensor, how: dict, image_tokens: Tensor | None = None) -> Iterator[Tensor]:
        """Yields the image tokens (B, n) as they are drawn for captions (B, T), after those given, up to (B, N)."""
        image_tokens = text_tokens[:, :0] if image_tokens is None else image_tokens
        yield image_tokens
        for number in range(image_tokens.shape[1] + 1, self.pipeline.dall_e.config.image_seq_len + 1):
            image_tokens = self.pipeline.dall_e.generate(text_tokens, prefix=image_tokens, num_tokens=number, **how)
            yield image_tokens

    def decode_so_far(self, image_tokens: Tensor) -> Tensor:
        """The first n tokens of images, (B, n), to images (B, C, H, H) in [0, 1], gray where no token is yet. Around them the
        dVAE is given the tokens of a black image."""
        c, n = self.pipeline.dvae.config, image_tokens.shape[1]
        rest = self.empty_image[n:].expand(len(image_tokens), -1)
        images = self.pipeline.dvae.decode(torch.cat([image_tokens, rest], dim=1))
        drawn = torch.arange(c.grid_size**2, device=images.device).view(1, 1, c.grid_size, c.grid_size) < n
        return torch.where(F.interpolate(drawn.float(), images.shape[-2:]) > 0, images, 0.4)

    @cached_property
    def empty_image(self) -> Tensor:
        """The tokens of a black image, (N,)."""
        c = self.pipeline.dvae.config
        black = torch.zeros(1, c.image_channels, c.image_size, c.image_size, device=self.pipeline.device)
        return self.pipeline.dvae.encode(black)[0]

    def top_of(self, canvas: dict, rows: int) -> Tensor:
        """The pixels of the upper `rows` rows of tokens, (1, C, h, H) in [0, 1], of what was drawn on a black canvas.
        Raises UserError if it was wiped out."""
        if canvas["composite"] is None:
            raise UserError("There is no canvas any more; load the page again.")
        c = self.pipeline.dvae.config
        drawn = torch.tensor(canvas["composite"])[None, ..., : c.image_channels].permute(0, 3, 1, 2) / 255
        image = F.interpolate(drawn, (c.image_size, c.image_size), mode="area")
        return image[:, :, : rows * c.image_size // c.grid_size].to(self.pipeline.device)

    def clicked(self, event: gr.SelectData) -> tuple[int, int]:
        """The picture and the token that were clicked on, counted from 1."""
        c = self.pipeline.dvae.config
        size, cell = SCALE * (c.image_size + 2), SCALE * c.image_size // c.grid_size
        column, row = (at // size for at in event.index)
        x, y = (min(max(at % size - SCALE, 0) // cell, c.grid_size - 1) for at in event.index)
        return min(row * COLUMNS + column, NUM_SHOWN - 1) + 1, y * c.grid_size + x + 1

    def distribution(self, drawing: Drawing, which: int, place: int) -> tuple[Tensor, Tensor]:
        """The probabilities (K,) that token `place` of picture `which`, both from 0, was drawn from, and their codes (K,),
        the likeliest first."""
        dall_e, sampling = self.pipeline.dall_e, dict(drawing.sampling)
        scale = sampling.pop("guidance_scale")
        sampling["temperature"] = sampling["temperature"] or 1e-3  # at 0 the likeliest code is taken
        text_tokens, _ = self.pipeline.inputs([drawing.prompt], [0])
        with torch.no_grad():
            both = torch.cat([text_tokens, dall_e.null_caption[None]])
            _, logits = dall_e.logits(both, drawing.image_tokens[[which, which]])  # (2, N, K)
        conditional, unconditional = logits[:, place].split(1)
        probs, codes = filtered_probs(unconditional + scale * (conditional - unconditional), **sampling)
        return probs[0] / probs.sum(), codes[0]

    def show_distribution(self, drawing: Drawing | None, which: int, place: int) -> str:
        """The distribution of a token as HTML: a bar for each of its likeliest codes, beside what would be there with it."""
        if drawing is None:
            return ""
        probs, codes = self.distribution(drawing, which - 1, place - 1)
        drawn = drawing.image_tokens[which - 1, place - 1].item()
        images = self.around(drawing, which - 1, place - 1, codes[:NUM_BARS])
        rows = []
        for prob, code, image in zip(probs.tolist(), codes.tolist(), images):
            name, color = (f"code {code} (drawn)", "primary-500") if code == drawn else (f"code {code}", "neutral-400")
            rows.append(
                f'<div class="code"><img src="{data_address(image)}" alt=""><span>{name}</span><div class="bar">'
                f'<div style="width:{prob:.1%}; background:var(--{color})"></div></div><b>{prob:.1%}</b></div>'
            )
        return "".join(rows)

    def around(self, drawing: Drawing, which: int, place: int, codes: Tensor) -> Tensor:
        """What picture `which` shows at token `place` and around it with each of some codes (B,) in the token's place, three
        cells of the grid in each direction: (B, C, h, h) in [0, 1]."""
        c = self.pipeline.dvae.config
        cell, (row, column) = c.image_size // c.grid_size, divmod(place, c.grid_size)
        image_tokens = drawing.image_tokens[which].repeat(len(codes), 1)
        image_tokens[:, place] = codes
        images = F.pad(self.pipeline.dvae.decode(image_tokens), [cell] * 4)
        return images[:, :, row * cell : (row + 3) * cell, column * cell : (column + 3) * cell]


def data_address(image: Tensor) -> str:
    """An image (C, H, W) in [0, 1] as an address that contains it."""
    file = io.BytesIO()
    to_picture(image).save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


if __name__ == "__main__":
    start(main)
