"""The scripts of lesson 17 as a reader runs them, at tiny settings, and their answers to mistakes."""

import csv
import re
import shutil

import pytest
import torch
from scripts import ROOT, TINY, files_of, read_image, refused, script, succeeds

from lesson_17.pipeline import Pipeline

STEPS = ["--num_training_steps", 2]
CLIP_SIZES = ["--image_width", 16, "--image_layers", 1, "--patch_size", 7, "--embed_dim", 8]
OTHER_SIZES = ["--num_layers", 1, "--dim", 16, "--width", 8, "--head_dim", 8]
SIZES = [*CLIP_SIZES, *OTHER_SIZES]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a run with spaces")
    flags = (*TINY, *STEPS, *SIZES, "--save_every", 1, "--output_dir", folder)
    succeeds("lesson_17/train_mnist.py", *flags, cwd=ROOT / "lesson_17")
    return folder


def models(trained, steps=2):
    kinds = ("clip", "prior", "decoder")
    return [part for kind in kinds for part in (f"--{kind}_checkpoint", trained / kind / f"{kind}-{steps}.pt")]


def test_all_stages_write_what_they_promise(trained):
    for stage in ("clip", "prior", "decoder"):
        checkpoints = {f"{stage}-1.pt", f"{stage}-2.pt"}
        others = {"sample-2.png", "metrics.csv", "held_out_metrics.csv", "loss.png"}
        assert files_of(trained / stage) == checkpoints | others
    with open(trained / "clip/metrics.csv") as file:
        assert next(csv.DictReader(file)).keys() >= {"loss", "floor", "logit_scale"}
    with open(trained / "prior/held_out_metrics.csv") as file:
        assert next(csv.DictReader(file)).keys() >= {"own_caption_nearest", "cosine_to_caption", "cosine_to_images"}


def test_generating_writes_every_image_and_its_row(trained, tmp_path):
    succeeds(
        *("lesson_17/generate_mnist.py", *models(trained), "--sampling_steps", 3, "--output_dir", tmp_path),
        *("--prompts", "seven", "TWO", "--num_samples", 2, "--seed", 5),
    )
    with open(tmp_path / "samples.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt"] for row in rows] == ["seven", "seven", "two", "two"]
    assert [row["seed"] for row in rows] == ["5", "6", "7", "8"]
    assert all(read_image(tmp_path / row["file"]).shape == (1, 28, 28) for row in rows)
    assert (tmp_path / "grid.png").exists()


@pytest.mark.parametrize("eta", [0, 1])
def test_an_image_is_a_function_of_its_prompt_and_seed(trained, tmp_path, eta):
    sampling = ("lesson_17/generate_mnist.py", *models(trained), "--sampling_steps", 3, "--eta", eta)
    succeeds(*sampling, "--prompts", "3", "7", "--seed", 7, "--output_dir", tmp_path / "both")
    succeeds(*sampling, "--prompts", "7", "--seed", 8, "--output_dir", tmp_path / "alone")
    both, alone = read_image(tmp_path / "both/0001-7.png").int(), read_image(tmp_path / "alone/0000-7.png").int()
    assert both.shape == alone.shape == (1, 28, 28)
    assert (both - alone).abs().max() <= 1


def test_stages_of_three_channels_train(tmp_path):
    channels = ("--image_channels", 3, "--output_dir", tmp_path)
    succeeds("lesson_17/train_mnist.py", *TINY, *SIZES, "--num_training_steps", 1, *channels)
    assert read_image(tmp_path / "decoder/sample-1.png").shape[0] in (3, 4)


MISTAKES = [
    (["--prompts", "eleven"], "unknown"),
    (["--sampling_steps", "0"], "sampling_steps"),
    (["--guidance_scale", "nan"], "guidance_scale"),
    (["--prior_checkpoint", "nowhere.pt"], "nowhere.pt"),
    (["--decoder_checkpoint", "requirements.txt"], "not a checkpoint"),
    (["--clip_checkpoint", "/nowhere"], "/nowhere"),
]


@pytest.mark.parametrize("arguments,reason", MISTAKES)
def test_mistakes_are_answered_in_one_sentence(trained, tmp_path, arguments, reason):
    none = tmp_path / "none"
    refused(script("lesson_17/generate_mnist.py", *models(trained), *arguments, "--output_dir", none), reason)
    assert not none.exists()


@pytest.mark.parametrize(
    "name", ["train_mnist.py", "train_clip.py", "train_prior.py", "train_decoder.py", "generate_mnist.py"]
)
def test_help_explains_each_flag(name):
    assert "--seed" in succeeds(f"lesson_17/{name}", "--help").stdout


INCLUDED = ["--clip_checkpoint", ROOT / "lesson_17/pretrained/mnist/clip.safetensors"]
TRAINING_MISTAKES = [
    ("train_clip.py", ["--preset", "paper"], "patches of 16"),
    ("train_clip.py", ["--text_seq_len", 0], "text_seq_len"),
    ("train_mnist.py", ["--image_channels", 2], "image_channels"),
    ("train_clip.py", ["--width", 8], "unrecognized arguments: --width 8"),
    ("train_mnist.py", ["--stage", "clip"], "unrecognized arguments: --stage clip"),
    ("train_prior.py", [*INCLUDED, "--ema_decay", 1.5], "ema_decay"),
    ("train_prior.py", [], "no trained CLIP"),
    ("train_prior.py", [*INCLUDED, "--image_channels", 3], "28x28 pixels in 1 channels"),
    ("train_decoder.py", [*INCLUDED, "--width", 9], "width"),
    ("train_decoder.py", [*INCLUDED, "--decoder_image_size", 29], "larger than the images"),
]


@pytest.mark.parametrize("name, arguments, reason", TRAINING_MISTAKES)
def test_mistakes_in_training_are_answered_in_one_sentence(tmp_path, name, arguments, reason):
    result = script(f"lesson_17/{name}", "--dataset", "mnist_5k", *arguments, "--output_dir", tmp_path)
    refused(result, reason)
    assert not list(tmp_path.rglob("*.pt"))


def test_a_size_of_the_decoders_images_is_refused_before_any_training(tmp_path):
    large = ("--decoder_image_size", 29, "--output_dir", tmp_path)
    refused(script("lesson_17/train_mnist.py", *TINY, *STEPS, *SIZES, *large), "larger than the images")
    assert not list(tmp_path.iterdir())


def train_all(folder, *flags):
    """train_mnist.py in a folder: which stages it trained, of clip, prior and decoder."""
    output = succeeds("lesson_17/train_mnist.py", *TINY, *SIZES, *STEPS, "--output_dir", folder, *flags).stdout
    trained = re.findall(r"^Training (clip|prior|decoder)\b", output, re.MULTILINE)
    assert output.count("is trained already") == 3 - len(trained)
    return trained


def test_what_is_finished_with_the_same_config_is_skipped(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    assert train_all(folder) == []
    assert train_all(folder, "--dim", 32) == ["prior"]
    assert train_all(folder, "--dim", 32) == []
    assert (folder / "prior/earlier-1/prior-2.pt").exists()
    assert train_all(folder, "--decoder_image_size", 14, "--dim", 32) == ["decoder"]
    assert train_all(folder, "--image_channels", 3) == ["clip", "prior", "decoder"]


def test_a_new_clip_makes_the_others_new(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    succeeds("lesson_17/train_clip.py", *TINY, *STEPS, *CLIP_SIZES, "--seed", 1, "--output_dir", folder)
    assert train_all(folder) == ["prior", "decoder"]
    resume = ("lesson_17/train_prior.py", *TINY, "--num_layers", 1, "--dim", 16, "--resume", "--output_dir", folder)
    succeeds("lesson_17/train_clip.py", *TINY, *STEPS, *CLIP_SIZES, "--seed", 2, "--output_dir", folder)
    refused(script(*resume, "--num_training_steps", 3), "the clip it learned from was")


def test_a_stage_that_was_stopped_half_way_is_no_finished_one(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    (folder / "decoder/decoder-2.pt").unlink()
    assert train_all(folder) == ["decoder"]
    assert (folder / "decoder/earlier-1/decoder-1.pt").exists()


@pytest.mark.parametrize("stopped, never_begun", [("decoder", []), ("prior", ["decoder"])])
def test_resume_skips_what_is_finished_and_goes_on_with_what_is_not(stopped, never_begun, trained, tmp_path):
    """Stopped in any stage, the same command with --resume ends with the weights of a run that was not stopped."""
    folder = shutil.copytree(trained, tmp_path / "run")
    (folder / stopped / f"{stopped}-2.pt").unlink()
    for stage in never_begun:
        shutil.rmtree(folder / stage)
    output = succeeds("lesson_17/train_mnist.py", *TINY, *SIZES, *STEPS, "--output_dir", folder, "--resume").stdout
    assert f"Resuming from {folder / stopped / stopped}-1.pt" in output and not list(folder.rglob("earlier-*"))
    assert output.count("is trained already") == 2 - len(never_begun)
    for stage in ("clip", "prior", "decoder"):
        before, after = (torch.load(path / stage / f"{stage}-2.pt")["model"] for path in (trained, folder))
        assert all(torch.equal(after[name], weights) for name, weights in before.items()), stage


def test_a_clip_that_is_named_is_taken_and_none_is_trained(trained, tmp_path):
    named = trained / "clip/clip-1.pt"
    succeeds("lesson_17/train_mnist.py", *TINY, *SIZES, *STEPS, "--clip_checkpoint", named, "--output_dir", tmp_path)
    assert not (tmp_path / "clip").exists()
    for stage in ("prior", "decoder"):
        source = torch.load(tmp_path / stage / f"{stage}-2.pt")["sources"]["clip"]
        assert source["file"] == str(named)


def test_a_stage_does_not_go_on_past_its_end(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    resume = ("lesson_17/train_clip.py", *TINY, *CLIP_SIZES, *STEPS, "--output_dir", folder, "--resume")
    refused(script(*resume), "at step 2 already")


def test_every_flag_of_drawing_reaches_the_pipeline(trained, tmp_path, monkeypatch):
    calls, draw = [], Pipeline.draw
    monkeypatch.setattr(
        Pipeline, "draw", lambda self, *args, **how: calls.append((*args, how)) or draw(self, *args, **how)
    )
    flags = {"guidance_scale": 3.0, "prior_guidance_scale": 2.0, "sampling_steps": 3, "eta": 0.25}
    given = [part for name, value in flags.items() for part in (f"--{name}", value)]
    more = ("--prompts", "7", "two", "--num_samples", 2, "--seed", 5, "--output_dir", tmp_path)
    succeeds("lesson_17/generate_mnist.py", *models(trained), *given, *more)
    assert calls == [(["7", "7", "two", "two"], [5, 6, 7, 8], flags)]


def test_models_of_another_clip_are_refused(trained, tmp_path):
    one = ("--num_training_steps", 1, "--output_dir", tmp_path)
    succeeds("lesson_17/train_clip.py", *TINY, *CLIP_SIZES, *one)
    other = ("--clip_checkpoint", tmp_path / "clip/clip-1.pt")
    refused(script("lesson_17/generate_mnist.py", *models(trained), *other), "another CLIP")
    succeeds("lesson_17/train_decoder.py", *TINY, "--width", 8, "--head_dim", 8, *one)
    mixed = ("--decoder_checkpoint", tmp_path / "decoder/decoder-1.pt")
    refused(script("lesson_17/generate_mnist.py", *models(trained), *mixed), "another CLIP")


def test_checkpoints_hold_what_rebuilds_the_model(trained):
    checkpoint = torch.load(trained / "prior/prior-2.pt", weights_only=True)
    assert checkpoint.keys() >= {"name", "config", "step", "model", "ema", "optimizers", "training", "sources"}
    assert checkpoint["model"]["embed_std"].shape == (8,)
