"""Measure a trained DALL·E 2: CLIP, the prior, the decoder, and the pictures they draw together. Writes a table, as JSON
and as a picture, to output/evaluation."""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from diffusion_decoder import decode_image_embed, to_x_0
from diffusion_prior import draw_image_embed
from pipeline import DEFAULT_SAMPLING, Pipeline, add_model_flags, add_sampling_flags, nearest_digit
from torch import Tensor
from utils.cli import ArgumentParser, add_data_flags, start
from utils.data import NUM_CLASSES, Images, load_digits
from utils.machine import get_device
from utils.prompts import PROMPTS, prompt_ids
from utils.scoring import Judge, Row, accuracy, add_evaluation_flags, draw_samples, load_scorer, write_report

NUM_HELD_OUT = 1000  # test images that the decoder is measured on
NUM_RANGES = 5  # of timesteps


def main() -> None:
    args = parse_args()
    device = get_device()
    pipeline = Pipeline.load(args, device)
    train_set, test_set = load_digits(args.dataset, args.data_dir, pipeline.decoder.config.image_channels, device)
    scorer = load_scorer(train_set, args.output_dir)
    judge = Judge(scorer, train_set, test_set)
    sampling = {name: getattr(args, name) for name in DEFAULT_SAMPLING}

    torch.manual_seed(0)
    image_embed = pipeline.clip.encode_images(test_set)
    samples = draw_samples(partial(pipeline.draw, **sampling), scorer, args.num_samples)
    unguided = draw_samples(partial(pipeline.draw, **{**sampling, "guidance_scale": 1.0}), scorer, args.num_samples)
    rows = [
        *clip_rows(pipeline, image_embed, test_set.labels),
        *prior_rows(pipeline, image_embed, test_set.labels),
        *decoder_rows(pipeline, scorer, test_set.subset(slice(NUM_HELD_OUT)), image_embed[:NUM_HELD_OUT], args),
        *judge.real_rows(len(samples.digits)),
        *judge.sample_rows("samples", samples),
        *judge.sample_rows("unguided samples", unguided),
    ]
    write_report(args.output_dir, "dall_e_2", rows, samples, train_set, pipeline.files, sampling)


def parse_args():
    parser = ArgumentParser(__doc__)
    add_evaluation_flags(parser)
    add_sampling_flags(parser)
    add_model_flags(parser)
    add_data_flags(parser)
    return parser.parse_args()


def clip_rows(pipeline: Pipeline, image_embed: Tensor, labels: Tensor) -> list[Row]:
    """Zero-shot accuracy both ways: the caption of an image, and the image of a caption."""
    text_embed, _ = pipeline.clip.encode_prompts(PROMPTS, pipeline.device)
    to_caption = (nearest_digit(image_embed, text_embed) == labels).float().mean().item()
    # Ten images at a time, one of each digit: which of them is nearest to a caption?
    of_digit = [image_embed[labels == digit] for digit in range(NUM_CLASSES)]
    tens = torch.stack([embeds[: min(map(len, of_digit))] for embeds in of_digit], dim=1)  # (tens, 10, E)
    chosen = torch.einsum("nde,pe->npd", tens, text_embed).argmax(dim=2)  # (tens, 20)
    to_image = (chosen == torch.arange(len(PROMPTS), device=chosen.device) // 2).float().mean().item()
    return [
        Row("CLIP, image to caption", to_caption, f"{to_caption:.1%}", "zero-shot accuracy on the test images"),
        Row("CLIP, caption to image", to_image, f"{to_image:.1%}", "the right one of ten, one of each digit"),
    ]


def prior_rows(pipeline: Pipeline, image_embed: Tensor, labels: Tensor) -> list[Row]:
    """Where the embeddings that the prior draws for captions lie: near their captions, and near real images."""
    text_embed, text_encodings = pipeline.clip.encode_prompts(PROMPTS, pipeline.device)
    prompt = torch.arange(len(PROMPTS), device=pipeline.device).repeat_interleave(100)
    digits = prompt // 2  # PROMPTS has two spellings of each
    drawn = draw_image_embed(pipeline.prior, text_embed[prompt], text_encodings[prompt])
    own = (nearest_digit(drawn, text_embed) == digits).float().mean().item()
    means = torch.stack([image_embed[labels == digit].mean(dim=0) for digit in range(NUM_CLASSES)])
    to_images = (drawn * means[digits]).sum(dim=1).mean().item()
    real_to_images = (image_embed * means[labels]).sum(dim=1).mean().item()
    to_caption = (drawn * text_embed[prompt]).sum(dim=1).mean().item()
    return [
        Row("prior, own caption nearest", own, f"{own:.1%}", f"of {len(prompt):,} drawn embeddings"),
        Row("prior, cosine to images", to_images, f"{to_images:.3f}", f"of the digit; real ones' {real_to_images:.3f}"),
        Row("prior, cosine to caption", to_caption, f"{to_caption:.3f}", "mean of drawn embeddings with their own"),
    ]


def decoder_rows(pipeline: Pipeline, scorer, held_out: Images, image_embed: Tensor, args) -> list[Row]:
    """The loss by timestep, and what real images' embeddings are decoded to."""
    decoder = pipeline.decoder
    images, labels = held_out[:]
    _, encodings = pipeline.clip.encode_prompts(PROMPTS, pipeline.device)
    encodings = encodings[prompt_ids(labels, spelling=0)]

    rows = []
    for low, high in timestep_ranges(decoder.diffusion.num_timesteps):
        t = torch.randint(low, high + 1, labels.shape, device=labels.device)
        x_0, eps = to_x_0(images), torch.randn_like(images)
        predicted = decoder(decoder.diffusion.q_sample(x_0, t, eps), t, image_embed, encodings)
        loss = F.mse_loss(predicted, decoder.diffusion.target(x_0, t, eps))
        rows.append(Row(f"decoder, loss, t {low} to {high}", loss.item(), f"{loss:.4f}", "on test images"))
    mean = sum(row.value for row in rows) / len(rows)
    rows.append(Row("decoder, loss", mean, f"{mean:.4f}", "the mean of these"))

    x_T = torch.randn_like(images)
    settings = {"num_steps": args.sampling_steps, "sampler": args.sampler}
    decoded = decode_image_embed(decoder, image_embed, encodings, x_T, args.guidance_scale, **settings)
    fraction = accuracy(scorer, decoded, labels)
    rows.append(
        Row("decoder, scorer's accuracy", fraction, f"{fraction:.1%}", "on what test images' embeddings decode to")
    )
    return rows


def timestep_ranges(num_timesteps: int) -> list[tuple[int, int]]:
    edges = torch.linspace(0, num_timesteps, min(NUM_RANGES, num_timesteps) + 1).round().int().tolist()
    return [(low + 1, high) for low, high in zip(edges, edges[1:])]


if __name__ == "__main__":
    start(main)
