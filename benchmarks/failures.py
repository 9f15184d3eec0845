"""Break a lesson on purpose, one thing at a time, and keep the picture that shows it, in the lesson's figures.

Each failure changes a line in a copy of the repository, or adds a flag, and runs what a reader would run. It takes the
models that it does not train from output/.
"""

import shutil
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.changed_copy import copy_changed, run
from benchmarks.figures import add_names
from utils.checkpoints import newest_checkpoint
from utils.cli import ArgumentParser, start
from utils.datasets import add_data_flags


@dataclass
class Failure:
    """Lines of the lesson and what takes their place, commands that show what comes of it, and the picture they write."""

    lesson: str
    commands: list[str]
    picture: str
    changes: list[tuple[str, str, str]] = field(default_factory=list)  # file, line, what takes its place
    healthy: str = ""  # the command that draws the same with the healthy model, if that is shown beside the broken one


PROMPTS = "--prompts zero one two three four five six seven eight nine 0 1 2 3 4 5 6 7 8 9"
DRAWN_8 = "output/dall_e_samples/grid.png"
DRAWN_17 = "output/dall_e_2_samples/grid.png"
FAILURES = {
    "collapse": Failure(
        "lesson_08",
        ["python lesson_08/train_dvae.py --num_training_steps 350 --learning_rate 0.1 --output_dir output/broken"],
        "output/broken/sample-350.png",
    ),
    "kl_rises": Failure(
        "lesson_08",
        ["python lesson_08/train_dvae.py --dataset colored_mnist --num_training_steps 350 --output_dir output/broken"],
        "output/broken/sample-350.png",
        [
            (
                "dvae.py",
                "return cosine(120.0, 1.0, progress / 0.33)",
                "return cosine(0.0, 1.0, progress / 0.33)",
            )
        ],
    ),
    "kl_too_strong": Failure(
        "lesson_08",
        ["python lesson_08/train_dvae.py --num_training_steps 350 --beta 3 --output_dir output/broken"],
        "output/broken/sample-350.png",
    ),
    "tau_too_high": Failure(
        "lesson_08",
        ["python lesson_08/train_dvae.py --num_training_steps 350 --output_dir output/broken"],
        "output/broken/sample-350.png",
        [("dvae.py", "return cosine(1.0, 1 / 16, progress / 0.8)", "return 8.0")],
    ),
    "temperature_too_high": Failure(
        "lesson_08",
        [f"python lesson_08/generate_mnist.py {PROMPTS} --temperature 2 --guidance_scale 1"],
        DRAWN_8,
        healthy=f"python lesson_08/generate_mnist.py {PROMPTS} --guidance_scale 1",
    ),
    "clip_stuck": Failure(
        "lesson_17",
        ["python lesson_17/train_clip.py --num_training_steps 250 --learning_rate 0.5 --output_dir output/broken"],
        "output/broken/clip/sample-250.png",
    ),
    "prior_without_captions": Failure(
        "lesson_17",
        [
            "python lesson_17/train_prior.py --num_training_steps 300 --caption_dropout 1 --clip_checkpoint output/clip/clip-1800.pt --output_dir output/broken"
        ],
        "output/broken/prior/sample-300.png",
    ),
    "wrong_null": Failure(
        "lesson_17",
        [f"python lesson_17/generate_mnist.py {PROMPTS} --guidance_scale 8"],
        DRAWN_17,
        [
            (
                "diffusion_decoder.py",
                "drop_condition(text_encodings, self.null_caption, caption_dropout)",
                "drop_condition(text_encodings, 0 * self.null_caption, caption_dropout)",
            )
        ],
        healthy=f"python lesson_17/generate_mnist.py {PROMPTS} --guidance_scale 8",
    ),
    "too_few_steps": Failure(
        "lesson_17",
        [f"python lesson_17/generate_mnist.py {PROMPTS} --sampling_steps 1"],
        DRAWN_17,
        healthy=f"python lesson_17/generate_mnist.py {PROMPTS}",
    ),
}


def main() -> None:
    args = parse_args()
    for name in args.failures:
        failure = FAILURES[name]
        draw(failure, f"failure_{name}.png", args)
        if failure.healthy:
            draw(replace(failure, commands=[failure.healthy], changes=[]), f"healthy_{name}.png", args)


def draw(failure: Failure, name: str, args) -> None:
    """Run a failure, and keep its picture among the lesson's figures."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(break_and_run(failure, Path(folder), args), ROOT / failure.lesson / "figures" / name)
    print(f"{name} is drawn.", flush=True)


def parse_args():
    parser = ArgumentParser(__doc__)
    add_names(parser, "failure", FAILURES)
    add_data_flags(parser)
    return parser.parse_args()


def break_and_run(failure: Failure, root: Path, args) -> Path:
    """Break a copy of the repository in `root`, run the commands there, and return the picture."""
    copy_changed(root, [(f"{failure.lesson}/{file}", line, broken) for file, line, broken in failure.changes])
    for kind in ("dvae", "dall_e", "clip", "prior", "decoder", "upsampler_28"):
        newest = newest_checkpoint(ROOT / "output" / kind, kind)
        if newest is not None:
            (root / "output" / kind).mkdir(parents=True)
            shutil.copy2(newest, root / "output" / kind)
    for command in failure.commands:
        run(root, command, args)
    return root / failure.picture


if __name__ == "__main__":
    start(main)
