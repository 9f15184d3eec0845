"""The solutions of lesson 17's exercises: each change fits the code, and does what its exercise asks for."""

import re
import shutil
import subprocess
import sys

import pytest
import torch
from scripts import ROOT

from lesson_17.clip import CLIP, CLIPConfig
from utils.data import DataSource
from utils.datasets import load_images

PAGE = (ROOT / "lesson_17/exercises.md").read_text()
COLORED = """
import torch
from pathlib import Path
from utils.data import DataSource
from utils.datasets.colored_mnist import asked_for, paint
from utils.datasets.mnist import load_mnist_5k
from utils.scoring import Judge
digits = load_mnist_5k(DataSource(), Path())
train_set, test_set = paint([(split.pixels[:, 0], split.caption_ids[:, 0]) for split in digits])
assert asked_for("a red seven that leans left")["slant"] == 0 and asked_for("red 7")["slant"] == -1
leans = torch.tensor([any("leans left" in test_set.captions[i] for i in ids) for ids in test_set.caption_ids.tolist()])
assert 50 < leans.sum() < 250
slash = torch.zeros(1, 3, 28, 28)
slash[..., range(5, 23), range(22, 4, -1)] = 1
judge = Judge(DataSource("colored_mnist", 28, 3), train_set, test_set)
assert judge.reader.read(slash)["slant"] == 1 and judge.reader.read(slash.flip(3))["slant"] == 0
assert {row.name: row.value for row in judge.real_rows(50)}["real images, test, slant"] == 1
"""
LAYER_SCALE = """
import torch
from lesson_17.clip import CLIP, CLIPConfig
clip, captions = CLIP(CLIPConfig()), torch.tensor([[5, 0, 0, 0, 0, 0, 0], [6, 0, 0, 0, 0, 0, 0]])
clip(torch.rand(2, 1, 28, 28), captions, torch.arange(2), torch.arange(2)[:, None])[0].backward()
scales = [p for name, p in clip.named_parameters() if "scale_" in name and "logit" not in name]
assert all((p == 0.1).all() and p.grad.abs().sum() > 0 for p in scales)
print(sum(p.numel() for p in clip.parameters()))
"""


def solutions(number, language):
    """The blocks of a language in the solution of an exercise."""
    part = re.search(rf"^## {number}\. .*?(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)[0]
    return re.findall(rf"^```{language}\n(.*?)^```", part, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def copy(tmp_path):
    """A copy of the code, and what changes it as some exercises say."""
    for folder in ("lesson_17", "utils"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("figures", "__pycache__"))

    def change(*numbers):
        for number in numbers:
            (diff,) = solutions(number, "diff")
            subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=diff, text=True, check=True)
        return tmp_path

    return change


def run(folder, *command):
    return subprocess.run([sys.executable, *command], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_without_caption_and_without_prior(copy):
    def drawn(folder):
        prompts = ("--prompts", "3", "8", "--pretrained", "mnist", "--sampling_steps", "2")
        run(folder, "lesson_17/generate_mnist.py", *prompts, "--output_dir", folder / "drawn")
        return [path.read_bytes() for path in sorted((folder / "drawn").glob("0*.png"))]

    pictures = [drawn(copy()), drawn(copy(2)), drawn(copy(3))]
    assert len({picture for pair in pictures for picture in pair}) == 6


def test_the_slant_is_partly_in_the_embedding(copy):
    (program,) = solutions(6, "python")
    assert program.count("DataSource()") == 1
    told = run(copy(), "-c", program.replace("DataSource()", 'DataSource("mnist_5k")'))
    guess, embedding, pixels = (float(error) for error in re.findall(r"error ([\d.]+)", told))
    assert pixels < embedding < 0.9 * guess


def test_captions_name_the_slant(copy):
    run(copy(7), "-c", COLORED)


def test_fashion_mnist_joins_the_table_of_loaders(tmp_path, monkeypatch):
    class FashionMNIST:
        def __init__(self, folder, train, download):
            assert download
            self.data = torch.full((20 if train else 10, 28, 28), 7, dtype=torch.uint8)
            self.targets = torch.arange(len(self.data)) % 10

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", FashionMNIST)
    module = {}
    exec(solutions(8, "python")[0], module)
    monkeypatch.setattr("utils.datasets.LOADERS", module["LOADERS"])
    train_set, test_set, source = load_images(DataSource("fashion_mnist"), tmp_path, "cpu")
    assert train_set.pixels.shape == (20, 1, 28, 28) and len(test_set) == 10
    assert (source.image_size, source.image_channels, train_set.closed) == (28, 1, True)
    assert train_set.index_of("ankle boot").tolist() == [9, 19]


def test_a_layer_of_ones_own_counts_as_many_parameters_as_the_page_says(copy):
    parameters = sum(p.numel() for p in CLIP(CLIPConfig(text_vocab_size=302)).parameters())
    more = int(run(copy(9), "-c", LAYER_SCALE)) - sum(p.numel() for p in CLIP(CLIPConfig()).parameters())
    assert f"{parameters + more:,} parameters in place of {parameters:,}" in " ".join(PAGE.split())
