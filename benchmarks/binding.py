"""Which ink goes with which digit? (DALL·E 2, section 7): both lessons' models draw two digits in two inks, and what they drew
is read back. Prints two Markdown tables; writes binding.csv, with their numbers, and binding.png.

The models are those that were trained with --dataset two_digits. Prompts are captions of test images: some of digits that
training images show together, and some of digits that they never do.
"""

import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "lesson_08"), str(ROOT / "lesson_17")]

import torch
import torch.nn.functional as F
from diffusion_decoder import decode_image_embed
from diffusion_prior import draw_image_embed
from benchmarks.figures import save_rows
from benchmarks.train_scorer import train_scorer
from lesson_08.generate_mnist import DEFAULT_SAMPLING as DALL_E_SAMPLING
from lesson_08.generate_mnist import Pipeline as DallEPipeline
from pipeline import DEFAULT_SAMPLING, Pipeline, add_model_flags
from torch import Tensor
from utils.cli import ArgumentParser, UserError, bounded, positive_int, start
from utils.data import CaptionedImages, add_data_flags, data_source, load_images, map_in_parts
from utils.digits import DIGIT_CAPTIONS, digit_caption_ids
from utils.machine import get_device
from utils.samples import SeededNoise
from utils.scoring import Scorer, nearest_ink, wilson_interval
from utils.tables import write_rows
from utils.two_digits import captions_of_two, cut_apart, never_together, two_asked_for

GROUPS = ["seen together", "never seen together"]
OUTCOMES = ["as asked", "inks swapped", "digits swapped", "places swapped", "other"]
NUM_SHOWN = 6  # prompts of each group in the picture


def main() -> None:
    args = parse_args()
    device = get_device()
    dall_e = DallEPipeline.load(args.dvae_checkpoint, args.dall_e_checkpoint, device, args.models)
    unclip = Pipeline.load(args, device)
    for pipeline in (dall_e, unclip):
        if pipeline.data["dataset"] != "two_digits":
            raise UserError(f"Binding is measured on two_digits; these models learned {pipeline.data['dataset']}.")
    train_set, test_set, _ = load_images(data_source(args, unclip.data), args.data_dir, device)
    print("Training a scorer of small digits ...", flush=True)
    scorer = train_small_scorer(train_set, args.scorer_steps)
    images, prompts, never = questions(test_set, args.num_samples)
    drawn = draw_all(dall_e, unclip, images.images(), prompts, args.guidance_scale)

    asked, rows = two_asked_for(prompts), []
    for name, pictures in drawn.items():
        outcome = outcomes(asked, read(scorer, pictures, asked[2]))
        rows += counted(name, {one: outcome == i for i, one in enumerate(OUTCOMES)}, never)
    nearer = counted("CLIP", nearer_when_swapped(unclip, images, prompts), never)
    print_table(rows, OUTCOMES)
    print_table(nearer, OUTCOMES[1:4])
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_rows(args.output_dir / "binding.csv", [dict.fromkeys(rows[0], "") | row for row in [*rows, *nearer]])
    shown = torch.cat([torch.where(of_group)[0][:NUM_SHOWN] for of_group in (~never, never)])
    captions = [textwrap.fill(prompts[i], 9) for i in shown]
    figure = {name: pictures[shown] for name, pictures in drawn.items()}
    save_rows(figure, args.output_dir / "binding.png", captions, cell=0.6)


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--num_samples", type=positive_int, default=500, help="of digits seen and of digits never seen")
    parser.add_argument("--guidance_scale", type=bounded(float, 0, 100), help="of unCLIP's decoder")
    parser.add_argument("--scorer_steps", type=positive_int, default=2000, help="of the training of the scorer")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "output/binding", help="where CSV and figure go")
    parser.set_defaults(guidance_scale=DEFAULT_SAMPLING["guidance_scale"])
    for name in ("dvae", "dall_e"):
        parser.add_argument(f"--{name}_checkpoint", help=f"(default: the newest in output/{name})")
    add_model_flags(parser)
    add_data_flags(parser)
    return parser.parse_args()


def questions(test_set: CaptionedImages, number: int) -> tuple[CaptionedImages, list[str], Tensor]:
    """`number` test images of digits that training images show together and as many of the others, a caption of each, and
    which are never seen together, (B,) bool."""
    torch.manual_seed(0)
    prompts = [test_set.captions[i] for i in test_set.draw_captions().tolist()]
    digits, _, _ = two_asked_for(prompts)
    never = never_together(digits)
    index = torch.cat([torch.where(of_group)[0][:number] for of_group in (~never, never)])
    return test_set.subset(index.to(test_set.device)), [prompts[i] for i in index], never[index]


@torch.no_grad()
def draw_all(
    dall_e: DallEPipeline, unclip: Pipeline, images: Tensor, prompts: list[str], guidance_scale: float
) -> dict[str, Tensor]:
    """{what: pictures (B, C, H, H) in [0, 1]} for B prompts, `images` (B, C, H, H) being real ones."""
    seeds = list(range(len(prompts)))
    text_embed, text_encodings = unclip.clip.encode_prompts(prompts, unclip.device)
    by_prior = draw_image_embed(
        *(unclip.prior, text_embed, text_encodings, DEFAULT_SAMPLING["prior_guidance_scale"]),
        randn=SeededNoise(seeds).randn,
    )
    by_clip = map_in_parts(unclip.clip.model.encode_image, images)
    no_embedding = unclip.decoder.null_image_embed.expand_as(by_clip)
    no_caption = unclip.decoder.null_caption.expand_as(text_encodings)
    x_T = SeededNoise(seeds).randn((len(seeds), *unclip.image_shape)).to(unclip.device)

    def decode(*conditions: Tensor) -> Tensor:
        def decode_part(image_embed: Tensor, encodings: Tensor, x_T: Tensor) -> Tensor:
            return unclip.upsample(decode_image_embed(unclip.decoder, image_embed, encodings, x_T, guidance_scale))

        return map_in_parts(decode_part, *conditions, x_T, batch_size=128)

    return {
        "real test images": images,
        "dVAE, of these images": map_in_parts(lambda images: dall_e.dvae.decode(dall_e.dvae.encode(images)), images),
        "DALL·E": dall_e.draw(prompts, seeds, **DALL_E_SAMPLING),
        "decoder, caption alone": decode(no_embedding, text_encodings),
        "unCLIP": decode(by_prior, text_encodings),
        "unCLIP, decoder without caption": decode(by_prior, no_caption),
        "decoder, real images' embeddings": decode(by_clip, no_caption),
    }


def train_small_scorer(train_set: CaptionedImages, num_steps: int) -> Scorer:
    """A scorer of the digits that are cut from training images and enlarged."""
    digits, _, arrangements = two_asked_for([train_set.captions[i] for i in train_set.caption_ids[:, 0].tolist()])
    small = cut_apart(train_set.pixels.amax(dim=1, keepdim=True), arrangements)[:, 0]  # the first digit of each image
    pixels = map_in_parts(lambda part: (255 * enlarged(part.float() / 255)).round().to(torch.uint8), small)
    ids = digit_caption_ids(digits[:, 0]).to(train_set.device)
    return train_scorer(CaptionedImages(pixels, DIGIT_CAPTIONS, ids), num_steps)


def enlarged(small: Tensor) -> Tensor:
    """Small digits (B, C, 14, 14) in [0, 1] as the scorer reads them, (B, C, 28, 28)."""
    return F.interpolate(small, scale_factor=2, mode="bilinear")


def read(scorer: Scorer, images: Tensor, arrangements: Tensor) -> tuple[Tensor, Tensor]:
    """Which digits and inks images (B, 3, 28, 28) in [0, 1] show where two digits in these arrangements (B,) should be:
    (B, 2) each."""
    small = cut_apart(images, arrangements).flatten(0, 1)
    digits = map_in_parts(lambda part: scorer(enlarged(part)), small).argmax(dim=1)
    return digits.view(-1, 2).cpu(), nearest_ink(small).view(-1, 2).cpu()


def outcomes(asked: tuple[Tensor, Tensor, Tensor], shown: tuple[Tensor, Tensor]) -> Tensor:
    """Which of OUTCOMES it is that what was asked for, digits (B, 2) and inks (B, 2), came out as what is shown: (B,)."""
    digits_kept, inks_kept = ((a == s).all(dim=1) for a, s in zip(asked, shown))
    digits_swapped, inks_swapped = ((a.flip(1) == s).all(dim=1) for a, s in zip(asked, shown))
    outcome = torch.full((len(digits_kept),), OUTCOMES.index("other"))
    outcome[digits_kept & inks_kept] = OUTCOMES.index("as asked")
    outcome[digits_kept & inks_swapped] = OUTCOMES.index("inks swapped")
    outcome[digits_swapped & inks_kept] = OUTCOMES.index("digits swapped")
    outcome[digits_swapped & inks_swapped] = OUTCOMES.index("places swapped")
    return outcome


def nearer_when_swapped(unclip: Pipeline, images: CaptionedImages, prompts: list[str]) -> dict[str, Tensor]:
    """{what is swapped in the prompt of an image: whether CLIP finds the image nearer to that than to the prompt, (B,) bool}
    for B images."""
    digits, inks, arrangements = two_asked_for(prompts)
    swaps = [(digits, inks), (digits, inks.flip(1)), (digits.flip(1), inks), (digits.flip(1), inks.flip(1))]
    image_embed, cosines = unclip.clip.encode_images(images), []
    for pair in swaps:
        captions = [captions_of_two(*one)[0] for one in zip(*(part.tolist() for part in pair), arrangements.tolist())]
        text_embed, _ = unclip.clip.encode_prompts(captions, unclip.device)
        cosines.append((image_embed * text_embed).sum(dim=1).cpu())
    own, *others = cosines
    return {name: other > own for name, other in zip(OUTCOMES[1:4], others)}


def counted(name: str, found: dict[str, Tensor], never: Tensor) -> list[dict]:
    """A row for each group: of how many samples, and how often each of the things `found` (B,) bool was so."""
    groups = zip(GROUPS, (~never, never))
    return [
        {"what": name, "digits": group, "samples": int(of_group.sum())}
        | {thing: int(so[of_group].sum()) for thing, so in found.items()}
        for group, of_group in groups
    ]


def print_table(rows: list[dict], columns: list[str]) -> None:
    """In Markdown: the fraction of the samples in each of the columns, with its 95% interval."""
    print(f"| | digits | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 2)}")
    for row in rows:
        cells = [fraction(row[column], row["samples"]) for column in columns]
        print(f"| {' | '.join([row['what'], row['digits'], *cells])} |")
    print(flush=True)


def fraction(number: int, samples: int) -> str:
    low, high = wilson_interval(number, samples)
    return f"{number / samples:.1%} ({100 * low:.1f} to {100 * high:.1f})"


if __name__ == "__main__":
    start(main)
