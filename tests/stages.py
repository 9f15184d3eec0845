"""The trainings, each as small as it goes."""

from scripts import ROOT

STAGES = {
    "dvae": ["lesson_08/train_dvae.py", "--hidden_dim", 8, "--codebook_size", 16],
    "dall_e": ["lesson_08/train_mnist.py", "--dim", 16, "--num_layers", 2],
    "clip": ["lesson_17/train_clip.py", "--image_width", 16, "--image_layers", 1, "--embed_dim", 8],
    "prior": ["lesson_17/train_prior.py", "--num_layers", 1, "--dim", 16],
    "decoder": ["lesson_17/train_decoder.py", "--width", 8, "--head_dim", 8],
    "upsampler_28": ["lesson_17/train_upsampler.py", "--width", 8],
}
STAGES = {name: command for name, command in STAGES.items() if (ROOT / command[0]).exists()}  # a room can be missing


def folder_of(name, folder):
    """Where a training with --output_dir `folder` writes to."""
    return folder / name if "lesson_17" in STAGES[name][0] else folder
