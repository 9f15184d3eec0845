"""The scripts that evaluate and draw figures, on models of a few steps; test_scoring.py has whether the numbers are right."""

import ast
import json
import sys
from argparse import Namespace

import pytest
import torch
from PIL import Image
from scripts import ROOT, TINY, read_image, refused, script, succeeds
from torchvision.transforms.functional import pil_to_tensor

import lesson_08.pipeline
import lesson_17.pipeline
from benchmarks import changed_copy, trials
from benchmarks.decoder_hears import deviation, slope
from utils.cli import UserError
from utils.data import DataSource
from utils.tables import read_rows

pytest.importorskip("utils.datasets.colored_mnist", reason="no digits in color here")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder, few = tmp_path_factory.mktemp("a run with spaces"), (*TINY, "--num_training_steps", 2, "--output_dir")
    succeeds("lesson_08/train_dvae.py", "--hidden_dim", 8, "--codebook_size", 16, *few, folder / "dvae")
    succeeds("lesson_08/train_mnist.py", "--dim", 16, "--num_layers", 2, *few, folder / "dall_e")
    clip = ("--image_width", 16, "--image_layers", 1, "--embed_dim", 8)
    others = ("--num_layers", 1, "--dim", 16, "--width", 8, "--head_dim", 8)
    succeeds("lesson_17/train_mnist.py", *clip, *others, *few, folder)
    return folder


@pytest.fixture
def drawn_with(monkeypatch):
    """The sampling of each call of a lesson's Pipeline.draw."""
    calls = []

    def watch(pipeline):
        draw = pipeline.draw

        def spy(self, prompts, seeds, *args, **sampling):
            calls.append(sampling)
            return draw(self, prompts, seeds, *args, **sampling)

        monkeypatch.setattr(pipeline, "draw", spy)
        return calls

    return watch


def test_lesson_8_is_measured(trained, tmp_path, drawn_with):
    calls = drawn_with(lesson_08.pipeline.Pipeline)
    result = succeeds(
        *("lesson_08/evaluate_mnist.py", "--models", trained, "--dataset", "mnist_5k"),
        *("--num_samples", 2, "--guidance_scale", 1, "--output_dir", tmp_path),
    )
    guided, plain = calls
    assert guided["guidance_scale"] == 1 and not plain
    report = json.loads((tmp_path / "dall_e.json").read_text())
    assert report["sampling"]["guidance_scale"] == 1 and sum(map(sum, report["confusion_matrix"])) == 40
    names = ("dVAE, MSE", "transformer, image tokens", "samples, prompt accuracy", "real images, Fréchet distance")
    assert all(report["measures"][name]["text"] in result.stdout for name in names)
    assert read_image(tmp_path / "dall_e.png").shape[1] > 100


def test_figures_of_lesson_8_are_drawn(trained, tmp_path, monkeypatch):
    pytest.importorskip("utils.gif", reason="no animations here")
    figures = ("benchmarks/figures_08.py", "--models", trained, "--dataset", "mnist_5k", "--output_dir", tmp_path)
    monkeypatch.setitem(sys.modules, "gradio", None)  # which no figure needs
    monkeypatch.delitem(sys.modules, "utils.playground", raising=False)
    succeeds(*figures)
    names = ["relaxation", "codes", "codebook", "masks", "sampling"]
    assert {path.name for path in tmp_path.iterdir()} == {"tokens.gif", *(f"{name}.png" for name in names)}
    with Image.open(tmp_path / "tokens.gif") as shown:
        assert shown.n_frames == 50
        frames = []
        for number in (0, 21, 49):  # no token, three rows of seven, all
            shown.seek(number)
            frames.append(pil_to_tensor(shown.convert("L")).int())
    none, half, whole = frames
    row = 3 * (1 + 3 * 4)  # of pixels: each is enlarged to 3, a token has 4, and there is a frame of 1
    assert (half - none)[:, row:].abs().max() <= 2 < (half - none)[:, 3:row].abs().max() and not whole.equal(half)
    refused(script(*figures, "nonsense"), "there is no figure nonsense")


def test_curves_are_laid_over_the_expected_ones(trained, tmp_path):
    curves = ("benchmarks/plot_curves.py", "lesson_08", "--output_dir", tmp_path / "curves", "--runs")
    succeeds(*curves, trained)
    assert {path.name for path in (tmp_path / "curves").iterdir()} == {"curves.png", "dvae.csv", "dall_e.csv"}
    refused(script(*curves, tmp_path), "no metrics.csv")


@pytest.mark.parametrize("lesson", ["lesson_08", "lesson_17"])
def test_help_explains_each_flag(lesson):
    assert "--num_samples" in succeeds(f"{lesson}/evaluate_mnist.py", "--help").stdout


def test_lesson_17_is_measured(trained, tmp_path, drawn_with):
    calls = drawn_with(lesson_17.pipeline.Pipeline)
    result = succeeds(
        *("lesson_17/evaluate_mnist.py", "--models", trained, "--dataset", "mnist_5k"),
        *("--num_samples", 2, "--sampling_steps", 2, "--output_dir", tmp_path),
    )
    scales = [{name: call[name] for name in ("guidance_scale", "prior_guidance_scale")} for call in calls]
    usual = {name: lesson_17.pipeline.DEFAULT_SAMPLING[name] for name in scales[0]}
    assert scales == [usual, dict.fromkeys(scales[0], 1.0)] and usual["guidance_scale"] > 1
    assert [call["sampling_steps"] for call in calls] == [2, 2]
    report = json.loads((tmp_path / "dall_e_2.json").read_text())
    assert report["sampling"]["sampling_steps"] == 2 and sum(map(sum, report["confusion_matrix"])) == 40
    names = ("CLIP, image to caption", "prior, own caption nearest", "decoder, loss", "samples, prompt accuracy")
    assert all(report["measures"][name]["text"] in result.stdout for name in names)
    assert read_image(tmp_path / "dall_e_2.png").shape[1] > 100


def test_figures_of_lesson_17_are_drawn(trained, tmp_path):
    for module in ("lesson_17.edit_mnist", "lesson_17.upsample_mnist"):
        pytest.importorskip(module, reason="no edits or no up-samplers here")
    figures = ("benchmarks/figures_17.py", "--models", trained, "--dataset", "mnist_5k", "--output_dir", tmp_path)
    succeeds(*figures, "embeddings", "noise")
    assert "upsampling is left out" in succeeds(*figures, "upsampling").stdout
    assert {path.name for path in tmp_path.iterdir()} == {"embeddings.png", "noise.png"}
    refused(script(*figures, "nonsense"), "there is no figure nonsense")


def test_a_decoder_of_small_images_is_measured_with_its_up_sampler(trained, tmp_path):
    pytest.importorskip("lesson_17.upsample_mnist", reason="no up-samplers here")
    few = (*TINY, "--num_training_steps", 1, "--width", 8)
    clip = ("--clip_checkpoint", trained / "clip/clip-2.pt")
    small = ("--decoder_image_size", 14, "--head_dim", 8, "--output_dir", tmp_path)
    succeeds("lesson_17/train_decoder.py", *few, *clip, *small)
    succeeds("lesson_17/train_upsampler.py", *few, "--output_dir", tmp_path)
    for name in ("clip", "prior"):
        (tmp_path / name).symlink_to(trained / name)
    how = ("--models", tmp_path, "--dataset", "mnist_5k", "--num_samples", 1, "--sampling_steps", 2)
    succeeds("lesson_17/evaluate_mnist.py", *how, "--output_dir", tmp_path / "out")
    report = json.loads((tmp_path / "out/dall_e_2.json").read_text())
    assert report["checkpoints"].keys() == {"clip", "prior", "decoder", "upsampler_28"}
    measures = ("small image kept", "scorer's accuracy", "Fréchet distance")
    assert report["measures"].keys() >= {f"up-samplers, {measure}" for measure in measures}
    pytest.importorskip("lesson_17.edit_mnist", reason="no edits here")
    succeeds("benchmarks/figures_17.py", *how[:4], "noise", "upsampling", "--output_dir", tmp_path / "out")
    assert (tmp_path / "out/noise.png").exists() and (tmp_path / "out/upsampling.png").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("benchmarks/prior_worth.py",),
        ("benchmarks/frontier.py", "lesson_17", "--candidates", 1),
        ("benchmarks/figures_17.py", "schedule", "embeddings"),
        ("benchmarks/figures_08.py", "tokens"),
    ],
)
def test_what_needs_digits_refuses_other_images(command, tmp_path):
    for needed in ("utils.datasets.own_images", "lesson_17.edit_mnist", "lesson_17.choose_mnist", "utils.gif"):
        pytest.importorskip(needed, reason=f"no {needed} here")
    for name in ("a ball", "a cube"):
        Image.new("L", (28, 28), 100).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(name)
    data = ("--pretrained", "mnist", "--dataset", tmp_path, "--data_dir", tmp_path / "data")
    result = script(*command, *data, "--output_dir", tmp_path / "out")
    assert result.returncode == 2 and "needs images of digits" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_edits_of_digits_are_measured(tmp_path):
    pytest.importorskip("lesson_17.edit_mnist", reason="no edits here")
    few = ("--pretrained", "mnist", "--dataset", "mnist_5k", "--num_images", 4, "--sampling_steps", 5)
    succeeds("benchmarks/edits.py", *few, "--output_dir", tmp_path)
    rows = {(row["edit"], row["fraction"], row["guidance"]): row for row in read_rows(tmp_path / "edits.csv")}
    back = next(row for (edit, *_), row in rows.items() if edit == "variations, eta 0.0")
    assert float(back["digit"]) >= 0.75 and float(back["distance"]) < 0.05
    ends = [float(row["distance"]) for (edit, *_), row in rows.items() if edit == "interpolation"]
    assert max(ends[0], ends[-1]) < 0.05 and ends[3] > 0.1  # at the ends, and in the middle
    pairs = [row for (edit, *_), row in rows.items() if edit == "text_diff, 3 to 8"]
    assert len(pairs) == 2 and all(row["slant"] and row["thickness"] for row in pairs)  # eta 1 is unguided, too


def test_slant_is_how_far_ink_moves_to_the_right_from_row_to_row():
    edits = pytest.importorskip("benchmarks.edits", reason="no edits here")
    image = torch.zeros(2, 3, 28, 28)
    for row in range(4, 20):
        image[0, 1, row, 10] = 0.5
        image[1, :, row, row + 3] = 1
    torch.testing.assert_close(edits.slant(image), torch.tensor([0.0, 1.0]), atol=1e-5, rtol=0)


def test_what_the_decoder_hears_is_measured(tmp_path):
    few = ("--pretrained", "mnist", "--dataset", "mnist_5k", "--num_images", 40, "--output_dir", tmp_path)
    succeeds("benchmarks/decoder_hears.py", *few, "--starts", 250)
    rows = {row["decoded"]: row for row in read_rows(tmp_path / "decoder_hears.csv")}
    nearly_there = rows["embedding and caption, from t 250"]
    assert len(rows) == 5 and float(nearly_there["right"]) >= 0.9
    assert float(nearly_there["follows"]) > 0.7 > 0.3 > abs(float(rows["caption alone"]["follows"]))
    in_color = script("benchmarks/decoder_hears.py", "--pretrained", "colored_mnist", "--output_dir", tmp_path)
    refused(in_color, "needs plain digits")


def test_how_much_a_picture_follows_its_embedding():
    digits = torch.tensor([0, 0, 3, 3, 3])
    z = torch.randn(5, 4)
    own = deviation(z, digits)
    torch.testing.assert_close(own[:2].sum(dim=0), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(own[4], z[4] - z[2:].mean(dim=0))
    assert slope(own, -0.25 * own) == pytest.approx(-0.25)


def test_a_copy_is_changed_where_the_line_is_found_once(tmp_path):
    file = "lesson_17/train_clip.py"
    changed_copy.copy_changed(tmp_path / "copy", [(file, "DISTORTION = 0.15", "DISTORTION = 0.0")])
    ours, theirs = ((root / file).read_text() for root in (ROOT, tmp_path / "copy"))
    assert theirs == ours.replace("DISTORTION = 0.15", "DISTORTION = 0.0") != ours
    with pytest.raises(UserError, match="does not have the line"):
        changed_copy.copy_changed(tmp_path / "other", [(file, "DISTORTION = 0.14", "")])


def test_a_command_in_a_copy_gets_the_data_flags_unless_it_has_its_own(tmp_path):
    (tmp_path / "say.py").write_text(
        "import sys\nopen('said', 'w').write(' '.join(sys.argv[1:]))\nsys.exit('6' in sys.argv)"
    )
    data = Namespace(**vars(DataSource("mnist_5k", image_channels=3)), data_dir=tmp_path)
    changed_copy.run(tmp_path, "python say.py --dataset colored_mnist", data)
    asked = f"--dataset mnist_5k --image_channels 3 --data_dir {tmp_path} --dataset colored_mnist".split()
    assert sorted((tmp_path / "said").read_text().split()) == sorted(asked)
    assert (tmp_path / "said").read_text().endswith("--dataset colored_mnist")
    with pytest.raises(UserError, match="This failed: python say.py 6"):
        changed_copy.run(tmp_path, "python say.py 6", data)


def test_the_lines_that_trials_change_are_in_the_code(tmp_path):
    for name, trial in trials.TRIALS.items():
        changed_copy.copy_changed(tmp_path / name, trial.changes)
        for file in {file for file, *_ in trial.changes}:
            ast.parse((tmp_path / name / file).read_text())


def test_trials_are_measured(tmp_path, monkeypatch):
    """Trained in this process, so from the unchanged lessons, and with one step."""
    monkeypatch.setattr(trials, "run", lambda root, command, args: succeeds(*command.split()[1:], cwd=root))
    hears = "python benchmarks/decoder_hears.py --dataset mnist_5k --starts --num_images 20"
    monkeypatch.setattr(trials, "HEARS", f"{hears} --models {tmp_path}/output --output_dir output/hears")
    monkeypatch.setattr(trials, "INCLUDED_CLIP", f"--clip_checkpoint {tmp_path}/output/clip/clip-1.pt")
    tiny = f"{' '.join(TINY)} --num_training_steps 1 --output_dir {tmp_path}/output"
    data = Namespace(**vars(DataSource("mnist_5k")), data_dir=tmp_path)
    clip = trials.Trial("clip", f"{tiny} --image_width 16 --image_layers 1 --embed_dim 8")
    measured = trials.try_clip(tmp_path, clip, data)
    assert 0 <= measured["right"] < 0.5  # so the median is below 0, and a quotient above 1
    assert measured["1%"] > measured["5%"] > measured["10%"] > 1
    succeeds("lesson_17/train_prior.py", *tiny.split(), "--num_layers", 1, "--dim", 16)
    decoder = trials.Trial("decoder", f"{tiny} --width 8 --head_dim 8")
    measured = trials.try_decoder(tmp_path, decoder, data)
    assert len(measured) == 8 and 0 <= measured["caption alone, right"] < 0.5
