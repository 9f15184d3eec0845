"""Fixtures that several files of tests share; and one thread for each process, as the tests themselves run side by side."""

import functools
import os

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from scripts import ROOT, TINY, succeeds
from stages import STAGES

from utils.data import DataSource
from utils.datasets import load_images

torch.set_num_threads(1)
quick = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}
settings.register_profile("few", max_examples=25, **quick)
settings.register_profile("many", max_examples=300, **quick)  # pytest --hypothesis-profile many
settings.load_profile("few")


@pytest.fixture(scope="session", autouse=True)
def digits_read_once():
    """Most scripts here read the embedded digits from a table of text, which takes a quarter of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "loadtxt", functools.cache(np.loadtxt))
        yield


@pytest.fixture(scope="session")
def earlier_stages(tmp_path_factory):
    """A dVAE and a CLIP, as flags of the stages that need one."""
    folder = tmp_path_factory.mktemp("earlier")
    few = [*TINY, "--num_training_steps", 1, "--output_dir"]
    succeeds(*STAGES["dvae"], *few, folder / "dvae")
    succeeds(*STAGES["clip"], *few, folder)
    return {
        "dall_e": ["--dvae_checkpoint", folder / "dvae/dvae-1.pt"],
        "prior": ["--clip_checkpoint", folder / "clip/clip-1.pt"],
        "decoder": ["--clip_checkpoint", folder / "clip/clip-1.pt"],
    }


@pytest.fixture(scope="session")
def digits():
    """5,000 digits to train and to test on."""
    return load_images(DataSource("mnist_5k"), ROOT, "cpu")[:2]
