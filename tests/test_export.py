"""The included weights are made from checkpoints: averaged, in half precision, and they still know each other."""

import shutil

import pytest
import torch
from safetensors import safe_open
from scripts import TINY, refused, script, succeeds

from utils.checkpoints import load_checkpoint, weights_of


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of a training of both stages of lesson 8, with averaged weights, and that of what is made of it."""
    folder = tmp_path_factory.mktemp("trained")
    few = (*TINY, "--num_training_steps", 2, "--ema_decay", 0.5)
    succeeds("lesson_08/train_dvae.py", *few, "--hidden_dim", 8, "--output_dir", folder / "dvae")
    earlier = ("--dvae_checkpoint", folder / "dvae/dvae-2.pt", "--output_dir", folder / "dall_e")
    succeeds("lesson_08/train_mnist.py", *few, "--dim", 16, "--num_layers", 1, *earlier)
    files = folder / "dvae/dvae-2.pt", folder / "dall_e/dall_e-2.pt"
    succeeds("utils/export.py", folder / "exported", *files)
    return folder, folder / "exported"


def test_exported_weights_are_the_averaged_ones_in_half_precision(exported):
    trained, folder = exported
    for name in ("dvae", "dall_e"):
        file = folder / f"{name}.safetensors"
        before, after = load_checkpoint(trained / f"{name}/{name}-2.pt", name), load_checkpoint(file, name)
        for key, weights in weights_of(before).items():
            assert torch.equal(weights_of(after)[key], before["ema"].get(key, weights).half().float())
        assert before["config"] == after["config"] and before["data"] == after["data"]
        with safe_open(file, "pt") as content:
            assert {content.get_tensor(key).dtype for key in content.keys()} == {torch.float16}


def test_exported_models_still_know_each_other(exported):
    trained, folder = exported
    files = [f"--{name}_checkpoint={folder / name}.safetensors" for name in ("dvae", "dall_e")]
    succeeds("lesson_08/generate_mnist.py", *files, "--prompts", "7", "--output_dir", trained / "drawn")
    mixed = [f"--dvae_checkpoint={trained / 'dvae/dvae-2.pt'}", files[1]]
    refused(script("lesson_08/generate_mnist.py", *mixed, "--prompts", "7"), "another dVAE")


def test_export_wants_a_model_before_those_that_learned_from_it(exported, tmp_path):
    trained, _ = exported
    dall_e = shutil.copy(trained / "dall_e/dall_e-2.pt", tmp_path / "best.pt")  # its name does not matter
    refused(script("utils/export.py", tmp_path / "out", dall_e), "name that one before it")
    assert not (tmp_path / "out").exists()
    succeeds("utils/export.py", tmp_path / "out", trained / "dvae/dvae-2.pt", dall_e)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"dvae.safetensors", "dall_e.safetensors"}


def test_what_learned_from_included_weights_is_exported_without_them(exported, tmp_path):
    _, folder = exported
    few = (*TINY, "--num_training_steps", 1, "--dim", 16, "--num_layers", 1, "--output_dir", tmp_path / "dall_e")
    succeeds("lesson_08/train_mnist.py", *few, "--dvae_checkpoint", folder / "dvae.safetensors")
    succeeds("utils/export.py", tmp_path / "out", tmp_path / "dall_e/dall_e-1.pt")
    files = [
        f"--{name}_checkpoint={path / name}.safetensors"
        for name, path in (("dvae", folder), ("dall_e", tmp_path / "out"))
    ]
    succeeds("lesson_08/generate_mnist.py", *files, "--prompts", "7", "--output_dir", tmp_path / "drawn")
