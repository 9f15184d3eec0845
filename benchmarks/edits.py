"""Measure lesson 17's edits of digits, plain or in color: what is read from the images before and after, over 200 test images
each. Writes edits.csv.

`distance` is the root mean squared difference of pixels in [0, 1] to the image that was edited. `slant` and `thickness`
are how these go along with those of the image that was edited: correlations among the images of one edit.
"""

import itertools
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from lesson_17.edit_mnist import GUIDANCE_SCALE, decode, inpaint, outside, slerp, split, text_difference
from lesson_17.pipeline import Pipeline, add_model_flags
from torch import Tensor
from utils.cli import ArgumentParser, arguments_for, new_folder, positive_int, start
from utils.data import CaptionedImages
from utils.datasets import add_data_flags, data_source, load_images
from utils.datasets.colored_mnist import INKS, STROKES, all_asked_for
from utils.datasets.mnist import DIGIT_WORDS
from utils.samples import SeededNoise
from utils.scoring import Judge, amount_of_ink, at_random, check_digits, digits_of, fullest_captions
from utils.tables import write_rows

FRACTIONS = [0.2, 0.3, 0.4, 0.5, 0.6]  # of text_diff
SCALES = [1.0, GUIDANCE_SCALE, 3.0]  # of text_diff
PAIRS = [(3, 8), (4, 9), (7, 1), (0, 6), (1, 7), (5, 6), (9, 4), (8, 3), (2, 7)]
REPEATS = [1, 5, 10]  # of inpaint
HALF = [0, 0, 14, 28]  # the left one
BOXES = {
    "left half": HALF, "right half": [14, 0, 28, 28], "upper half": [0, 0, 28, 14], "lower half": [0, 14, 28, 28],
    "4 4 14 24": [4, 4, 14, 24], "4 4 24 24": [4, 4, 24, 24],
}  # fmt: skip
NUM_BETWEEN = 5  # frames between the ends of an interpolation


def main() -> None:
    args = parse_args()
    pipeline = Pipeline.load(**arguments_for(args, Pipeline.load))
    train_set, test_set, source = load_images(data_source(args, pipeline.data), args.data_dir, pipeline.device)
    check_digits(source, "edits.py")
    judge = Judge(source, train_set, test_set)
    in_color = source.dataset == "colored_mnist"
    of_data = (measure_inpaint,) if in_color else (measure_pairs, measure_boxes, measure_interpolation)
    rows = []
    for measure in (measure_variations, measure_text_diff, *of_data):
        for row in measure(pipeline, judge, args):
            print(
                ", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if v != ""),
                flush=True,
            )
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
    right = {kind: read[kind] == asked[kind].to(images.device) for kind in asked}
    kept = {kind: right[kind][asked[kind].to(images.device) >= 0] for kind in asked}
    return {kind: values.float().mean().item() for kind, values in kept.items() if len(values)}


def distance(a: Tensor, b: Tensor) -> float:
    return (a - b).square().flatten(1).mean(dim=1).sqrt().mean().item()


def measure_variations(pipeline: Pipeline, judge: Judge, args):
    """Section 3.1: is what CLIP sees kept, and how far do the pixels go?"""
    images = at_random(judge.test_set, args.num_images)
    asked = all_asked_for(fullest_captions(images))
    x_0, z_i, x_T = split(pipeline, images, args.sampling_steps)
    for eta, scale in ((0.0, 1.0), (0.5, GUIDANCE_SCALE), (1.0, GUIDANCE_SCALE), (1.0, 1.0)):
        noise = SeededNoise(list(range(len(x_0))))
        varied = decode(pipeline.decoder, z_i, x_T, args.sampling_steps, scale, eta=eta, randn=noise.randn)
        row = {"edit": f"variations, eta {eta}", "guidance": scale, **compared(judge, varied, asked)}
        yield {**row, "distance": distance(varied, x_0)}
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
    named = all_asked_for(judge.test_set.captions)
    for changed, count in kinds.items():
        if (named[changed] < 0).all():
            continue  # plain digits
        images = with_stroke(judge.test_set) if changed == "stroke" else judge.test_set
        images = at_random(images, args.num_images)
        asked = all_asked_for(fullest_captions(images))
        steps = torch.randint(1, count, (len(images),), generator=torch.Generator().manual_seed(0))
        wanted = {**asked, changed: (asked[changed] + steps) % count}
        stroke = changed == "stroke"
        from_prompts, to_prompts = ([caption_of(one, i, stroke) for i in range(len(images))] for one in (asked, wanted))
        x_0, z_i, x_T = split(pipeline, images, args.sampling_steps)
        z_d = text_difference(pipeline, from_prompts, to_prompts)
        for scale in SCALES:
            for fraction in FRACTIONS:
                edited = decode(pipeline.decoder, slerp(z_i, z_d, fraction), x_T, args.sampling_steps, scale)
                row = {"edit": f"text_diff, another {changed}", "guidance": scale, "fraction": fraction}
                yield {**row, **compared(judge, edited, wanted), "distance": distance(edited, x_0)}


def measure_pairs(pipeline: Pipeline, judge: Judge, args):
    """Section 3.3, digit by digit: does the new digit have the old one's hand? Without guidance, with it, and with all noise
    drawn anew."""
    for old, new in PAIRS:
        images = at_random(judge.test_set.subset(torch.where(judge.test_digits == old)[0]), args.num_images)
        x_0, z_i, x_T = split(pipeline, images, args.sampling_steps)
        z_d = text_difference(pipeline, [DIGIT_WORDS[old]] * len(images), [DIGIT_WORDS[new]] * len(images))
        for scale, eta in ((1.0, 0.0), (GUIDANCE_SCALE, 0.0), (1.0, 1.0)):
            how = {"eta": eta, "randn": SeededNoise(list(range(len(x_0)))).randn}
            edited = decode(pipeline.decoder, slerp(z_i, z_d, 0.5), x_T, args.sampling_steps, scale, **how)
            row = {"edit": f"text_diff, {old} to {new}", "guidance": scale, "fraction": 0.5, "eta": eta}
            row |= compared(judge, edited, {"digit": torch.full((len(x_0),), new)})
            for name, measured in (("slant", slant), ("thickness", amount_of_ink)):
                row[name] = torch.corrcoef(torch.stack([measured(x_0), measured(edited)]))[0, 1].item()
            yield {**row, "distance": distance(edited, x_0)}


def slant(images: Tensor) -> Tensor:
    """How far the ink of images (B, C, H, H) moves to the right from a row of pixels to the next, (B,)."""
    ink = images.amax(dim=1)
    ink = ink / ink.sum(dim=(1, 2), keepdim=True)
    place = torch.arange(ink.shape[-1], device=ink.device).float()
    x, y = place - (ink.sum(dim=1) @ place)[:, None], place - (ink.sum(dim=2) @ place)[:, None]
    return torch.einsum("bij,bi,bj->b", ink, y, x) / torch.einsum("bij,bi->b", ink, y.square())


def measure_boxes(pipeline: Pipeline, judge: Judge, args):
    """In which box does the caption of another digit win over the known pixels, with each step taken once and 5 times?"""
    images = at_random(judge.test_set, args.num_images)
    old = digits_of(images)
    steps = torch.randint(1, 10, (len(old),), generator=torch.Generator().manual_seed(0))
    new = (old + steps.to(old.device)) % 10
    prompts, seeds, x_0 = [DIGIT_WORDS[digit] for digit in new], list(range(len(images))), images.images()
    for name, repeats in itertools.product(BOXES, REPEATS[:2]):
        known = outside(BOXES[name], x_0)
        drawn = inpaint(pipeline, x_0, known, prompts, seeds, args.sampling_steps, GUIDANCE_SCALE, repeats)
        row = {"edit": f"inpaint another digit, {name}, {repeats} repeats", **compared(judge, drawn, {"digit": new})}
        yield {**row, "old digit": compared(judge, drawn, {"digit": old})["digit"], "distance": distance(drawn, x_0)}


def measure_interpolation(pipeline: Pipeline, judge: Judge, args):
    """Section 3.2: are the ends their images, and what is between them one of the two digits?"""
    images = at_random(judge.test_set, 2 * args.num_images)
    digits = digits_of(images)
    first, second = torch.arange(len(images), device=digits.device).chunk(2)
    differ = digits[first] != digits[second]
    first, second = first[differ], second[differ]
    x_0, z_i, x_T = split(pipeline, images, args.sampling_steps)
    for fraction in torch.linspace(0, 1, NUM_BETWEEN + 2).tolist():
        z, x = slerp(z_i[first], z_i[second], fraction), slerp(x_T[first], x_T[second], fraction)
        drawn = decode(pipeline.decoder, z, x, args.sampling_steps)
        digit = judge.reader.read(drawn)["digit"]
        either = (digit == digits[first]) | (digit == digits[second])
        row = {"edit": "interpolation", "fraction": round(fraction, 3), "digit": either.float().mean().item()}
        yield {**row, "distance": min(distance(drawn, x_0[first]), distance(drawn, x_0[second]))}


def with_stroke(images: CaptionedImages) -> CaptionedImages:
    """Those whose captions name the stroke."""
    named = torch.tensor([stroke >= 0 for stroke in all_asked_for(fullest_captions(images))["stroke"].tolist()])
    return images.subset(torch.where(named)[0].to(images.device))


def caption_of(asked: dict[str, Tensor], i: int, stroke: bool) -> str:
    strokes = [STROKES[asked["stroke"][i]]] if stroke else []
    inks = [list(INKS)[asked["ink"][i]]] if asked["ink"][i] >= 0 else []
    return " ".join([*strokes, *inks, DIGIT_WORDS[asked["digit"][i]]])


def measure_inpaint(pipeline: Pipeline, judge: Judge, args):
    """Does the new half follow the caption, and is the seam seen? `seam` is the mean difference of neighboring pixels across
    the edge of the box over that within it; that of real images comes first."""
    images = at_random(judge.test_set, args.num_images)
    asked = all_asked_for(fullest_captions(images))
    prompts = [caption_of(asked, i, False) for i in range(len(images))]
    x_0 = images.images()
    known = outside(HALF, x_0)
    yield {"edit": "real images", **compared(judge, x_0, asked), "seam": seam(x_0)}
    for repeats in REPEATS:
        seeds = list(range(len(x_0)))
        drawn = inpaint(pipeline, x_0, known, prompts, seeds, args.sampling_steps, GUIDANCE_SCALE, repeats)
        row = {"edit": f"inpaint, {repeats} repeats", **compared(judge, drawn, asked), "distance": distance(drawn, x_0)}
        yield {**row, "seam": seam(drawn), "known changed": (drawn - x_0)[..., known].abs().max().item()}


def seam(images: Tensor) -> float:
    differences = images.diff(dim=3).abs().mean(dim=(0, 1, 2))  # (W - 1,)
    edge = HALF[2]
    return (differences[edge - 1] / differences[edge - 4 : edge - 1].mean()).item()


if __name__ == "__main__":
    start(main)
