"""The scripts of lesson 17 as a reader runs them, at tiny settings, and their answers to mistakes."""

import csv
import json
import shutil

import pytest
import torch
from scripts import ROOT, TINY, files_of, read_image, refused, script, succeeds
from tiny_clip import save_pretrained

STEPS = ["--num_training_steps", 2]
CLIP_SIZES = ["--image_width", 16, "--image_layers", 1, "--patch_size", 7, "--embed_dim", 8]
OTHER_SIZES = ["--num_layers", 1, "--dim", 16, "--width", 8, "--head_dim", 8]
SIZES = [*CLIP_SIZES, *OTHER_SIZES]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a run with spaces")
    succeeds("lesson_17/train_mnist.py", *TINY, *STEPS, *SIZES, "--output_dir", folder, cwd=ROOT / "lesson_17")
    return folder


def models(trained, steps=2):
    kinds = ("clip", "prior", "decoder")
    return [part for kind in kinds for part in (f"--{kind}_checkpoint", trained / kind / f"{kind}-{steps}.pt")]


@pytest.fixture(scope="module")
def cascade(trained, tmp_path_factory):
    """The same CLIP and prior, a decoder that draws 14x14 pixels, and an up-sampler to 28x28."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("cascade") / "run")
    small = ("--decoder_image_size", 14, "--output_dir", folder)
    trained_anew = succeeds("lesson_17/train_mnist.py", *TINY, *STEPS, *SIZES, *small).stdout
    assert "decoder-2.pt draws 28x28 pixels and not 14x14, so the decoder is trained anew" in trained_anew
    assert trained_anew.count("is trained already") == 2
    return folder


def models_of_cascade(cascade):
    return [*models(cascade), "--upsampler_checkpoint", cascade / "upsampler_28/upsampler_28-2.pt"]


def test_all_stages_write_what_they_promise(trained):
    for stage in ("clip", "prior", "decoder"):
        names = files_of(trained / stage)
        assert names == {f"{stage}-2.pt", "sample-2.png", "metrics.csv", "held_out_metrics.csv", "loss.png"}
    with open(trained / "clip/metrics.csv") as file:
        assert next(csv.DictReader(file)).keys() >= {"loss", "floor", "logit_scale"}
    with open(trained / "prior/held_out_metrics.csv") as file:
        assert next(csv.DictReader(file)).keys() >= {"own_caption_nearest", "cosine_to_caption", "cosine_to_images"}


def test_finished_stages_are_skipped_and_a_new_clip_makes_the_others_new(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    again = ("lesson_17/train_mnist.py", *TINY, *STEPS, *SIZES, "--output_dir", folder)
    skipped = succeeds(*again)
    assert skipped.stdout.count("is trained already") == 3 and "Training" not in skipped.stdout
    clip = ("--stage", "clip", "--seed", 1, "--output_dir", folder)
    succeeds("lesson_17/train_mnist.py", *TINY, *STEPS, *CLIP_SIZES, *clip)
    renewed = succeeds(*again)
    assert renewed.stdout.count("is trained already") == 1
    assert renewed.stdout.count("is trained anew") == 2
    in_three_channels = succeeds(*again, "--image_channels", 3).stdout
    assert "learned from other images, so the clip is trained anew" in in_three_channels
    assert in_three_channels.count("is trained anew") == 3


def test_a_size_that_no_doubling_reaches_is_refused_before_any_training(tmp_path):
    train = ("lesson_17/train_mnist.py", *TINY, *STEPS, *SIZES, "--output_dir", tmp_path)
    refused(script(*train, "--decoder_image_size", 12), "by doubling")
    assert not list(tmp_path.iterdir())


def test_an_up_sampler_is_skipped_when_it_is_finished_and_new_for_other_images(cascade, tmp_path):
    folder = shutil.copytree(cascade, tmp_path / "run")
    names = files_of(folder / "upsampler_28")
    assert names == {"upsampler_28-2.pt", "sample-2.png", "metrics.csv", "held_out_metrics.csv", "loss.png"}
    again = ("lesson_17/train_mnist.py", *TINY, *STEPS, *SIZES, "--decoder_image_size", 14, "--output_dir", folder)
    skipped = succeeds(*again).stdout
    assert skipped.count("is trained already") == 4 and "--stage upsampler trains it anew" in skipped
    file = folder / "upsampler_28/upsampler_28-2.pt"
    checkpoint = torch.load(file, weights_only=True)
    torch.save({**checkpoint, "data": {**checkpoint["data"], "dataset": "other"}}, file)
    assert "learned from other images, so the upsampler is trained anew" in succeeds(*again).stdout


def test_evaluating_writes_a_table_and_a_picture(trained, tmp_path):
    result = succeeds(
        *("lesson_17/evaluate_mnist.py", *models(trained), "--dataset", "mnist_5k"),
        *("--num_samples", 2, "--sampling_steps", 2, "--output_dir", tmp_path),
    )
    report = json.loads((tmp_path / "dall_e_2.json").read_text())
    assert report["sampling"]["sampling_steps"] == 2 and sum(map(sum, report["confusion_matrix"])) == 40
    names = ("CLIP, image to caption", "prior, own caption nearest", "decoder, loss", "samples, prompt accuracy")
    assert all(report["measures"][name]["text"] in result.stdout for name in names)
    assert read_image(tmp_path / "dall_e_2.png").shape[1] > 100


def test_figures_are_drawn(trained, tmp_path):
    figures = ("benchmarks/figures_17.py", *models(trained), "--dataset", "mnist_5k", "--output_dir", tmp_path)
    succeeds(*figures, "embeddings", "noise")
    assert "upsampling is left out" in succeeds(*figures, "upsampling").stdout
    assert {path.name for path in tmp_path.iterdir()} == {"embeddings.png", "noise.png"}
    refused(script(*figures, "nonsense"), "there is no figure nonsense")


def test_a_cascade_draws_and_is_measured_and_shown_but_edits_nothing(cascade, tmp_path):
    few = ("--dataset", "mnist_5k", "--output_dir", tmp_path)
    steps = ("--num_samples", 1, "--sampling_steps", 2)
    succeeds("lesson_17/evaluate_mnist.py", *models_of_cascade(cascade), *steps, *few)
    report = json.loads((tmp_path / "dall_e_2.json").read_text())
    assert report["checkpoints"].keys() == {"clip", "prior", "decoder", "upsampler_28"}
    measures = ("small image kept", "scorer's accuracy", "Fréchet distance")
    assert report["measures"].keys() >= {f"up-samplers, {measure}" for measure in measures}
    succeeds("benchmarks/figures_17.py", "noise", "upsampling", *models_of_cascade(cascade), *few)
    assert (tmp_path / "upsampling.png").exists()
    edit = ("lesson_17/edit_mnist.py", "variations", *models_of_cascade(cascade), "--dataset", "mnist_5k")
    refused(script(*edit, "--output_dir", tmp_path), "trained without --decoder_image_size")


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


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("up_sampled", [False, True])
def test_an_image_is_a_function_of_its_prompt_and_seed(trained, cascade, tmp_path, sampler, up_sampled):
    files = models_of_cascade(cascade) if up_sampled else models(trained)
    sampling = ("lesson_17/generate_mnist.py", *files, "--sampling_steps", 3, "--sampler", sampler)
    succeeds(*sampling, "--prompts", "3", "7", "--seed", 7, "--output_dir", tmp_path / "both")
    succeeds(*sampling, "--prompts", "7", "--seed", 8, "--output_dir", tmp_path / "alone")
    both, alone = read_image(tmp_path / "both/0001-7.png").int(), read_image(tmp_path / "alone/0000-7.png").int()
    assert both.shape == alone.shape == (1, 28, 28)
    assert (both - alone).abs().max() <= 1


@pytest.mark.parametrize("mode", ["variations", "interpolation", "text_diff", "components", "inpaint"])
def test_edits_write_their_figure(trained, tmp_path, mode):
    edit = ("lesson_17/edit_mnist.py", mode, *models(trained), "--dataset", "mnist_5k", "--sampling_steps", 5)
    succeeds(*edit, "--prompts", "3", "8", "--output_dir", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{mode}.png"]


@pytest.mark.parametrize("box", [(4, 4, 4, 24), (0, 0, 29, 5), (20, 3, 10, 5)])
def test_boxes_that_do_not_lie_in_the_image_are_refused(trained, box):
    edit = ("lesson_17/edit_mnist.py", "inpaint", *models(trained), "--dataset", "mnist_5k", "--box", *box)
    refused(script(*edit, "--prompts", "3", "8"), "no box in an image of 28x28")


def test_clip_keeps_the_candidates_nearest_to_their_prompts(trained, tmp_path):
    drawn = ("lesson_17/generate_mnist.py", *models(trained), "--sampling_steps", 2, "--prompts", "seven", "2")
    succeeds(*drawn, "--candidates", 3, "--output_dir", tmp_path)
    with open(tmp_path / "samples.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt"] for row in rows] == ["seven", "2"]
    assert int(rows[0]["seed"]) in range(3) and int(rows[1]["seed"]) in range(3, 6)
    refused(script(*drawn, "--candidates", 2, "--num_samples", 3), "fewer than")


def test_stages_of_three_channels_train(tmp_path):
    channels = ("--image_channels", 3, "--output_dir", tmp_path)
    succeeds("lesson_17/train_mnist.py", *TINY, *SIZES, "--num_training_steps", 1, *channels)
    assert read_image(tmp_path / "decoder/sample-1.png").shape[0] in (3, 4)


def test_a_pretrained_clip_takes_the_place_of_ours(tmp_path):
    pretrained, folder = tmp_path / "clip of theirs", tmp_path / "run"
    save_pretrained(pretrained)
    arguments = (*TINY, *OTHER_SIZES, "--num_training_steps", 1, "--clip_model", pretrained, "--output_dir", folder)
    succeeds("lesson_17/train_mnist.py", *arguments)
    assert {path.name for path in folder.iterdir()} == {"prior", "decoder"}
    files = ("--prior_checkpoint", folder / "prior/prior-1.pt", "--decoder_checkpoint", folder / "decoder/decoder-1.pt")
    how = ("--prompts", "seven", "--sampling_steps", 2, "--output_dir", tmp_path / "samples")
    assert "Loading the pretrained CLIP" in succeeds("lesson_17/generate_mnist.py", *files, *how).stdout
    assert (tmp_path / "samples/0000-seven.png").exists()


def test_a_stage_resumes(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    resumed = succeeds(
        *("lesson_17/train_mnist.py", *TINY, "--width", 8, "--head_dim", 8, "--output_dir", folder),
        *("--stage", "decoder", "--resume", "--num_training_steps", 3),
    )
    assert "Resuming from" in resumed.stdout and (folder / "decoder/decoder-3.pt").exists()


MISTAKES = [
    (["--prompts", "eleven"], "unknown"),
    (["--sampling_steps", "0"], "sampling_steps"),
    (["--guidance_scale", "nan"], "guidance_scale"),
    (["--prior_checkpoint", "nowhere.pt"], "nowhere.pt"),
    (["--decoder_checkpoint", "requirements.txt"], "not a checkpoint"),
    (["--clip_model", "/nowhere"], "/nowhere"),
]


@pytest.mark.parametrize("arguments,reason", MISTAKES)
def test_mistakes_are_answered_in_one_sentence(trained, tmp_path, arguments, reason):
    none = tmp_path / "none"
    refused(script("lesson_17/generate_mnist.py", *models(trained), *arguments, "--output_dir", none), reason)
    assert not none.exists()


def test_models_of_another_clip_are_refused(trained, tmp_path):
    succeeds(
        *("lesson_17/train_mnist.py", *TINY, "--stage", "clip", "--num_training_steps", 1, "--output_dir", tmp_path),
        *CLIP_SIZES,
    )
    other = ("--clip_checkpoint", tmp_path / "clip/clip-1.pt")
    refused(script("lesson_17/generate_mnist.py", *models(trained), *other), "another CLIP")


@pytest.mark.parametrize("name", ["train_mnist.py", "generate_mnist.py", "edit_mnist.py"])
def test_help_explains_each_flag(name):
    assert "--seed" in succeeds(f"lesson_17/{name}", "--help").stdout


TRAINING_MISTAKES = [
    (["--stage", "clip", "--preset", "paper"], "patches of 16"),
    (["--stage", "clip", "--text_seq_len", 0], "text_seq_len"),
    (["--stage", "clip", "--image_channels", 2], "image_channels"),
    (["--stage", "prior", "--ema_decay", 1.5], "ema_decay"),
    (["--stage", "decoder", "--width", 9], "odd"),
    (["--stage", "clip", "--clip_model", "any"], "takes the place"),
    (["--stage", "upsampler", "--decoder_image_size", 10], "do not come to 28x28 by doubling"),
    (["--stage", "upsampler", "--head_dim", 8], "no flag of upsampler"),
]


@pytest.mark.parametrize("arguments,reason", TRAINING_MISTAKES)
def test_mistakes_in_training_are_answered_in_one_sentence(tmp_path, arguments, reason):
    result = script("lesson_17/train_mnist.py", "--dataset", "mnist_5k", *arguments, "--output_dir", tmp_path)
    refused(result, reason)


def test_a_stage_does_not_go_on_with_another_clip_or_past_its_end(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    resume = ("lesson_17/train_mnist.py", *TINY, "--output_dir", folder, "--resume", "--stage")
    refused(script(*resume, "clip", *CLIP_SIZES, *STEPS), "at step 2 already")
    fresh = ("--stage", "clip", "--seed", 1, "--output_dir", folder)
    succeeds("lesson_17/train_mnist.py", *TINY, *STEPS, *CLIP_SIZES, *fresh)
    more = ("--num_layers", 1, "--dim", 16, "--num_training_steps", 3)
    result = script(*resume, "prior", *more)
    assert result.returncode == 2 and "another clip" in result.stderr


def test_colors_that_clip_does_not_see_are_refused(trained, tmp_path):
    other = ("--stage", "decoder", "--image_channels", 3, "--clip_checkpoint", trained / "clip/clip-2.pt")
    refused(script("lesson_17/train_mnist.py", *TINY, *other, "--output_dir", tmp_path), "28x28 pixels in 1 channels")


def test_a_prior_without_a_clip_says_what_is_missing(tmp_path):
    result = script("lesson_17/train_mnist.py", *TINY, "--stage", "prior", "--output_dir", tmp_path)
    refused(result, "no trained CLIP")


def test_checkpoints_hold_what_rebuilds_the_model(trained):
    checkpoint = torch.load(trained / "prior/prior-2.pt", weights_only=True)
    assert checkpoint.keys() >= {"name", "config", "step", "model", "ema", "optimizers", "training", "sources"}
    assert checkpoint["model"]["embed_std"].shape == (8,)
