"""The playgrounds, in a real browser. With SCREENSHOTS=1 in the environment, their pictures on the lessons' pages are
made anew.
"""

import os
import subprocess
import sys
import time
from argparse import Namespace

import numpy as np
import pytest
import torch
from browser import PATIENCE, Server, Visitor, needs_browser
from scripts import ROOT, refused

for needed in ("gradio", "lesson_17.edit_mnist", "utils.scoring", "utils.datasets.colored_mnist"):
    pytest.importorskip(needed, reason=f"no {needed} here")

from lesson_08.pipeline import DEFAULT_SAMPLING, Pipeline
from lesson_08.playground import SLIDERS, Playground
from utils.cli import UserError
from utils.playground import gr, serve
from utils.scoring import load_scorer

PICTURES = "The pictures"
NOISE = "x_t above the x_0 that is predicted of it"


def screenshot(visitor, path):
    if "SCREENSHOTS" in os.environ:
        visitor.driver.save_screenshot(ROOT / path)


def read(scorer, images):
    return scorer(images).argmax(dim=1).tolist()


@pytest.fixture(scope="module")
def playground():
    return Playground(Pipeline.load(pretrained="mnist"))


@pytest.fixture(scope="module")
def scorer():
    """What reads digits."""
    return load_scorer("cpu")


def defaults(**change):
    """The values of the sliders."""
    return tuple({**DEFAULT_SAMPLING, **change}[name] for name in SLIDERS)


def cells(picture):
    """The gray images of a picture of the page, four in a row, (B, 28, 28) of 0 .. 255."""
    pixels = torch.tensor(np.array(picture))[::5, ::5]
    return pixels.unfold(0, 30, 30).unfold(1, 30, 30).flatten(0, 1)[:, 1:-1, 1:-1]


@pytest.fixture(scope="module")
def sevens(playground):
    """What a visitor sees while sevens are drawn, and their Drawing at last."""
    *drawn, (last, drawing) = playground.draw("seven", 3, *defaults())
    return [cells(picture) for picture, _ in drawn], cells(last), drawing


def test_pictures_appear_token_by_token(sevens, scorer):
    pictures, last, drawing = sevens
    assert len(pictures) == 50 and drawing.prompt == "seven" and drawing.image_tokens.shape == (8, 49)
    for count, picture in enumerate(pictures):
        of_tokens = picture.unfold(1, 4, 4).unfold(2, 4, 4).flatten(3).flatten(1, 2)  # (8, 49, 16)
        gray = (of_tokens == 102).all(dim=-1)  # 0.4
        assert gray[:, count:].all() and not gray[:, :count].any()
    assert torch.equal(pictures[-1], last) and read(scorer, last[:, None] / 255).count(7) >= 7


def test_what_is_drawn_at_once_is_what_is_drawn_token_by_token(playground, sevens):
    picture, drawing = playground.redraw("seven", 3, *defaults())
    assert torch.equal(drawing.image_tokens, sevens[2].image_tokens) and torch.equal(cells(picture), sevens[1])


def test_the_pictures_are_those_of_the_script(playground, sevens, digits):
    drawn = playground.pipeline.draw(["seven"] * 8, list(range(3, 11)), **DEFAULT_SAMPLING)
    assert ((255 * drawn[:, 0]).round() - sevens[1]).abs().max() <= 1
    from lesson_17 import pipeline as pipeline_17
    from lesson_17 import playground as playground_17

    unclip, how = pipeline_17.Pipeline.load(pretrained="mnist"), {**pipeline_17.DEFAULT_SAMPLING, "sampling_steps": 5}
    scales = how["guidance_scale"], how["prior_guidance_scale"]
    steps = list(playground_17.Playground(unclip, digits[1]).draw("seven", 3, 5, *scales, how["eta"]))
    assert len(steps) == 5 and steps[-1][1].shape == (4, unclip.prior.config.clip_embed_dim)
    drawn = unclip.draw(["seven"] * 4, list(range(3, 7)), **how)
    x_t, x_0 = cells(steps[-1][0]).split(4)
    assert torch.equal(x_t, x_0) and ((255 * drawn[:, 0]).round() - x_0).abs().max() <= 1
    first, _ = cells(steps[0][0]).float().split(4)
    assert first.std() > 50  # noise


def test_a_drawing_is_completed_below_what_is_kept_of_it(playground):
    canvas = np.zeros((280, 280, 4), dtype=np.uint8)
    canvas[..., 3] = 255
    canvas[40:80, 60:200, :3] = 255  # the bar of a seven
    pictures = [cells(picture) for picture in playground.complete({"composite": canvas}, 3, "seven", 0, *defaults())]
    assert len(pictures) == 1 + 49 - 3 * 7
    first, last = pictures[0], pictures[-1].float()
    assert (first[:, 12:] == 102).all() and (first == first[0]).all()
    bar = torch.zeros(28, 28)
    bar[4:8, 6:20] = 255
    assert (last[:, :8] - bar[:8]).abs().mean() < 20
    assert (last[:, 16:] - last[0, 16:]).abs().mean() > 5  # different ways to go on


@pytest.mark.parametrize("change", [{}, {"guidance_scale": 3.0, "top_k": 4}, {"temperature": 1.5, "top_p": 0.8}])
def test_the_distribution_shown_is_that_of_the_draw(playground, change):
    """A token is where the cumulative probability of the distribution shown passes the number that decides its draw."""
    _, drawing = playground.redraw("seven", 3, *defaults(**change))
    _, u = playground.pipeline.inputs(["seven"] * 8, list(range(3, 11)))
    for which, place in [(0, 0), (2, 17), (5, 24), (7, 48)]:
        probs, codes = playground.distribution(drawing, which, place)
        index = torch.searchsorted(probs.cumsum(dim=0), u[which, place], right=True)
        assert codes[index] == drawing.image_tokens[which, place]
        assert probs.sum() == pytest.approx(1) and (not change.get("top_k") or (probs > 0).sum() <= 4)


@pytest.mark.parametrize("row, column, y, x", [(0, 0, 0, 0), (1, 1, 2, 3), (1, 3, 6, 6)])
def test_a_click_finds_its_token(playground, row, column, y, x):
    """Pictures have 28 pixels of five, cells of four, and a frame of one."""
    click = Namespace(index=[5 * (30 * column + 1 + 4 * x + 2), 5 * (30 * row + 1 + 4 * y + 2)])
    assert playground.clicked(click) == (4 * row + column + 1, 7 * y + x + 1)
    frame = Namespace(index=[5 * 30 * column, 5 * 30 * row])
    assert playground.clicked(frame) == (4 * row + column + 1, 1)


def test_what_is_kept_of_a_drawing_is_its_top(playground):
    canvas = np.zeros((280, 280, 4), dtype=np.uint8)
    canvas[..., 3] = 255
    canvas[40:80, 100:120, :3] = 255
    top = playground.top_of({"composite": canvas}, rows=2)
    expected = torch.zeros(1, 1, 8, 28)
    expected[:, :, 4:8, 10:12] = 1
    torch.testing.assert_close(top, expected)
    with pytest.raises(UserError, match="no canvas"):
        playground.top_of({"composite": None}, rows=2)


def test_what_a_code_would_show_is_around_its_place(playground, sevens):
    drawing = sevens[2]
    drawn = drawing.image_tokens[2, 24:25]
    (shown,) = playground.around(drawing, 2, 24, drawn)
    torch.testing.assert_close(shown, playground.pipeline.dvae.decode(drawing.image_tokens[2:3])[0, :, 8:20, 8:20])


@pytest.mark.parametrize("lesson", ["lesson_08", "lesson_17"])
def test_without_gradio_it_says_what_to_install(lesson):
    hide = f"import runpy, sys; sys.modules['gradio'] = None; runpy.run_path('{lesson}/playground.py', run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, cwd=ROOT)
    refused(result, "pip install -r requirements-playground.txt")


def test_settings_of_proxies_and_of_other_pages_do_not_matter(tmp_path):
    (tmp_path / "gradio").write_text("Where Gradio would keep pictures, no folder can be made.")
    nowhere = {"http_proxy": "http://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9", "HTTPS_PROXY": "odd://x"}
    others = {"GRADIO_SERVER_PORT": "auto", "GRADIO_SERVER_NAME": "nowhere", "GRADIO_NUM_PORTS": "many"}
    here = {name: value for name, value in os.environ.items() if name.lower() not in ("no_proxy", "gradio_temp_dir")}
    code = f"""if True:
        import os
        from utils.playground import PICTURE, gr, serve
        from PIL import Image
        with gr.Blocks() as page:
            shown = gr.Image(**PICTURE)
        serve(page)
        print(shown.postprocess(Image.new("L", (8, 8))).path)
        assert os.environ.items() >= {nowhere | others}.items()  # what loads data from elsewhere may need them
    """
    environment = {**here, **nowhere, **others, "TMPDIR": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "The page is at http://127.0.0.1:" in result.stdout and str(tmp_path) in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["gradio"]  # a visitor's pictures are not kept


@pytest.fixture(scope="module")
def dall_e_page():
    server = Server("lesson_08")
    yield server.address
    server.stop()


@pytest.fixture(scope="module")
def unclip_page(tmp_path_factory):
    server = Server("lesson_17", "--dataset", "mnist_5k", "--data_dir", tmp_path_factory.mktemp("data"))
    yield server.address
    server.stop()


@pytest.fixture
def visit(request):
    def visit(address, **window):
        visitor = Visitor(address, **window)
        request.addfinalizer(visitor.leave)
        return visitor

    return visit


def draws(visitor, prompt, picture=PICTURES):
    """Type a prompt and press Enter; how many pictures came, one in the place of another, until the last one."""
    before = visitor.wait(lambda: visitor.address_of(picture))
    visitor.write("Prompt", prompt)
    seen = {visitor.wait(lambda: {visitor.address_of(picture)} - {before, None}).pop()}
    quiet = 0
    while quiet < 60:  # looks in which nothing changed; a busy machine takes its time
        found = visitor.address_of(picture)
        quiet = 0 if found not in seen else quiet + 1
        seen.add(found)
        time.sleep(0.05)
    return len(seen)


@needs_browser
def test_dall_e_draws_what_is_typed_token_by_token(dall_e_page, visit, scorer):
    visitor = visit(dall_e_page)
    assert draws(visitor, "seven") > 10
    images = visitor.images(PICTURES, columns=4)
    assert images.shape == (8, 1, 28, 28) and read(scorer, images).count(7) >= 7
    visitor.wait(lambda: len(visitor.all(".code")) == 12)
    screenshot(visitor, "lesson_08/figures/playground.png")
    assert all(address.startswith((dall_e_page, "data:")) for address in visitor.requests())

    before = visitor.address_of(PICTURES)
    visitor.write("temperature", 0)
    visitor.wait(lambda: visitor.address_of(PICTURES) != before)
    images = visitor.images(PICTURES, columns=4)
    assert (images == images[0]).all()  # the likeliest tokens are the same whatever the seed

    visitor.drag(visitor.one(f'img[alt="{PICTURES}"]'), [(0, 0), (0, 0)])  # between the pictures of both rows
    visitor.wait(lambda: visitor.labelled("Picture").get_attribute("value") != "1")


@needs_browser
def test_dall_e_completes_a_drawing(dall_e_page, visit):
    visitor = visit(dall_e_page)
    visitor.press("Complete a drawing")
    canvas = visitor.one("canvas")
    visitor.drag(canvas, [(-60, -80), (60, -80), (20, 0)])
    visitor.press("Complete")
    visitor.wait(lambda: visitor.address_of("The completed drawings"))
    visitor.wait(lambda: is_whole(visitor.images("The completed drawings", columns=4)))
    images = visitor.images("The completed drawings", columns=4)
    top, bottom = images[:, :, :12], images[:, :, 20:]  # what is drawn below reaches up a little
    assert top.max() > 0.9 and (top - top[0]).abs().mean() < 0.02 < (bottom - bottom[0]).abs().mean()


def is_whole(images):
    """Whether no token of the images (B, C, H, H) is still gray, for want of being drawn."""
    return ((images[:, :, -4:, -4:] - 0.4).abs() > 0.01).any()


@needs_browser
@pytest.mark.parametrize("prompt", ["elephant", "", "<img src=x id=planted onerror=alert(1)>"])
def test_a_wrong_prompt_gets_the_sentence_of_the_command_line(prompt, dall_e_page, visit):
    visitor = visit(dall_e_page)
    before = visitor.wait(lambda: visitor.address_of(PICTURES))
    visitor.write("Prompt", prompt)
    (message,) = visitor.wait(visitor.messages)
    assert f"the prompt {prompt!r} is unknown; the models learned zero, one, two" in message
    assert visitor.address_of(PICTURES) == before and not visitor.all("#planted")


@needs_browser
def test_two_visitors_at_once_get_their_own(dall_e_page, visit, scorer):
    visitors = [visit(dall_e_page) for _ in range(2)]
    before = [visitor.wait(lambda visitor=visitor: visitor.address_of(PICTURES)) for visitor in visitors]
    for visitor, prompt in zip(visitors, ["four", "eight"]):
        visitor.write("Prompt", prompt)
    for visitor, digit, first in zip(visitors, [4, 8], before):
        visitor.wait(lambda visitor=visitor, first=first: visitor.address_of(PICTURES) != first)
        visitor.wait(lambda visitor=visitor: is_whole(visitor.images(PICTURES, 4)))
        assert read(scorer, visitor.images(PICTURES, columns=4)).count(digit) >= 7


@needs_browser
@pytest.mark.parametrize("page", ["dall_e_page", "unclip_page"])
def test_it_fits_a_phone_in_the_dark(page, visit, request):
    visitor = visit(request.getfixturevalue(page), width=390, height=844, theme="dark")
    visitor.wait(lambda: visitor.all("img[alt]"))
    assert visitor.is_as_wide_as_its_window()
    background = "return getComputedStyle(document.querySelector('gradio-app')).backgroundColor"
    background = visitor.driver.execute_script(background)
    assert sum(int(value) for value in background.strip("rgba()").split(",")[:3]) < 150


@needs_browser
def test_unclip_draws_and_edits(unclip_page, visit, scorer):
    visitor = visit(unclip_page)
    assert draws(visitor, "seven", NOISE) > 5
    x_t, x_0 = visitor.images(NOISE, columns=4).split(4)
    assert read(scorer, x_0) == [7] * 4
    screenshot(visitor, "lesson_17/figures/playground.png")

    visitor.press("Embeddings")
    visitor.one(".vega-embed canvas, .vega-embed svg")

    visitor.press("Between images")
    between = "Two test images and one between them"
    halfway = visitor.wait(lambda: visitor.address_of(between))
    visitor.write("Fraction of the way", 0)
    visitor.wait(lambda: visitor.address_of(between) != halfway)
    first, drawn, last = visitor.images(between, columns=3)
    assert read(scorer, torch.stack([first, last])) == [3, 8]
    assert (drawn - first).square().mean() < 0.01 < (drawn - last).square().mean()

    visitor.press("Text difference")
    visitor.wait(lambda: visitor.address_of("A test image and what it becomes"))
    visitor.write("A test image of", "elephant")
    assert "the prompt 'elephant' is unknown" in visitor.wait(visitor.messages)[0]
    assert all(address.startswith((unclip_page, "data:", "blob:")) for address in visitor.requests())


@needs_browser
def test_unclip_fills_in_what_is_painted_over(unclip_page, visit):
    visitor = visit(unclip_page)
    visitor.press("Fill in")
    visitor.press("Fill in")
    assert "Nothing is painted over yet" in visitor.wait(visitor.messages)[0]
    canvas = visitor.one("canvas")
    visitor.drag(canvas, [(-40, -60), (40, -60), (40, -30)])
    visitor.press("Fill in")
    images = visitor.images("The image, filled in", columns=4)
    lower = images[:, :, 18:]
    assert (lower == lower[0]).all() and not (images == images[0]).all()


def test_a_port_that_is_taken(dall_e_page):
    port = dall_e_page.rsplit(":", 1)[1]
    command = [sys.executable, ROOT / "lesson_08/playground.py", "--pretrained", "mnist", "--port", port]
    result = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE)
    assert result.returncode == 2 and "choose another --port" in result.stderr


def test_where_no_port_is_free_it_says_so(monkeypatch):
    def launch(self, **options):
        raise OSError("Cannot find empty port")

    monkeypatch.setattr(gr.Blocks, "launch", launch)
    with gr.Blocks() as page, pytest.raises(UserError, match="any port from 7860"):
        serve(page)
