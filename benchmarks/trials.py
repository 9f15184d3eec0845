"""Other designs of lesson 17's CLIP and decoder beside the default ones, each as the flags and the lines that make it:
trained in a copy of the lessons, and measured. Appends to trials_clip.csv and trials_decoder.csv.

The trials of a CLIP have the quantiles of its margins (decoder_hears.py) over the test images, divided by their median.
Those of a decoder, on the included CLIP, have what it hears.
"""

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.changed_copy import copy_changed, run
from benchmarks.decoder_hears import margins
from benchmarks.figures import add_names
from lesson_17.frozen_clip import EmbeddedImages, FrozenCLIP
from utils.cli import ArgumentParser, new_folder, start
from utils.datasets import add_data_flags, data_source, load_images
from utils.tables import read_rows, write_rows


class Trial(NamedTuple):
    model: str  # the one that is trained
    flags: str = ""  # of its training script
    changes: Iterable[tuple[str, str, str]] = ()  # file, line, what takes its place


def distortion(most: float) -> tuple[str, str, str]:
    return "lesson_17/train_clip.py", "DISTORTION = 0.15", f"DISTORTION = {most}"


CROPS = [
    (
        "lesson_17/train_clip.py",
        "size, angle, right, down = DISTORTION * (2 * torch.rand(4, len(images), device=images.device) - 1)",
        "size = -0.25 * torch.rand(len(images), device=images.device)\n"
        "    right, down = 2 * torch.rand(2, len(images), device=images.device) - 1",
    ),
    ("lesson_17/train_clip.py", "(1 + size) * angle.cos(), (1 + size) * angle.sin()", "1 + size, 0 * size"),
    (
        "lesson_17/train_clip.py",
        "transform = torch.stack([cos, -sin, right, sin, cos, down], dim=1)",
        "transform = torch.stack([cos, -sin, -size * right, sin, cos, -size * down], dim=1)",
    ),
]
MUON_FOR_PATCHES = (
    "lesson_17/train_clip.py",
    "[*clip.image_encoder.blocks, *clip.text_encoder.blocks]",
    "[*clip.image_encoder.blocks, *clip.text_encoder.blocks, clip.image_encoder.embed_patches]",
)
ATTENTION_ONLY = ("lesson_17/diffusion_decoder.py", " + self.caption_to_time(text_encodings[:, -1])", "")
MEAN = ("lesson_17/diffusion_decoder.py", "text_encodings[:, -1]", "text_encodings.mean(dim=1)")
TRIALS = {
    "clip": Trial("clip"),
    "as_they_are": Trial("clip", changes=[distortion(0.0)]),
    "distorted_by_10": Trial("clip", changes=[distortion(0.1)]),
    "cropped": Trial("clip", changes=CROPS),
    "muon_for_patches": Trial("clip", changes=[MUON_FOR_PATCHES]),
    "larger_rate": Trial("clip", "--learning_rate 0.005"),
    "attention_only": Trial(
        "decoder",
        "--image_noise 0 --no-noisy_timesteps --image_dropout 0.1 --caption_dropout 0.5",
        [ATTENTION_ONLY],
    ),
    "mean_of_encodings": Trial("decoder", "--image_noise 0 --no-noisy_timesteps", [MEAN]),
    "last_encoding": Trial("decoder", "--image_noise 0 --no-noisy_timesteps"),
    "noise": Trial("decoder", "--no-noisy_timesteps"),
    "decoder": Trial("decoder"),
}
INCLUDED_CLIP = "--clip_checkpoint lesson_17/pretrained/mnist/clip.safetensors"
INCLUDED = f"{INCLUDED_CLIP} --prior_checkpoint lesson_17/pretrained/mnist/prior.safetensors"
HEARS = f"python benchmarks/decoder_hears.py {INCLUDED} --starts --output_dir output/hears"


def main() -> None:
    args = parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name in args.trials:
        trial = TRIALS[name]
        with tempfile.TemporaryDirectory() as folder:
            copy_changed(Path(folder), trial.changes)
            row = {"trial": name, **{"clip": try_clip, "decoder": try_decoder}[trial.model](Path(folder), trial, args)}
        print(", ".join(f"{k} {v:.3f}" if isinstance(v, float) else v for k, v in row.items()), flush=True)
        write_rows(args.output_dir / f"trials_{trial.model}.csv", [row], append=True)


def try_clip(root: Path, trial: Trial, args) -> dict[str, float]:
    """How many test images have their nearest caption right, and quantiles of the margins."""
    run(root, f"python lesson_17/train_clip.py {trial.flags}", args)
    clip = FrozenCLIP.load(models=root / "output")
    _, test_set, _ = load_images(data_source(args, clip.data), args.data_dir, next(clip.model.parameters()).device)
    margin = margins(EmbeddedImages.of(clip, test_set))
    quantiles = {f"{q:.0%}": (margin.quantile(q) / margin.median()).item() for q in (0.01, 0.05, 0.1)}
    return {"right": (margin > 0).float().mean().item(), **quantiles}


def try_decoder(root: Path, trial: Trial, args) -> dict[str, float]:
    """How many of the decoded images are right, and how much they follow the embedding, for each row of HEARS."""
    run(root, f"python lesson_17/train_decoder.py {INCLUDED_CLIP} {trial.flags}", args)
    run(root, HEARS, args)
    rows = read_rows(root / "output/hears/decoder_hears.csv")
    return {f"{row['decoded']}, {part}": float(row[part]) for row in rows for part in ("right", "follows")}


def parse_args():
    parser = ArgumentParser(__doc__)
    add_names(parser, "trial", TRIALS)
    parser.add_argument("--output_dir", type=new_folder, default=ROOT / "output/trials", help="where the tables go")
    add_data_flags(parser)
    return parser.parse_args()


if __name__ == "__main__":
    start(main)
