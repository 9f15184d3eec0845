"""The solutions of lesson 8's exercises: the diffs apply, the programs run, and what they are to bring about comes about."""

import re
import shutil
import struct
import subprocess
import sys

import pytest
import torch
from scripts import ROOT

TEXT = (ROOT / "lesson_08/exercises.md").read_text(encoding="utf-8")
SECTIONS = {int(part.split(".")[0]): part for part in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]}
RUN = ["--num_training_steps", "2", "--batch_size", "8", "--mixed_precision", "no", "--num_threads", "1"]
DVAE = ["lesson_08/train_dvae.py", "--hidden_dim", "4", "--codebook_size", "8", "--output_dir", "output/x/dvae", *RUN]
DALL_E = ["lesson_08/train_mnist.py", "--dim", "16", "--num_layers", "2", "--output_dir", "output/x/dall_e", *RUN]
DRAW = ["lesson_08/generate_mnist.py", "--models", "output/x", "--output_dir", "output/drawn", "--prompts"]
MANY = "import runpy, sys\nfor sys.argv in {!r}:\n    runpy.run_path(sys.argv[0], run_name='__main__')"


def blocks(number, language):
    return re.findall(rf"^```{language}\n(.*?)^```", SECTIONS[number], flags=re.MULTILINE | re.DOTALL)


def write_digits(folder, number=40):
    """Noise in the files of MNIST, or of Fashion-MNIST, which are alike."""
    raw = folder / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        pixels = torch.randint(256, (number, 28, 28), dtype=torch.uint8).numpy().tobytes()
        labels = (torch.arange(number) % 10).to(torch.uint8).numpy().tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, number, 28, 28) + pixels)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, number) + labels)


@pytest.fixture
def copy(tmp_path):
    for name in ("lesson_08", "utils"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*cache*", "figures"))
    write_digits(tmp_path / "data/MNIST")
    write_digits(tmp_path / "data/FashionMNIST")
    return tmp_path


def solve(folder, number):
    """Apply the diffs of an exercise, and write the data set that it adds."""
    for diff in blocks(number, "diff"):
        subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=folder, check=True)
    if added := re.findall(r"[Tt]h[^:]*`(utils/datasets/\w+\.py)`:", SECTIONS[number]):
        (folder / added[0]).write_text(blocks(number, "python")[0], encoding="utf-8")


def run(folder, *command):
    result = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def value(folder, module, expression):
    return run(folder, "-c", f"from {module} import *\nprint({expression})").strip()


@pytest.mark.parametrize(
    "number, dataset, prompt",
    [(6, "mnist", "siete"), (8, "pairs", "three seven"), (9, "fashion", "bag")],
)
def test_both_stages_learn_what_an_exercise_adds(number, dataset, prompt, copy):
    solve(copy, number)
    run(copy, "-c", MANY.format([[*DVAE, "--dataset", dataset], DALL_E, [*DRAW, prompt]]))
    assert len(list((copy / "output/drawn").glob("0000-*.png"))) == 1


def test_spanish_words_ask_for_their_digits(copy):
    solve(copy, 6)
    asked = "[asked_for(word)['digit'] for word in ('siete', 'nueve', '7', 'seven', 'cero')]"
    assert value(copy, "utils.datasets.colored_mnist", asked) == "[7, 9, 7, 7, 0]"


def test_small_changes_do_what_they_say(copy):
    """3: tau stays. 4: a token is predicted from one column. 10: AdamW trains 1,024 numbers more."""
    for number in (3, 4, 10):
        solve(copy, number)
    program = """
from lesson_08.dall_e import *
from lesson_08.dvae import tau_schedule
from utils.optimizers import *
print(tau_schedule(0.0), tau_schedule(1.0), set(attention_types(4)))
reached = attention_masks(7, 7, 5)["column"].float().matrix_power(4)[6 + 3 * 7 + 3, 7:]
print(reached.nonzero().flatten().tolist())  # by the position that predicts row 3, column 3
model = DallE(DallEConfig())
gains = [p for name, p in model.named_parameters() if "scale_" in name]
groups = [g for o in make_optimizers(model, TrainingConfig(1, 1, 1.0), model.blocks) for g in o.param_groups]
print(sum(p.numel() for p in gains), [any(p is gains[0] for p in g["params"]) for g in groups])
"""
    printed = run(copy, "-c", program).splitlines()
    assert printed == ["1.0 1.0 {'column'}", "[2, 9, 16, 23]", "1024 [False, False, True]"]


@pytest.mark.parametrize(
    "number, printed", [(5, r"[\d.]+% of 40 images are right"), (7, r"\d+ captions are empty, \d+ are")]
)
def test_programs_run(number, printed, copy):
    assert re.search(printed, run(copy, "-c", blocks(number, "python")[0]))
