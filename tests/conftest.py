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
from utils.datasets import LOADERS
from utils.datasets.mnist import load_mnist_5k

torch.set_num_threads(1)
quick = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}
settings.register_profile("few", max_examples=25, **quick)
settings.register_profile("many", max_examples=300, **quick)  # pytest --hypothesis-profile many
settings.load_profile("few")


@pytest.fixture(scope="session", autouse=True)
def few_digits():
    """Most scripts here learn from the embedded digits, which are in a table of text: it is read once, and of each digit
    45 images are left to train on and 25 to test on, as only `digits` has to be learned well."""

    def few(source, data_dir):
        train_set, test_set = load_mnist_5k(source, data_dir)
        return [train_set.subset(slice(None, None, 10)), test_set.subset(slice(None, None, 2))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "loadtxt", functools.cache(np.loadtxt))
        patch.setitem(LOADERS, "mnist_5k", few)
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
    """The embedded digits, 4,500 to train and 500 to test on."""
    return load_mnist_5k(DataSource("mnist_5k"), ROOT)
