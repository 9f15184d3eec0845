"""Measure lesson 17's edits on MNIST in color: what is read from the images before and after, over 200 test images each.
Writes edits.csv.

`distance` is the root mean squared difference of pixels in [0, 1] to the image that was edited.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from lesson_17.edit_mnist import decode, inpaint, outside, slerp, split, text_difference
from lesson_17.pipeline import DEFAULT_SAMPLING, Pipeline, add_model_flags
from torch import Tensor
from utils.cli import ArgumentParser, UserError, arguments_for, new_folder, positive_int, start
from utils.data import CaptionedImages
from utils.datasets import add_data_flags, data_source, load_images
from utils.datasets.mnist import DIGIT_WORDS
from utils.datasets.colored_mnist import INKS, STROKES, all_asked_for
from utils.samples import SeededNoise
from utils.scoring import Judge, fullest_captions, at_random
from utils.tables import write_rows

FRACTIONS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]  # of text_diff
REPEATS = [1, 5, 10]  # of inpaint
BOX = [0, 0, 14, 28]  # the left half


def main() -> None:
    args = parse_args()
    pipeline = Pipeline.load(**arguments_for(args, Pipeline.load))
    train_set, test_set, source = load_images(data_source(args, pipeline.data), args.data_dir, pipeline.device)
    if source.dataset != "colored_mnist":
        raise UserError(f"Edits are measured on colored_mnist; these models learned {source.dataset}.")
    judge = Judge(source, train_set, test_set)
    rows = []
    for measure in (measure_variations, measure_text_diff, measure_inpaint):
        for row in measure(pipeline, judge, args):
            print(", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if v != ""))
            rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_rows(args.output_dir / "edits.csv", [{name: row.get(name, "") for name in names} for row in rows])


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--num_images", type=positive_int, default=200, help="of each edit")
    parser.add_argument("--sampling_steps", type=positive_int, default=50, help="there and back")
    parser.add_argument("--output_dir", type=new_folder, default=ROOT / "output/edits", help="where the table goes")
    add_model_flags(parser)
    add_data_flags(parser)
    return parser.parse_args()


def compared(judge: Judge, images: Tensor, asked: dict[str, Tensor]) -> dict[str, float]:
    """The fraction of images (B, C, H, H) in which the digit, the ink and the stroke (where one is asked for) are as asked."""
    read = judge.reader.read(images)
    right = {kind: read[kind] == asked[kind].to(images.device) for kind in read}
    kept = {kind: right[kind][asked[kind].to(images.device) >= 0] for kind in read}
    return {kind: values.float().mean().item() for kind, values in kept.items() if len(values)}


def distance(a: Tensor, b: Tensor) -> float:
    return (a - b).square().flatten(1).mean(dim=1).sqrt().mean().item()


def measure_variations(pipeline: Pipeline, judge: Judge, args):
    """Section 3.1: is what CLIP sees kept, and how far do the pixels go?"""
    images = at_random(judge.test_set, args.num_images)
    asked = all_asked_for(fullest_captions(images))
    x_0, z_i, x_T = split(pipeline, images, args.sampling_steps)
    for eta in (0.0, 0.5, 1.0):
        noise = SeededNoise(list(range(len(x_0))))
        varied = decode(pipeline.decoder, z_i, x_T, args.sampling_steps, eta=eta, randn=noise.randn)
        yield {"edit": f"variations, eta {eta}", **compared(judge, varied, asked), "distance": distance(varied, x_0)}
    others = torch.stack([another(judge.test_set, text, image) for text, image in zip(fullest_captions(images), x_0)])
    yield {
        "edit": "another image of the same caption",
        **compared(judge, others, asked),
        "distance": distance(others, x_0),
    }


def another(images: CaptionedImages, caption: str, image: Tensor) -> Tensor:
    """The first image with a caption that is not `image` (C, H, H) itself, (C, H, H)."""
    return next(other for other in images.images(images.index_of(caption)) if not torch.equal(other, image))


def measure_text_diff(pipeline: Pipeline, judge: Judge, args):
    """Section 3.3: does what the captions tell apart change, and the rest stay?"""
    kinds = {"ink": len(INKS), "stroke": len(STROKES), "digit": 10}
    for changed, count in kinds.items():
        images = with_stroke(judge.test_set) if changed == "stroke" else judge.test_set
        images = at_random(images, args.num_images)
        asked = all_asked_for(fullest_captions(images))
        steps = torch.randint(1, count, (len(images),), generator=torch.Generator().manual_seed(0))
        wanted = {**asked, changed: (asked[changed] + steps) % count}
        stroke = changed == "stroke"
        from_prompts, to_prompts = ([caption_of(one, i, stroke) for i in range(len(images))] for one in (asked, wanted))
        x_0, z_i, x_T = split(pipeline, images, args.sampling_steps)
        z_d = text_difference(pipeline, from_prompts, to_prompts)
        for fraction in FRACTIONS:
            edited = decode(pipeline.decoder, slerp(z_i, z_d, fraction), x_T, args.sampling_steps)
            row = {"edit": f"text_diff, another {changed}", "fraction": fraction, **compared(judge, edited, wanted)}
            yield {**row, "distance": distance(edited, x_0)}


def with_stroke(images: CaptionedImages) -> CaptionedImages:
    """Those whose captions name the stroke."""
    named = torch.tensor([stroke >= 0 for stroke in all_asked_for(fullest_captions(images))["stroke"].tolist()])
    return images.subset(torch.where(named)[0].to(images.device))


def caption_of(asked: dict[str, Tensor], i: int, stroke: bool) -> str:
    words = [STROKES[asked["stroke"][i]]] if stroke else []
    return " ".join([*words, list(INKS)[asked["ink"][i]], DIGIT_WORDS[asked["digit"][i]]])


def measure_inpaint(pipeline: Pipeline, judge: Judge, args):
    """Does the new half follow the caption, and is the seam seen? `seam` is the mean difference of neighboring pixels across
    the edge of the box over that within it; that of real images comes first."""
    images = at_random(judge.test_set, args.num_images)
    asked = all_asked_for(fullest_captions(images))
    prompts = [caption_of(asked, i, False) for i in range(len(images))]
    x_0 = images.images()
    known = outside(BOX, x_0)
    yield {"edit": "real images", **compared(judge, x_0, asked), "seam": seam(x_0)}
    for repeats in REPEATS:
        drawn = inpaint(
            *(pipeline, x_0, known, prompts, list(range(len(x_0))), 20, DEFAULT_SAMPLING["guidance_scale"], repeats)
        )
        row = {"edit": f"inpaint, {repeats} repeats", **compared(judge, drawn, asked), "distance": distance(drawn, x_0)}
        yield {**row, "seam": seam(drawn), "known changed": (drawn - x_0)[..., known].abs().max().item()}


def seam(images: Tensor) -> float:
    differences = images.diff(dim=3).abs().mean(dim=(0, 1, 2))  # (W - 1,)
    edge = BOX[2]
    return (differences[edge - 1] / differences[edge - 4 : edge - 1].mean()).item()


if __name__ == "__main__":
    start(main)
