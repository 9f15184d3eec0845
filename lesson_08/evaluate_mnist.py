"""Measure a trained DALL·E: how good its tokens, its predictions and its pictures are. Writes a table, as JSON and as a
picture, to output/evaluation."""

import math
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from bpe import CaptionTable
from dvae import DiscreteVAE, codebook_use
from generate_mnist import DEFAULT_SAMPLING, Pipeline, add_model_flags, add_sampling_flags
from torch import Tensor
from utils.cli import ArgumentParser, add_data_flags, start
from utils.data import Images, load_digits, map_in_parts
from utils.machine import get_device
from utils.prompts import PROMPTS, draw_prompt_ids
from utils.scoring import Judge, Row, accuracy, add_evaluation_flags, draw_samples, load_scorer, write_report


def main() -> None:
    args = parse_args()
    device = get_device()
    pipeline = Pipeline.load(args.dvae_checkpoint, args.dall_e_checkpoint, device)
    train_set, test_set = load_digits(args.dataset, args.data_dir, pipeline.dvae.config.image_channels, device)
    scorer = load_scorer(train_set, args.output_dir)
    judge = Judge(scorer, train_set, test_set)
    sampling = {name: getattr(args, name) for name in DEFAULT_SAMPLING}

    image_tokens = test_set.map(pipeline.dvae.encode)
    samples = draw_samples(partial(pipeline.draw, **sampling), scorer, args.num_samples)
    plain = draw_samples(pipeline.draw, scorer, args.num_samples)
    rows = [
        *dvae_rows(pipeline.dvae, scorer, test_set, image_tokens),
        best_row(pipeline.dvae, judge, train_set.at_random(len(samples.digits))),
        *transformer_rows(pipeline, test_set.labels, image_tokens),
        *judge.real_rows(len(samples.digits)),
        *judge.sample_rows("samples", samples),
        *judge.sample_rows("plain samples", plain),
    ]
    write_report(args.output_dir, "dall_e", rows, samples, train_set, pipeline.files, sampling)


def parse_args():
    parser = ArgumentParser(__doc__)
    add_evaluation_flags(parser)
    add_sampling_flags(parser)
    add_model_flags(parser)
    add_data_flags(parser)
    return parser.parse_args()


def dvae_rows(dvae: DiscreteVAE, scorer, test_set: Images, image_tokens: Tensor) -> list[Row]:
    """What is lost between an image and its tokens, and how much of the codebook the tokens use."""
    images, labels = test_set[:]
    reconstructions = map_in_parts(dvae.decode, image_tokens)
    mse = (reconstructions - images).square().mean().item()
    use = {name: value.item() for name, value in codebook_use(image_tokens, dvae.config.codebook_size).items()}
    fraction = accuracy(scorer, reconstructions, labels)
    size = dvae.config.codebook_size
    return [
        Row("dVAE, MSE", mse, f"{mse:.4f}", "of pixels in [0, 1], on the test images"),
        Row("dVAE, PSNR", psnr := -10 * math.log10(mse), f"{psnr:.1f} dB"),
        Row("dVAE, codes used", use["codes_used"], f"{use['codes_used']}", f"of {size}, by the test images"),
        Row("dVAE, perplexity", use["perplexity"], f"{use['perplexity']:.0f}", f"of the codes, at most {size}"),
        Row("dVAE, scorer's accuracy", fraction, f"{fraction:.1%}", "on the reconstructions"),
    ]


def best_row(dvae: DiscreteVAE, judge: Judge, real: Images) -> Row:
    """What samples would get if the transformer were perfect."""
    distance = judge.frechet_distance(real.map(lambda images: dvae.decode(dvae.encode(images))))
    return Row(
        "dVAE, Fréchet distance", distance, f"{distance:.1f}", "of reconstructions: the best that samples can have"
    )


def transformer_rows(pipeline: Pipeline, labels: Tensor, image_tokens: Tensor) -> list[Row]:
    """How well the transformer predicts the tokens of the test images and their captions."""
    config = pipeline.dall_e.config
    torch.manual_seed(0)
    captions = CaptionTable(pipeline.tokenizer, PROMPTS, config.text_seq_len, labels.device).draw(
        draw_prompt_ids(labels)
    )
    losses = [
        {name: loss * len(text) for name, loss in pipeline.dall_e(text, image)[1].items()}
        for text, image in zip(captions.split(500), image_tokens.split(500))
    ]
    text, image = (sum(part[name] for part in losses).item() / len(labels) for name in ("text_loss", "image_loss"))
    bits = image * config.image_seq_len / math.log(2)
    return [
        Row("transformer, image tokens", image, f"{image:.3f}", "nats a token, on the test images"),
        Row("transformer, images", bits, f"{bits:.0f}", f"bits an image of {config.image_seq_len} tokens"),
        Row("transformer, text tokens", text, f"{text:.3f}", "nats a token, pads included"),
    ]


if __name__ == "__main__":
    start(main)
