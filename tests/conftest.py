"""Fixtures that several files of tests share."""

import pytest
from scripts import TINY, succeeds
from stages import STAGES


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
