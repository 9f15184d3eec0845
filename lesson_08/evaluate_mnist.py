"""Measure a trained DALL·E: how good its tokens, its predictions and its pictures are. Writes a table, as JSON and as a
picture, to output/evaluation."""

import math
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from lesson_08.dvae import DiscreteVAE, codebook_use
from lesson_08.pipeline import DEFAULT_SAMPLING, Pipeline, add_model_flags, add_sampling_flags
from torch import Tensor
from utils.bpe import CaptionTable
from utils.cli import ArgumentParser, arguments_for, start
from utils.data import CaptionedImages, map_in_chunks
from utils.datasets import add_data_flags, data_source, load_images
from utils.machine import Threads
from utils.scoring import Judge, Row, at_random, add_evaluation_flags, write_report


def main() -> None:
    args = parse_args()
    pipeline = Pipeline.load(**arguments_for(args, Pipeline.load))
    Threads().choose()
    train_set, test_set, source = load_images(data_source(args, pipeline.data), args.data_dir, pipeline.device)
    judge = Judge(source, train_set, test_set)
    sampling = {name: getattr(args, name) for name in DEFAULT_SAMPLING}

    image_tokens = test_set.map(pipeline.dvae.encode)
    samples = judge.draw(partial(pipeline.draw, **sampling), args.num_samples)
    plain = judge.draw(pipeline.draw, args.num_samples)
    rows = [
        *dvae_rows(pipeline.dvae, judge, image_tokens, len(samples.images)),
        *transformer_rows(pipeline, test_set, image_tokens),
        *judge.real_rows(len(samples.images)),
        *judge.sample_rows("samples", samples),
        *judge.sample_rows("plain samples", plain),
    ]
    write_report(args.output_dir, "dall_e", rows, samples, judge, pipeline.files, sampling)


def parse_args():
    parser = ArgumentParser(__doc__)
    add_evaluation_flags(parser)
    add_sampling_flags(parser)
    add_model_flags(parser)
    add_data_flags(parser)
    return parser.parse_args()


def dvae_rows(dvae: DiscreteVAE, judge: Judge, image_tokens: Tensor, num_samples: int) -> list[Row]:
    """What is lost between an image and its tokens, how much of the codebook the tokens use, and, of digits, what
    `num_samples` samples would get if the transformer were perfect."""
    test_set, size = judge.test_set, dvae.config.codebook_size
    reconstructions = map_in_chunks(dvae.decode, image_tokens)
    index = torch.arange(len(test_set))
    errors = map_in_chunks(
        lambda i, x: (test_set.images(i) - x).square().flatten(1).mean(dim=1), index, reconstructions
    )
    mse = errors.mean().item()
    psnr = -10 * math.log10(mse)
    use = {name: value.item() for name, value in codebook_use(image_tokens, size).items()}
    rows = [
        Row("dVAE, MSE", mse, f"{mse:.4f}", "of pixels in [0, 1], on the test images"),
        Row("dVAE, PSNR", psnr, f"{psnr:.1f} dB"),
        Row("dVAE, codes used", use["codes_used"], f"{use['codes_used']}", f"of {size}, by the test images"),
        Row("dVAE, perplexity", use["perplexity"], f"{use['perplexity']:.0f}", f"of the codes, at most {size}"),
    ]
    if judge.reader:
        fraction = (judge.reader.read(reconstructions)["digit"] == judge.test_digits).float().mean().item()
        best = at_random(judge.train_set, num_samples).map(lambda images: dvae.decode(dvae.encode(images)))
        distance = judge.frechet_distance(best)
        rows += [
            Row("dVAE, scorer's accuracy", fraction, f"{fraction:.1%}", "on the reconstructions"),
            Row("dVAE, Fréchet distance", distance, f"{distance:.1f}", "of training images' reconstructions"),
        ]
    return rows


def transformer_rows(pipeline: Pipeline, test_set: CaptionedImages, image_tokens: Tensor) -> list[Row]:
    """How well the transformer predicts the tokens of the test images and their captions."""
    config = pipeline.dall_e.config
    torch.manual_seed(0)
    table = CaptionTable(pipeline.tokenizer, test_set.captions, config.text_seq_len, test_set.device)
    captions = table.draw(test_set.draw_captions())
    losses = [
        {name: loss * len(text) for name, loss in pipeline.dall_e(text, image)[1].items()}
        for text, image in zip(captions.split(500), image_tokens.split(500))
    ]
    text, image = (sum(part[name] for part in losses).item() / len(test_set) for name in ("text_loss", "image_loss"))
    bits = image * config.image_seq_len / math.log(2)
    return [
        Row("transformer, image tokens", image, f"{image:.3f}", "nats a token, on the test images"),
        Row("transformer, images", bits, f"{bits:.0f}", f"bits an image of {config.image_seq_len} tokens"),
        Row("transformer, text tokens", text, f"{text:.3f}", "nats a token, pads included"),
    ]


if __name__ == "__main__":
    start(main)
