"""Draw a lesson's accuracy against its Fréchet distance, for many ways of drawing samples: guidance, temperature, filters, and
candidates among which CLIP chooses. Writes frontier_LESSON.csv, frontier_LESSON.png and candidates_LESSON.png.

Candidates are drawn plainly, once; of the first 1, 2, 4 ... of each sample the one nearest to its prompt is taken.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LESSON = "lesson_17" if "lesson_17" in sys.argv[1:2] else "lesson_08"
sys.path.insert(0, str(ROOT))

import torch
from lesson_17.choose_mnist import choose, load_clip
from lesson_17.frozen_clip import FrozenCLIP
from torch import Tensor
from utils.cli import ArgumentParser, arguments_for, bounded, new_folder, start
from utils.datasets import add_data_flags, data_source, load_images
from utils.plots import save_grid
from utils.scoring import Judge, check_digits, wilson_interval
from utils.tables import read_rows, write_rows

if LESSON == "lesson_08":
    from lesson_08.pipeline import Pipeline, add_model_flags

    PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance_scale": 1.0}
    SETTINGS = {
        "guidance_scale": [{"guidance_scale": scale} for scale in (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 2.0, 3.0)],
        "temperature": [{"temperature": value} for value in (0.9, 0.8, 0.7)],
        "top_k": [{"top_k": value} for value in (50, 20, 10, 5)],
        "top_p": [{"top_p": value} for value in (0.98, 0.95, 0.9, 0.8)],
    }
else:
    from lesson_17.pipeline import DEFAULT_SAMPLING, Pipeline, add_model_flags

    PLAIN = {**DEFAULT_SAMPLING, "prior_guidance_scale": 1.0, "guidance_scale": 1.0}

    def default_but(**change) -> dict:
        """The default settings with one changed, which comes first, as it names the point."""
        return change | DEFAULT_SAMPLING | change

    SETTINGS = {
        "eta": [{"eta": eta} for eta in (0.0, 0.5, 1.0)],
        "guidance_scale, eta 0.5": [{"guidance_scale": scale, "eta": 0.5} for scale in (1.0, 1.1, 1.25, 1.5, 2.0)],
        "guidance_scale, eta 1": [{"guidance_scale": scale, "eta": 1.0} for scale in (1.0, 1.1, 1.25, 1.5)],
        "prior_guidance_scale, the defaults else": [
            default_but(prior_guidance_scale=scale) for scale in (1.0, 1.5, 3.0)
        ],
        "sampling_steps, the defaults else": [default_but(sampling_steps=steps) for steps in (5, 10, 20, 40)],
    }

CANDIDATES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
NUM_SHOWN = 10  # prompts in the picture of candidates


def main() -> None:
    args = parse_args()
    pipeline, clip = load_models(args)
    device = pipeline.device
    train_set, test_set, source = load_images(data_source(args, pipeline.data), args.data_dir, device)
    check_digits(source, "frontier.py")
    judge = Judge(source, train_set, test_set)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    file = args.output_dir / f"frontier_{LESSON}.csv"
    write_rows(file, [])

    def draw(prompts: list[str], seeds: list[int], **sampling) -> Tensor:
        return pipeline.draw(prompts, seeds, **{**PLAIN, **sampling})

    def add(family: str, label: str, images: Tensor, prompts: list[str]) -> None:
        right = torch.stack(list(judge.right(images, prompts).values())).all(dim=0)
        low, high = wilson_interval(int(right.sum()), len(right))
        distance, ratio = judge.closeness(images, prompts)
        row = {"family": family, "setting": label, "accuracy": right.float().mean().item(), "low": low, "high": high}
        row |= {"frechet_distance": distance, "diversity": ratio, "samples": len(images)}
        write_rows(file, [row], append=True)
        print(
            f"{family} {label}: {row['accuracy']:.1%} [{low:.1%}, {high:.1%}], Fréchet {distance:.1f}, {ratio:.2f}",
            flush=True,
        )

    drawn = {}  # some settings are in several families
    for family, settings in SETTINGS.items():
        for sampling in settings:
            key = tuple(sorted({**PLAIN, **sampling}.items()))
            if key not in drawn:
                drawn[key] = judge.draw(lambda prompts, seeds: draw(prompts, seeds, **sampling), args.num_samples)  # noqa: B023
            samples = drawn[key]
            add(family, f"{next(iter(sampling.values())):g}", samples.images, samples.prompts)
    if args.candidates > 1:
        add_candidates(judge, clip, draw, add, args)
    plot(file, args.output_dir / f"frontier_{LESSON}.png")


def load_models(args):
    """The pipeline of the lesson, and the CLIP that chooses."""
    pipeline = Pipeline.load(**arguments_for(args, Pipeline.load))
    if LESSON == "lesson_17" or args.candidates == 1:
        return pipeline, getattr(pipeline, "clip", None)
    channels = pipeline.data["image_channels"]
    return pipeline, load_clip(args.clip_checkpoint, args.models, args.pretrained, channels)


def add_candidates(judge: Judge, clip: FrozenCLIP, draw, add, args) -> None:
    """The best of the first few of `args.candidates` candidates."""
    clip_scores, drawn = [], []
    samples = judge.draw(lambda prompts, seeds: torch.zeros(len(prompts), 0), args.num_samples)
    for first in range(args.candidates):
        seeds = [first + args.candidates * i for i in range(len(samples.prompts))]
        drawn.append(draw(samples.prompts, seeds))
        clip_scores.append(torch.tensor(choose(clip, drawn[-1], samples.prompts, 1)[1]))
    images, scores = torch.stack(drawn, dim=1), torch.stack(clip_scores, dim=1)  # (B, candidates, ...)
    numbers, shown = [number for number in CANDIDATES if number <= args.candidates], []
    for number in numbers:
        best = images[torch.arange(len(images)), scores[:, :number].argmax(dim=1)]
        add("candidates", str(number), best, samples.prompts)
        shown.append(best[:: len(best) // NUM_SHOWN][:NUM_SHOWN])
    captions = [f"{prompt}: {number}" for prompt in samples.prompts[:: len(best) // NUM_SHOWN] for number in numbers]
    cells = torch.stack(shown, dim=1).flatten(0, 1)
    save_grid(cells, args.output_dir / f"candidates_{LESSON}.png", len(numbers), captions[: len(cells)])


def plot(file: Path, path: Path) -> None:
    """Each family as a line, its settings written beside its points."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    axes, rows = figure.subplots(), read_rows(file)
    for family in dict.fromkeys(row["family"] for row in rows):
        of_family = [row for row in rows if row["family"] == family]
        x, y = ([float(row[name]) for row in of_family] for name in ("frechet_distance", "accuracy"))
        axes.plot(x, y, "o-", label=family)
        for row, left, height in zip(of_family, x, y):
            axes.annotate(row["setting"], (left, height), fontsize=7, textcoords="offset points", xytext=(4, -8))
    axes.set(xlabel="Fréchet distance to the test images (lower is closer)", ylabel="prompt accuracy")
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path)


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("lesson", choices=["lesson_08", "lesson_17"])
    parser.add_argument("--num_samples", type=bounded(int, 1, 500), default=50, help="of each caption or pair")
    parser.add_argument("--candidates", type=bounded(int, 1, 512), default=16, help="at most; 1 leaves them out")
    parser.add_argument(
        "--output_dir", type=new_folder, default=ROOT / "output/frontier", help="where CSV and figure go"
    )
    if LESSON == "lesson_08":
        parser.add_argument("--clip_checkpoint", help="(default: the newest in output/clip, or the included one)")
    add_model_flags(parser)
    add_data_flags(parser)
    return parser.parse_args()


if __name__ == "__main__":
    start(main)
