"""The scripts of lesson 8 as a reader runs them, at tiny settings, and their answers to mistakes."""

import csv

import pytest
import torch
from scripts import ROOT, TINY, files_of, read_image, refused, script, succeeds

from lesson_08.pipeline import Pipeline

TINY_DVAE = ["--hidden_dim", "8", "--codebook_size", "16", *TINY]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a run with spaces")
    succeeds(
        "lesson_08/train_dvae.py",
        *TINY_DVAE,
        "--num_training_steps",
        4,
        "--sample_every",
        2,
        "--output_dir",
        folder / "dvae",
    )
    sizes = ("--num_training_steps", 3, "--dim", 16, "--num_layers", 2)
    result = succeeds(
        "lesson_08/train_mnist.py", *TINY, *sizes, "--output_dir", folder / "dall_e", cwd=ROOT / "lesson_08"
    )
    assert f"Taking the newest dvae checkpoint, {folder / 'dvae/dvae-4.pt'}" in result.stdout  # the one beside
    return folder


def generate(trained, *arguments):
    return script("lesson_08/generate_mnist.py", "--models", trained, *arguments)


def test_runs_write_what_they_promise(trained):
    names = files_of(trained / "dvae")
    assert names == {"dvae-4.pt", "sample-2.png", "sample-4.png", "metrics.csv", "held_out_metrics.csv", "loss.png"}
    names = files_of(trained / "dall_e")
    assert names == {
        "dall_e-3.pt",
        "sample-3.png",
        "sample_prompts-3.txt",
        "metrics.csv",
        "held_out_metrics.csv",
        "loss.png",
    }
    checkpoint = torch.load(trained / "dall_e/dall_e-3.pt", weights_only=True)
    assert checkpoint.keys() >= {
        "name",
        "config",
        "tokenizer",
        "step",
        "model",
        "ema",
        "optimizers",
        "training",
        "held_out",
    }
    with open(trained / "dvae/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"] and rows[0].keys() >= {
        "loss",
        "kl",
        "perplexity",
        "tau",
    }


def test_generating_writes_every_image_and_its_row(trained, tmp_path):
    result = generate(
        trained, "--prompts", "seven", "7", "TWO", "--num_samples", 2, "--seed", 5, "--output_dir", tmp_path
    )
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "samples.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt"] for row in rows] == ["seven", "seven", "7", "7", "two", "two"]
    assert [row["seed"] for row in rows] == ["5", "6", "7", "8", "9", "10"]
    assert all(read_image(tmp_path / row["file"]).shape == (1, 28, 28) for row in rows)
    assert (tmp_path / "grid.png").exists()
    alone = tmp_path / "alone"
    assert generate(trained, "--prompts", 7, "--seed", 8, "--output_dir", alone).returncode == 0
    again = read_image(alone / "0000-7.png").int()
    assert (again - read_image(tmp_path / rows[3]["file"]).int()).abs().max() <= 1


def test_random_prompts_are_printed_as_rows(trained, tmp_path):
    result = generate(trained, "--output_dir", tmp_path)
    rows = [line for line in result.stdout.splitlines() if line.count(",") == 7]
    assert [len(line.split()) for line in rows] == [8] * 8
    assert len(list(tmp_path.glob("0*.png"))) == 64


def test_a_dvae_of_three_channels_trains(tmp_path):
    succeeds(
        "lesson_08/train_dvae.py",
        *TINY_DVAE,
        "--image_channels",
        3,
        "--num_training_steps",
        2,
        "--output_dir",
        tmp_path,
    )
    assert (tmp_path / "dvae-2.pt").exists()


def test_resume_goes_on(trained, tmp_path):
    arguments = ("lesson_08/train_dvae.py", *TINY_DVAE, "--output_dir", tmp_path, "--resume", "--num_training_steps")
    assert "starts at step 0" in succeeds(*arguments, 2).stdout
    assert "Resuming from" in succeeds(*arguments, 4).stdout
    assert (tmp_path / "dvae-4.pt").exists()


MISTAKES = [
    (["--prompts", "eleven"], "unknown"),
    (["--prompts", ""], "unknown"),
    (["--prompts", "seven", "--temperature", "-1"], "temperature"),
    (["--prompts", "seven", "--temperature", "nan"], "temperature"),
    (["--prompts", "seven", "--num_samples", "0"], "num_samples"),
    (["--prompts", "seven", "--top_p", "2"], "top_p"),
    (["--dvae_checkpoint", "nowhere.pt"], "nowhere.pt"),
    (["--dall_e_checkpoint", "requirements.txt"], "not a checkpoint"),
]


@pytest.mark.parametrize("arguments,reason", MISTAKES)
def test_mistakes_are_answered_in_one_sentence(trained, tmp_path, arguments, reason):
    result = generate(trained, *arguments, "--output_dir", tmp_path / "none")
    refused(result, reason)
    assert not (tmp_path / "none").exists()


def test_every_flag_of_drawing_reaches_the_pipeline(trained, tmp_path, monkeypatch):
    calls, draw = [], Pipeline.draw
    monkeypatch.setattr(
        Pipeline, "draw", lambda self, *args, **how: calls.append((*args, how)) or draw(self, *args, **how)
    )
    flags = {"temperature": 0.5, "top_k": 9, "top_p": 0.8, "guidance_scale": 2.0}
    given = [part for name, value in flags.items() for part in (f"--{name}", value)]
    more = ("--prompts", "7", "two", "--num_samples", 2, "--seed", 5, "--output_dir", tmp_path)
    assert generate(trained, *given, *more).returncode == 0
    assert calls == [(["7", "7", "two", "two"], [5, 6, 7, 8], flags)]


def test_checkpoints_that_do_not_belong_together_are_refused(trained, tmp_path):
    swapped = script(
        "lesson_08/generate_mnist.py",
        "--dvae_checkpoint",
        trained / "dall_e/dall_e-3.pt",
        "--dall_e_checkpoint",
        trained / "dall_e/dall_e-3.pt",
    )
    assert swapped.returncode == 2 and "a dvae checkpoint is needed" in swapped.stderr
    succeeds("lesson_08/train_dvae.py", *TINY_DVAE, "--seed", 1, "--num_training_steps", 1, "--output_dir", tmp_path)
    result = script(
        "lesson_08/generate_mnist.py",
        "--dvae_checkpoint",
        tmp_path / "dvae-1.pt",
        "--dall_e_checkpoint",
        trained / "dall_e/dall_e-3.pt",
    )
    assert result.returncode == 2 and "another dVAE" in result.stderr


@pytest.mark.parametrize("name", ["lesson_08/train_dvae.py", "lesson_08/train_mnist.py", "lesson_08/generate_mnist.py"])
def test_help_explains_each_flag(name):
    assert "--seed" in succeeds(name, "--help").stdout


def test_help_shows_the_numbers_of_the_preset_and_flags_are_not_guessed():
    help_of = {p: succeeds("lesson_08/train_dvae.py", "--preset", p, "--help").stdout for p in ("small", "large")}
    assert "1400" in help_of["small"] and "30000" in help_of["large"] and "1400" not in help_of["large"]
    refused(script("lesson_08/train_dvae.py", "--num_training", 1), "unrecognized arguments: --num_training")


def test_the_paper_preset_says_what_it_cannot_do():
    result = script("lesson_08/train_dvae.py", "--preset", "paper", "--dataset", "mnist_5k")
    assert result.returncode == 2 and "multiple of 8" in result.stderr


def test_a_model_larger_than_the_memory_is_refused(trained):
    dvae = ("--dvae_checkpoint", trained / "dvae/dvae-4.pt", "--dataset", "mnist_5k")
    result = script("lesson_08/train_mnist.py", "--preset", "paper", "--dim", 62 * 640, *dvae)
    assert result.returncode == 2 and "GiB" in result.stderr and "Traceback" not in result.stderr
