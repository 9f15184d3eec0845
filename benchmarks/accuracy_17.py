"""How often a separately trained classifier reads the prompted digit in what DALL·E 2 draws, and how CLIP and the prior
do before it (100 images a digit)."""

import sys
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "lesson_17")]

import torch
from accelerate import PartialState
from diffusion_prior import draw_image_embed
from pipeline import DEFAULT_SAMPLING, Pipeline, add_model_flags, nearest_digit
from utils.cli import ArgumentParser, add_data_flags, run
from utils.data import load_digits
from utils.prompts import PROMPTS
from utils.scoring import accuracy, prompt_accuracy, train_classifier


def main() -> None:
    parser = ArgumentParser(__doc__)
    add_model_flags(parser)
    add_data_flags(parser)
    args = parser.parse_args()
    device = PartialState().device
    pipeline = Pipeline.load(args, device)
    train_set, test_set = load_digits(args.dataset, args.data_dir, pipeline.decoder.config.image_channels, device)

    text_embed, text_encodings = pipeline.clip.encode_prompts(PROMPTS, device)
    right = nearest_digit(pipeline.clip.encode_images(test_set), text_embed) == test_set.labels
    print(f"CLIP, zero-shot accuracy on the test images: {right.float().mean():.2%}")

    torch.manual_seed(0)
    prompt = torch.arange(len(PROMPTS), device=device).repeat_interleave(100)
    drawn = draw_image_embed(pipeline.prior, text_embed[prompt], text_encodings[prompt])
    right = nearest_digit(drawn, text_embed) == prompt // 2  # PROMPTS has two spellings of each digit
    print(f"prior, embeddings nearest to their digit's caption, of {len(prompt):,}: {right.float().mean():.2%}")

    draw = partial(pipeline.draw, **DEFAULT_SAMPLING)
    start = time.perf_counter()
    draw(["seven"] * 64, list(range(64)))
    print(f"64 images from the loaded models: {time.perf_counter() - start:.1f} s")

    print("Training the classifier ...", flush=True)
    classifier = train_classifier(train_set)
    print(f"classifier on the test images: {accuracy(classifier, *test_set[:]):.2%}")
    print(f"prompt accuracy of 1,000 samples: {prompt_accuracy(classifier, draw):.2%}")


if __name__ == "__main__":
    run(main)
