"""Measure a trained DALL·E 2: CLIP, the prior, the decoder, up-samplers if there are some, and the pictures they draw
together. Writes a table, as JSON and as a picture, to output/evaluation."""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from lesson_17.diffusion_decoder import decode_image_embed, shrink, to_x_0
from lesson_17.frozen_clip import NUM_HELD_OUT, EmbeddedImages, zero_shot_accuracy
from lesson_17.pipeline import DEFAULT_SAMPLING, Pipeline, add_model_flags, add_sampling_flags
from lesson_17.train_prior import evaluate as evaluate_prior
from torch import Tensor
from utils.checkpoints import models_folder, newest_checkpoint
from utils.cli import ArgumentParser, arguments_for, start
from utils.data import CaptionedImages, map_in_chunks
from utils.datasets import add_data_flags, data_source, load_images
from utils.machine import Threads
from utils.samples import sample_captions
from utils.scoring import Judge, Row, add_evaluation_flags, write_report

NUM_RANGES = 5  # of timesteps


def main() -> None:
    args = parse_args()
    pipeline = Pipeline.load(**arguments_for(args, Pipeline.load))
    Threads().choose()
    train_set, test_set, source = load_images(data_source(args, pipeline.data), args.data_dir, pipeline.device)
    judge = Judge(source, train_set, test_set)
    sampling = {name: getattr(args, name) for name in DEFAULT_SAMPLING}
    unguided = {**sampling, "guidance_scale": 1.0, "prior_guidance_scale": 1.0}
    enlarge = enlarger(pipeline, source.image_size, args)

    torch.manual_seed(0)
    image_embed = pipeline.clip.encode_images(test_set)
    samples, unguided_samples = (
        judge.draw(lambda prompts, seeds: enlarge(pipeline.draw(prompts, seeds, **how), seeds), args.num_samples)  # noqa: B023
        for how in (sampling, unguided)
    )
    held_out = EmbeddedImages.of(pipeline.clip, test_set.subset(slice(NUM_HELD_OUT)))
    rows = [
        *clip_rows(pipeline, image_embed, test_set),
        *prior_rows(pipeline, held_out),
        *decoder_rows(pipeline, judge, held_out, enlarge, sampling),
        *(upsampler_rows(pipeline, judge, held_out.images, enlarge) if enlarge is not same_size else []),
        *judge.real_rows(len(samples.images)),
        *judge.sample_rows("samples", samples),
        *judge.sample_rows("unguided samples", unguided_samples),
    ]
    files = {**pipeline.files, **upsampler_files(pipeline, source.image_size, args)}
    write_report(args.output_dir, "dall_e_2", rows, samples, judge, files, sampling)


def parse_args():
    parser = ArgumentParser(__doc__)
    add_evaluation_flags(parser)
    add_sampling_flags(parser)
    add_model_flags(parser)
    add_data_flags(parser)
    return parser.parse_args()


def clip_rows(pipeline: Pipeline, image_embed: Tensor, test_set: CaptionedImages) -> list[Row]:
    """Zero-shot accuracy both ways: the caption of an image, and the image of a caption."""
    text_embed, _ = pipeline.clip.encode_prompts(test_set.captions, pipeline.device)
    to_caption = zero_shot_accuracy(image_embed, text_embed, test_set)
    # Ten images at a time: which of them is nearest to a caption of the first?
    ten = min(10, len(test_set))
    tens = torch.randperm(len(test_set))[: len(test_set) // ten * ten].view(-1, ten).to(pipeline.device)
    caption = test_set.caption_ids[tens[:, 0], 0]
    nearest = torch.einsum("nte,ne->nt", image_embed[tens], text_embed[caption]).argmax(dim=1)
    chosen = tens.gather(1, nearest[:, None]).squeeze(1)
    to_image = (test_set.caption_ids[chosen] == caption[:, None]).any(dim=1).float().mean().item()
    return [
        Row("CLIP, image to caption", to_caption, f"{to_caption:.1%}", f"the nearest of {len(text_embed):,} is right"),
        Row("CLIP, caption to image", to_image, f"{to_image:.1%}", f"the nearest of {ten} random test images is right"),
    ]


def same_size(images: Tensor, seeds: list[int]) -> Tensor:
    return images


def enlarger(pipeline: Pipeline, image_size: int, args):
    """What brings images (B, C, h, h) of the decoder's size, with a seed each, to the data's: nothing, or the newest
    up-samplers."""
    size = pipeline.decoder.config.image_size
    if size == image_size:
        return same_size
    from lesson_17.upsample_mnist import load_upsamplers, upsample_all

    upsamplers = load_upsamplers(size, pipeline.decoder.config.image_channels, models_folder(args.models))
    return partial(upsample_all, upsamplers, num_steps=args.sampling_steps)


def upsampler_files(pipeline: Pipeline, image_size: int, args) -> dict[str, str]:
    """The checkpoints of the up-samplers between the decoder's images and the data's, by their names."""
    size, files = 2 * pipeline.decoder.config.image_size, {}
    while size <= image_size:
        name = f"upsampler_{size}"
        files[name] = str(newest_checkpoint(models_folder(args.models) / name, name))
        size *= 2
    return files


def prior_rows(pipeline: Pipeline, held_out: EmbeddedImages) -> list[Row]:
    """Where the embeddings that the prior draws for captions lie: near their captions, and near real images."""
    shown = sample_captions(held_out.images, 100)
    ids = torch.tensor([held_out.images.captions.index(caption) for caption in shown], device=pipeline.device)
    _, measured = evaluate_prior(pipeline.prior, ids, held_out, batch_size=500)
    names = ("own_caption_nearest", "cosine_to_images", "cosine_of_images", "cosine_to_caption")
    own, to_images, of_images, to_caption = (measured[name] for name in names)
    return [
        Row("prior, own caption nearest", own, f"{own:.1%}", "or one that is valid for the same images"),
        Row(
            "prior, cosine to images",
            to_images,
            f"{to_images:.3f}",
            "of drawn embeddings, with the caption's test images",
        ),
        Row("prior, cosine of images", of_images, f"{of_images:.3f}", "of these test images with each other"),
        Row("prior, cosine to caption", to_caption, f"{to_caption:.3f}", "mean of drawn embeddings with their own"),
    ]


def decoder_rows(pipeline: Pipeline, judge: Judge, held_out: EmbeddedImages, enlarge, sampling: dict) -> list[Row]:
    """The loss by timestep, and what real images' embeddings are decoded to."""
    decoder, image_embed = pipeline.decoder, held_out.image_embed
    images = shrink(held_out.images.images(), decoder.config.image_size)
    _, encodings = held_out.captions[held_out.images.caption_ids[:, 0]]

    rows = []
    for low, high in timestep_ranges(decoder.diffusion.num_timesteps):

        def losses(x_0: Tensor, image_embed: Tensor, encodings: Tensor) -> Tensor:
            t = torch.randint(low, high + 1, (len(x_0),), device=x_0.device)  # noqa: B023
            return decoder.diffusion.loss(decoder, x_0, image_embed, encodings, t=t).expand(len(x_0))

        loss = (
            map_in_chunks(torch.no_grad()(losses), to_x_0(images), image_embed, encodings, batch_size=100).mean().item()
        )
        rows.append(Row(f"decoder, loss, t {low} to {high}", loss, f"{loss:.4f}", "on test images"))
    mean = sum(row.value for row in rows) / len(rows)
    rows.append(Row("decoder, loss", mean, f"{mean:.4f}", "the mean of these"))

    if judge.reader:
        settings = {"num_steps": sampling["sampling_steps"], "eta": sampling["eta"]}

        def decode(image_embed: Tensor, encodings: Tensor, x_T: Tensor) -> Tensor:
            return decode_image_embed(decoder, image_embed, encodings, x_T, sampling["guidance_scale"], **settings)

        decoded = map_in_chunks(decode, image_embed, encodings, torch.randn_like(images), batch_size=100)
        meaning = "on what test images' embeddings decode to"
        drawn = enlarge(decoded, list(range(len(decoded))))
        rows.append(read_row("decoder, scorer's accuracy", judge, drawn, meaning))
    return rows


def upsampler_rows(pipeline: Pipeline, judge: Judge, held_out: CaptionedImages, enlarge) -> list[Row]:
    """What comes back of test images that are made as small as those of the decoder."""
    small = shrink(held_out.images(), pipeline.decoder.config.image_size)
    images = enlarge(small, list(range(len(small))))
    kept = (shrink(images, small.shape[-1]) - small).square().mean().sqrt().item()
    rows = [
        Row("up-samplers, small image kept", kept, f"{kept:.3f}", "RMS distance of it to the large one, made small")
    ]
    if judge.reader:
        distance = judge.frechet_distance(images)
        rows += [
            read_row("up-samplers, scorer's accuracy", judge, images, "on test images, made small and up-sampled"),
            Row("up-samplers, Fréchet distance", distance, f"{distance:.1f}", "of these to the test images"),
        ]
    return rows


def read_row(name: str, judge: Judge, images: Tensor, meaning: str) -> Row:
    """How often the scorer reads the right digit in images (B, C, H, H) that stand for the first B test images."""
    digits = judge.reader.read(images)["digit"]
    fraction = (digits == judge.test_digits[: len(digits)]).float().mean().item()
    return Row(name, fraction, f"{fraction:.1%}", meaning)


def timestep_ranges(num_timesteps: int) -> list[tuple[int, int]]:
    edges = torch.linspace(0, num_timesteps, min(NUM_RANGES, num_timesteps) + 1).round().int().tolist()
    return [(low + 1, high) for low, high in zip(edges, edges[1:])]


if __name__ == "__main__":
    start(main)
