"""The included weights: found where nothing is trained, and drawn with; test_scoring.py has how good they are."""

import pytest
import torch
from safetensors.torch import save_file
from scripts import ROOT, read_image, refused, script, succeeds

from lesson_17.diffusion_decoder import decode_image_embed
from lesson_17.pipeline import Pipeline
from utils.checkpoints import PRETRAINED, find_checkpoints, load_checkpoint, save_checkpoint
from utils.cli import UserError
from utils.samples import SeededNoise

PROMPTS = {"mnist": "seven", "colored_mnist": "a thick red seven"}
INCLUDED = [name for name in PRETRAINED if (ROOT / "lesson_08/pretrained" / name).is_dir()]  # a room can be missing


def test_each_argument_of_drawing_has_its_effect():
    pipeline = Pipeline.load(pretrained="mnist")

    def draw(**other):
        how = {"prior_guidance_scale": 1.5, "guidance_scale": 1.5, "sampling_steps": 3, "eta": 0.0}
        how |= other
        return pipeline.draw(["7"], [0], **how)

    images = [draw(), draw(eta=1.0), draw(sampling_steps=4), draw(guidance_scale=4.0)]
    images += [draw(prior_guidance_scale=0.0), draw(eta=0.5)]
    for i, image in enumerate(images):
        assert all((image - other).abs().max() > 0.05 for other in images[:i]), i
    torch.manual_seed(1)
    again = draw(eta=0.5)
    torch.manual_seed(2)
    assert torch.equal(draw(), images[0])
    assert torch.equal(draw(eta=0.5), again)  # all noise is the seed's


def test_a_picture_is_decoded_from_the_priors_embedding_and_the_caption():
    pipeline = Pipeline.load(pretrained="mnist")
    image_embed, text_encodings, x_T = pipeline.inputs(["7"], 1.5, 3, SeededNoise([0]).randn)
    drawn = pipeline.draw(["7"], [0], 1.5, 2.0, 3, 0.0)
    torch.testing.assert_close(drawn, decode_image_embed(pipeline.decoder, image_embed, text_encodings, x_T, 2.0, 3))
    without = decode_image_embed(pipeline.decoder, image_embed, None, x_T, 2.0, 3)
    assert (drawn - without).abs().max() > 0.05


def test_they_are_taken_where_nothing_is_trained(tmp_path, monkeypatch, capsys):
    folder, trained = ROOT / "lesson_08/pretrained/mnist", tmp_path / "trained"
    for name in ("dvae", "dall_e"):
        (trained / name).mkdir(parents=True)
        (trained / name / f"{name}-2.pt").write_text("")
    monkeypatch.setattr("utils.checkpoints.ROOT", tmp_path)  # no output here yet
    (tmp_path / "mnist").symlink_to(folder)
    none = {"dvae": None, "dall_e": None}
    included = {name: tmp_path / f"mnist/{name}.safetensors" for name in none}
    assert find_checkpoints(none, None, tmp_path, None) == included
    assert "There is no dvae or dall_e checkpoint in output/" in capsys.readouterr().out
    with pytest.raises(UserError, match="is missing"):
        find_checkpoints(none, None, tmp_path, "colored_mnist")

    (tmp_path / "output").mkdir()
    (tmp_path / "output/dvae").symlink_to(trained / "dvae")
    with pytest.raises(UserError, match="no dall_e checkpoint in .*output/dall_e"):
        find_checkpoints(none, None, tmp_path, None)
    (tmp_path / "output/dall_e").symlink_to(trained / "dall_e")
    newest = {name: tmp_path / f"output/{name}/{name}-2.pt" for name in none}
    assert find_checkpoints(none, None, tmp_path, None) == newest
    assert find_checkpoints(none, None, tmp_path, "mnist") == included
    assert find_checkpoints(none, str(tmp_path / "output"), tmp_path, None) == newest
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no dvae checkpoint in .*empty/dvae"):
        find_checkpoints(none, "empty", tmp_path, None)
    with pytest.raises(UserError, match="no folder 'nowhere' of models"):
        find_checkpoints(none, "nowhere", tmp_path, None)
    with pytest.raises(UserError, match="--pretrained takes the place"):
        find_checkpoints(none, "output", tmp_path, "mnist")


@pytest.mark.parametrize(
    "lesson, flag",
    [("lesson_08", "--dvae_checkpoint"), ("lesson_17", "--prior_checkpoint"), ("lesson_17", "--clip_checkpoint")],
)
def test_they_take_the_place_of_naming_files(lesson, flag):
    both = ("--pretrained", "mnist", flag, "any.pt")
    refused(script(f"{lesson}/generate_mnist.py", *both, "--prompts", "7"), "give one of the two")


def test_they_can_be_named_from_where_one_is(tmp_path):
    """Their CLIP lies beside them, and another one that is named is not passed over."""
    names = [f"--{name}_checkpoint=pretrained/mnist/{name}.safetensors" for name in ("prior", "decoder")]
    draw = ("lesson_17/generate_mnist.py", *names, "--prompts", "7", "--output_dir", tmp_path)
    succeeds(*draw, cwd=ROOT / "lesson_17")
    other = load_checkpoint(ROOT / "lesson_17/pretrained/mnist/clip.safetensors", "clip")
    other["model"]["logit_scale"] += 1
    save_checkpoint(tmp_path / "other.pt", other)
    refused(script(*draw, "--clip_checkpoint", tmp_path / "other.pt", cwd=ROOT / "lesson_17"), "another CLIP")


def test_a_broken_file_is_answered_in_one_sentence(tmp_path):
    (tmp_path / "dvae.safetensors").write_bytes(b"no weights")
    flags = ("--dvae_checkpoint", tmp_path / "dvae.safetensors", "--dall_e_checkpoint", tmp_path / "dvae.safetensors")
    refused(script("lesson_08/generate_mnist.py", *flags, "--prompts", "7"), "not a checkpoint that can be read")
    save_file({"weight": torch.zeros(3)}, tmp_path / "dvae.safetensors")  # without a checkpoint's header
    refused(script("lesson_08/generate_mnist.py", *flags, "--prompts", "7"), "not a checkpoint of this project")


@pytest.mark.parametrize("dataset", INCLUDED)
@pytest.mark.parametrize("lesson", ["lesson_08", "lesson_17"])
def test_the_scripts_draw_with_them(lesson, dataset, tmp_path):
    flags = ("--pretrained", dataset, "--prompts", PROMPTS[dataset], "--num_samples", 4)
    succeeds(f"{lesson}/generate_mnist.py", *flags, "--output_dir", tmp_path)
    drawn = torch.stack([read_image(file) for file in tmp_path.glob("0*.png")]).float() / 255
    assert drawn.shape == (4, 3 if dataset == "colored_mnist" else 1, 28, 28)
    red = drawn.mean(dim=(0, 2, 3))
    assert dataset == "mnist" or red[0] > 3 * red[1:].max()


@pytest.mark.parametrize("lesson", ["lesson_08", "lesson_17"])
def test_they_are_small_and_name_no_place_of_the_machine_that_made_them(lesson):
    for dataset in INCLUDED:
        files = list((ROOT / lesson / "pretrained" / dataset).glob("*"))
        assert {file.suffix for file in files} == {".safetensors"} and sum(f.stat().st_size for f in files) < 4.5e6
        for file in files:
            checkpoint = load_checkpoint(file, file.stem)
            assert checkpoint["data"]["dataset"] == dataset
            for source in checkpoint["sources"].values():
                assert source["file"].startswith(f"{lesson}/pretrained/{dataset}/") and (ROOT / source["file"]).exists()
