"""Whatever a user gives, the answer is a result or one sentence: broken files, prompts and numbers, some of each, and
hundreds with --hypothesis-profile many."""

import io
import pickle
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scripts import ROOT, refused, script

from lesson_08.dall_e import DallE, DallEConfig
from lesson_08.dvae import DiscreteVAE, DVAEConfig
from lesson_17.clip import CLIP, CLIPConfig
from utils.checkpoints import CONTENTS, find_checkpoint, load_checkpoint, load_model, save_checkpoint
from utils.cli import ArgumentParser, UserError, bounded, start
from utils.data import DataSource
from utils.datasets import load_images
from utils.datasets.mnist import DIGIT_CAPTIONS
from utils.plots import save_grid
from utils.prompts import Prompts
from utils.samples import add_sample_flags, choose_prompts, draw_samples, write_images
from utils.tables import read_rows

MODELS = {
    "dvae": (DiscreteVAE, DVAEConfig(hidden_dim=8, codebook_size=16)),
    "dall_e": (DallE, DallEConfig(dim=16, num_layers=1)),
    "clip": (CLIP, CLIPConfig(image_width=16, image_layers=1, text_layers=1)),
}


def checkpoint_of(name):
    model_class, config = MODELS[name]
    rest = dict.fromkeys(CONTENTS, None)
    return {**rest, "name": name, "step": 1, "config": dict(vars(config)), "model": model_class(config).state_dict()}


@pytest.fixture(scope="module", params=MODELS)
def checkpoint(request, tmp_path_factory):
    """A whole checkpoint's name, its bytes, and a place for broken ones."""
    path = tmp_path_factory.mktemp("checkpoints") / f"{request.param}-1.pt"
    save_checkpoint(path, checkpoint_of(request.param))
    return request.param, path.read_bytes(), path


def loads_or_refuses(name, path):
    """Whether the file gives a model; whatever is not a UserError fails the test."""
    model_class, config = MODELS[name]
    try:
        model = load_model(load_checkpoint(path, name), model_class, type(config))
    except UserError as error:
        assert "\n" not in str(error)
        return False
    return isinstance(model, model_class)


@given(st.data())
def test_broken_checkpoints(checkpoint, data):
    name, whole, path = checkpoint
    change = data.draw(st.sampled_from(["cut", "flip", "noise", "insert"]))
    place = data.draw(st.integers(0, len(whole) - 1))
    if change == "cut":
        content = whole[:place]
    elif change == "flip":
        content = whole[:place] + bytes([whole[place] ^ 1 << data.draw(st.integers(0, 7))]) + whole[place + 1 :]
    elif change == "insert":
        content = whole[:place] + data.draw(st.binary(min_size=1, max_size=50)) + whole[place:]
    else:
        content = data.draw(st.binary(max_size=200))
    path.write_bytes(content)
    loads_or_refuses(name, path)


values = st.one_of(
    st.none(), st.integers(-5, 5), st.text(max_size=5), st.lists(st.integers(), max_size=2), st.booleans()
)


@given(st.data())
def test_checkpoints_of_other_shapes(checkpoint, data):
    """Parts that are missing, or something else than they should be, as in an older or a later version."""
    name, _, path = checkpoint
    content = checkpoint_of(name)
    part = content
    for _ in range(data.draw(st.integers(1, 2))):
        key = data.draw(st.sampled_from(sorted(part)))
        if data.draw(st.booleans()):
            part.pop(key)
        else:
            part[key] = data.draw(values)
        if not part or not isinstance(content.get("config"), dict):
            break
        part = content["config"]
    save_checkpoint(path, content)
    loads_or_refuses(name, path)


class Trap:
    def __reduce__(self):
        return print, ("this must not be printed",)


def test_code_in_a_file_is_not_run(tmp_path, capsys):
    plain, zipped = tmp_path / "dvae-1.pt", tmp_path / "dvae-2.pt"
    plain.write_bytes(pickle.dumps(Trap()))
    torch.save({"name": "dvae", "config": Trap()}, zipped)
    for path in (plain, zipped):
        with pytest.raises(UserError, match="cannot be read|can be read"):
            load_checkpoint(path, "dvae")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "name", ["", ".", "/", "https://example.org/dvae-1.pt", "x" * 10_000, "a\0b", "lesson_08", "-1"]
)
def test_names_that_are_no_checkpoints(name):
    with pytest.raises(UserError):
        find_checkpoint(name, "dvae")


DIGITS = Prompts(DIGIT_CAPTIONS, DIGIT_CAPTIONS, closed=True)


def parsed(arguments):
    """What the flags of a generator make of the arguments; None if they refuse them, in one sentence."""
    parser = ArgumentParser("test")
    add_sample_flags(parser, ROOT)
    parser.add_argument("--temperature", type=bounded(float, 0, 100), default=1.0)
    stderr, sys.stderr = sys.stderr, io.StringIO()
    try:
        args = parser.parse_args(arguments)
        return args, choose_prompts(args.prompts, args.num_samples, args.seed, DIGITS)
    except (SystemExit, UserError) as error:
        message = sys.stderr.getvalue().strip() if isinstance(error, SystemExit) else str(error)
        assert not isinstance(error, SystemExit) or error.code == 2
        assert len(message.splitlines()) == 1 and len(message) < 1000, message
        return None
    finally:
        sys.stderr = stderr


@given(
    st.lists(
        st.one_of(st.text(max_size=20), st.sampled_from([" Seven ", "7", "../7", "x" * 10_000, "\x1b[2J", "七"])),
        min_size=1,
    )
)
def test_prompts(prompts):
    result = parsed(["--prompts", *prompts])
    if result is not None:
        _, (chosen, columns) = result
        assert all(prompt in DIGIT_CAPTIONS for prompt in chosen) and 1 <= columns <= len(chosen)


numerals = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=10),
    st.sampled_from(["nan", "inf", "-inf", "1e400", "0x10", "1_000", "", " 3", "9" * 5000]),
)


@given(st.sampled_from(["--num_samples", "--seed", "--temperature"]), numerals)
def test_numbers(flag, text):
    result = parsed([f"{flag}={text}", "--prompts", "7"])
    if result is not None:
        args, (chosen, columns) = result
        assert 1 <= args.num_samples == len(chosen) <= 10_000 and 0 <= args.seed < 2**31
        assert 0 <= args.temperature <= 100 and columns <= 64


@given(st.lists(st.text(min_size=1, max_size=300), min_size=1, max_size=5))
def test_pictures_of_any_prompt_stay_in_their_folder_under_short_names(prompts):
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples"
        write_images(torch.zeros(len(prompts), 1, 4, 4), prompts, list(range(len(prompts))), samples)
        save_grid(torch.zeros(len(prompts), 1, 4, 4), samples / "grid.png", 2, prompts)
        rows = read_rows(samples / "samples.csv")
        assert len(rows) == len(list(Path(folder).rglob("*.png"))) - 1 == len(prompts)
        for row in rows:
            assert (samples / row["file"]).is_file() and len(row["file"].encode()) < 200


def test_new_pictures_take_the_place_of_earlier_ones_and_of_nothing_else(tmp_path):
    write_images(torch.zeros(3, 1, 4, 4), ["a", "b", "c"], [0, 1, 2], tmp_path)
    (tmp_path / "mine.png").write_bytes(b"mine")
    with open(tmp_path / "samples.csv", "a") as file:
        file.write("mine.png,mine,0\n../0000-x.png,no,0\n")
    (tmp_path.parent / "0000-x.png").write_bytes(b"outside")
    for first in (0, 2):
        write_images(torch.zeros(2, 1, 4, 4), ["d", "e"], [7, 8], tmp_path, first)
    names = ["0000-d.png", "0001-e.png", "0002-d.png", "0003-e.png"]
    assert [row["file"] for row in read_rows(tmp_path / "samples.csv")] == names
    assert {path.name for path in tmp_path.glob("*.png")} == {"mine.png", *names}
    assert (tmp_path.parent / "0000-x.png").exists()


def test_a_samples_csv_that_is_none_is_written_anew(tmp_path):
    (tmp_path / "samples.csv").write_bytes("file,prompt\n0000-a.png,a\n".encode("utf-16"))
    write_images(torch.zeros(1, 1, 4, 4), ["b"], [0], tmp_path)
    assert [row["file"] for row in read_rows(tmp_path / "samples.csv")] == ["0000-b.png"]


def test_pictures_drawn_before_a_stop_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.samples.AT_A_TIME", 2)

    class Pipeline:
        data = {"examples": ["a"], "words": ["a"], "closed": False}

        def read(self, prompt):
            return prompt

        def draw(self, prompts, seeds, shade):
            if 4 in seeds:
                raise KeyboardInterrupt
            return torch.full((len(prompts), 1, 4, 4), shade)

    args = Namespace(prompts=["a"], num_samples=6, seed=0, output_dir=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        draw_samples(Pipeline(), args, {"shade": 0.5})
    rows = read_rows(tmp_path / "samples.csv")
    assert [row["seed"] for row in rows] == ["0", "1", "2", "3"]
    assert {path.name for path in tmp_path.glob("*.png")} == {row["file"] for row in rows}


@pytest.mark.parametrize("encoding", ["cp1252", "cp932", "ascii"])
def test_a_console_of_few_letters_ends_nothing(monkeypatch, encoding):
    consoles = [io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", consoles[0])
    monkeypatch.setattr(sys, "stderr", consoles[1])

    def main():
        for console in consoles:
            print("DALL\u00b7E", "\u4e03", "\ud83d", "\u00e9", file=console, flush=True)

    start(main)
    assert all(console.buffer.getvalue().startswith(b"DALL") for console in consoles)


@pytest.mark.parametrize(
    "error, answer",
    [
        (
            RuntimeError("InvalidCxxCompiler: No working C++ compiler found in cpp.cxx"),
            "--compile needs a C++ compiler",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "does not fit into",
        ),
        (MemoryError(), "does not fit into the memory"),
        (FileNotFoundError(2, "No such file", "x.png"), "x.png cannot be read or written: No such file"),
        (UserError("so it is"), "so it is"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence_and_exit_code_2(capsys, error, answer):
    with pytest.raises(SystemExit) as stop:
        start(mock.Mock(side_effect=error))
    assert stop.value.code == 2 and answer in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="another"):
        start(mock.Mock(side_effect=RuntimeError("another, of a compiler perhaps")))


@pytest.mark.parametrize("lesson", ["lesson_08", "lesson_17"])
def test_where_pictures_cannot_be_written_none_are_drawn(tmp_path, lesson):
    (tmp_path / "taken").write_text("a file")
    for folder in ("taken", "taken/inside"):
        drawn = script(f"{lesson}/generate_mnist.py", "--prompts", "7", "--output_dir", tmp_path / folder)
        refused(drawn, "is no folder that can be written")


@pytest.mark.parametrize("prompt", ["../../etc/passwd", "a/b", "CON", ".", "\U0001f600", "x" * 10_000, 'a, "b"\nc'])
def test_names_of_pictures(tmp_path, prompt):
    write_images(torch.zeros(1, 1, 4, 4), [prompt], [0], tmp_path / "samples")
    (picture,) = tmp_path.rglob("*.png")
    assert picture.parent == tmp_path / "samples" and picture.name.startswith("0000-") and len(picture.name) < 60
    assert read_rows(tmp_path / "samples/samples.csv")[0]["file"] == picture.name


@pytest.fixture
def mnist_folder(tmp_path):
    """A small MNIST, as its files are."""
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (5, 28, 28))
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + bytes(5 * 28 * 28))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + (5).to_bytes(4, "big") + bytes(range(5)))
    return tmp_path


@given(st.data())
def test_broken_data(mnist_folder, data):
    name = data.draw(st.sampled_from(sorted(path.name for path in (mnist_folder / "MNIST/raw").iterdir())))
    path = mnist_folder / "MNIST/raw" / name
    whole = path.read_bytes()
    place = data.draw(st.integers(0, min(len(whole) - 1, 40)))
    content = data.draw(
        st.sampled_from(
            [b"", whole[:place], whole[:place] + b"\xff" + whole[place + 1 :], whole + b"more", b"\x1f\x8b"]
        )
    )
    try:
        path.write_bytes(content)
        train_set, test_set, _ = load_images(DataSource("mnist"), mnist_folder, "cpu")
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert len(train_set) == len(test_set) == 5 and train_set.caption_ids.max() < 20
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "flags",
    [
        ("--batch_size", 10**10),
        ("--num_layers", 10**6),
        ("--dim", 10**9),
        ("--learning_rate", "nan"),
        ("--num_training_steps", 0),
        ("--codebook_size", "1e3"),
        ("--output_dir", ROOT / "README.md"),
    ],
)
def test_numbers_of_a_training(flags):
    command = ["lesson_08/train_dvae.py"]
    if flags[0] in ("--num_layers", "--dim"):
        command = ["lesson_17/train_prior.py", "--clip_checkpoint", "lesson_17/pretrained/mnist/clip.safetensors"]
    result = script(*command, "--dataset", "mnist_5k", *flags)
    refused(result, "")
    assert "unrecognized" not in result.stderr
