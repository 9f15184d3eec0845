"""The six trainings, each as small as it goes."""

STAGES = {
    "dvae": ["lesson_08/train_dvae.py", "--hidden_dim", 8, "--codebook_size", 16],
    "dall_e": ["lesson_08/train_mnist.py", "--dim", 16, "--num_layers", 2],
    "clip": ["lesson_17/train_mnist.py", "--stage", "clip", "--image_width", 16, "--image_layers", 1, "--embed_dim", 8],
    "prior": ["lesson_17/train_mnist.py", "--stage", "prior", "--num_layers", 1, "--dim", 16],
    "decoder": ["lesson_17/train_mnist.py", "--stage", "decoder", "--width", 8, "--head_dim", 8],
    "upsampler_28": ["lesson_17/train_mnist.py", "--stage", "upsampler", "--width", 8],
}


def folder_of(name, folder):
    """Where a training with --output_dir `folder` writes to."""
    return folder / name if "lesson_17" in STAGES[name][0] else folder
