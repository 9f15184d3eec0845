"""What the playgrounds (lesson_08/playground.py, lesson_17/playground.py) share: how they are served, and how a mistake is
answered. Needs gradio; nothing is fetched from elsewhere.
"""

import contextlib
import html
import os
import sys
import tempfile

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from utils.cli import ArgumentParser, UserError, bounded
from utils.plots import to_picture
from utils.prompts import Prompts

FILES = tempfile.TemporaryDirectory(prefix="playground-")  # Gradio's own place may be another user's
os.environ.update({"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": FILES.name})


@contextlib.contextmanager
def settings_hidden():
    """Hides from Gradio the environment's proxies, by which it would ask this very machine for the page, and ports that
    are meant for other pages, some of which it could not read."""
    before = dict(os.environ)
    for name in before:
        if name.lower().endswith(("_proxy", "_num_ports")) or name.startswith("GRADIO_SERVER_"):
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(before)


try:
    with settings_hidden():
        import gradio as gr
except ModuleNotFoundError:
    print("The playground needs gradio: pip install -r requirements-playground.txt, at the root.", file=sys.stderr)
    sys.exit(2)

LONGEST = 200  # characters of a prompt
SCALE = 5  # pixels of the page to one of an image
# One at a time, all visitors together: a second request waits until the first is answered.
ONE_AT_A_TIME = {"show_progress": "hidden", "concurrency_limit": 1, "concurrency_id": "models"}
PICTURE = {
    "format": "png",
    "elem_classes": "pictures",
    "interactive": False,
    "show_label": False,
    "buttons": ["download", "fullscreen"],
}
CSS = """
.gradio-container {max-width: 1100px !important; width: 100%; margin: auto}
.pictures img, .code img {image-rendering: pixelated}
.code {display: flex; align-items: center; gap: 8px; margin: 2px 0}
.code img {width: 36px; height: 36px}
.code span {width: 9em}
.code .bar {flex: 1}
.code .bar div {height: 18px}
.code b {width: 4em; text-align: right}
"""


def add_page_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--port", type=bounded(int, 1, 65535), help="of the page (default: the first free from 7860)")
    parser.add_argument(
        "--share", action="store_true", help="give the page an address that anyone can open, through Gradio's servers"
    )


def serve(page: gr.Blocks, port: int | None = None, share: bool = False) -> gr.Blocks:
    """Show a page, on this machine only unless `share`; a notebook shows it below the cell. Returns it, for a script to
    wait with block_thread() until Ctrl-C. Raises UserError if the port is taken, or none is free."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # no download
    options = {"server_name": "127.0.0.1", "server_port": port, "share": share, "ssr_mode": False}
    looks = {"theme": gr.themes.Default(**fonts), "css": CSS, "footer_links": [], "run_history": False}
    try:
        with settings_hidden():
            _, here, shared = page.queue(max_size=20).launch(prevent_thread_lock=True, quiet=True, **options, **looks)
    except OSError as error:
        where = f"port {port}" if port else "any port from 7860"
        raise UserError(f"The page cannot be served at {where}; choose another --port.") from error
    print(f"The page is at {shared or here}", flush=True)
    return page


@contextlib.contextmanager
def in_a_sentence():
    """A UserError on the way becomes a message on the page, what was typed in it as plain text."""
    try:
        yield
    except UserError as error:
        raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from error


def asked(text: str | None, data: dict) -> str:
    """What a visitor typed, cut off where it is too long, as a prompt for the models whose checkpoints say `data`.
    Words that no caption had are named on the page. Raises UserError if the models cannot be asked for it."""
    (prompt,) = Prompts.of_checkpoint(data).check([(text or "")[:LONGEST]], say=lambda said: gr.Info(html.escape(said)))
    return prompt


def slider(low: float, high: float, value: float, step: float, label: str) -> gr.Slider:
    """Whole numbers only where the step is 1."""
    return gr.Slider(low, high, value, step=step, precision=0 if step == 1 else None, label=label)


def sliders(ranges: dict[str, tuple[float, float, float]], values: dict[str, float]) -> list[gr.Slider]:
    """A slider for each of `ranges`, {name: (low, high, step)}, at its place in `values`."""
    return [slider(low, high, values[name], step, name.replace("_", " ")) for name, (low, high, step) in ranges.items()]


def prompt_row(example: str) -> tuple[gr.Textbox, gr.Button]:
    """The field of a prompt, and the button beside it."""
    with gr.Row():
        prompt = gr.Textbox(example, label="Prompt", max_length=LONGEST, scale=4)
        return prompt, gr.Button("Draw", variant="primary")


def seed_field() -> gr.Number:
    return gr.Number(0, label="Seed", minimum=0, maximum=2**31 - 1, precision=0)


def picture(images: Tensor, columns: int):
    """Images (B, C, H, W) in [0, 1] in rows, enlarged, as a PIL image; each has a frame of one pixel."""
    framed = F.pad(images.float().cpu(), (1, 1, 1, 1), value=0.5)
    empty = framed.new_ones(-len(framed) % columns, *framed.shape[1:])
    rows = rearrange([*framed, *empty], "(r k) c h w -> 1 c (r h) (k w)", k=columns)
    return to_picture(F.interpolate(rows, scale_factor=SCALE)[0])
