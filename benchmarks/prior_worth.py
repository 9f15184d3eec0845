"""What the prior of lesson 17 is worth (DALL·E 2, section 5.1): the decoder is given an image embedding from different sources,
with and without the caption, and what it draws is measured. Writes prior_worth.csv.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
import torch.nn.functional as F
from lesson_17.diffusion import guided
from lesson_17.diffusion_decoder import decode_image_embed
from lesson_17.diffusion_prior import draw_image_embed
from lesson_17.pipeline import Pipeline, add_model_flags
from torch import Tensor
from utils.cli import ArgumentParser, arguments_for, start
from utils.data import map_in_chunks
from utils.datasets import add_data_flags, data_source, load_images
from utils.samples import SeededNoise
from utils.scoring import Judge, add_evaluation_flags, check_digits
from utils.tables import write_rows


ETA = 1.0  # without guidance, all of the fresh noise has the most right


def main() -> None:
    args = parse_args()
    pipeline = Pipeline.load(**arguments_for(args, Pipeline.load))
    train_set, test_set, source = load_images(data_source(args, pipeline.data), args.data_dir, pipeline.device)
    check_digits(source, "prior_worth.py")
    judge = Judge(source, train_set, test_set)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    # The last group of prompts: in color, those of pairs never seen.
    asked = judge.draw(lambda prompts, seeds: torch.zeros(len(prompts), 0), args.num_samples).groups
    prompts = list(asked.values())[-1]
    text_embed, text_encodings = pipeline.clip.encode_prompts(prompts, pipeline.device)
    c, seeds, rows = pipeline.decoder.config, list(range(len(prompts))), []
    for name, z_i in embeddings(pipeline, prompts, text_embed, text_encodings, train_set, test_set).items():
        for caption in (False, True):

            def draw(z_i: Tensor, encodings: Tensor, seeds: list[int], caption=caption) -> Tensor:
                randn = SeededNoise(seeds).randn
                x_T = randn((len(z_i), c.image_channels, c.image_size, c.image_size)).to(z_i)
                how = {"eta": ETA, "randn": randn}
                return decode_image_embed(pipeline.decoder, z_i, encodings if caption else None, x_T, **how)

            images = map_in_chunks(draw, z_i, text_encodings, seeds, batch_size=128)
            right = torch.stack(list(judge.right(images, prompts).values())).all(dim=0).float().mean().item()
            frechet_distance, diversity = judge.closeness(images, prompts)
            row = {"embedding": name, "caption": caption, "accuracy": right}
            rows.append({**row, "frechet_distance": frechet_distance, "diversity": diversity})
            print(
                f"{name}, caption {caption}: {right:.1%}, Fréchet {frechet_distance:.1f}, {diversity:.2f}", flush=True
            )
    write_rows(args.output_dir / f"prior_worth_{source.dataset}.csv", rows)


def embeddings(pipeline: Pipeline, prompts: list[str], text_embed: Tensor, text_encodings: Tensor, train_set, test_set):
    """{source: image embeddings (B, E)} for B prompts."""
    prior, seeds = pipeline.prior, list(range(len(prompts)))
    one = SeededNoise(seeds).randn(text_embed.shape).to(text_embed)
    network = guided(prior, 1.0, text_embed, text_encodings)
    # Test images: of pairs that were never seen, there are no others.
    of_images = pipeline.clip.encode_images(test_set)
    showing = {prompt: test_set.index_of(prompt) for prompt in dict.fromkeys(prompts)}
    mean = {prompt: F.normalize(of_images[index].mean(dim=0), dim=-1) for prompt, index in showing.items()}
    real = [showing[prompt][seed % len(showing[prompt])] for prompt, seed in zip(prompts, seeds)]
    return {
        "none": pipeline.decoder.null_image_embed.expand_as(text_embed),
        "the caption's z_t": text_embed,
        "mean of the caption's test images": torch.stack([mean[prompt] for prompt in prompts]),
        "the prior's, one draw": prior.unscale(prior.diffusion.sample(network, one, 20)),
        "the prior's, the better of two": draw_image_embed(
            prior, text_embed, text_encodings, randn=SeededNoise(seeds).randn
        ),
        "the prior's, 100 steps": draw_image_embed(
            prior, text_embed, text_encodings, num_steps=100, randn=SeededNoise(seeds).randn
        ),
        "a real image's": of_images[torch.stack(real)],
    }


def parse_args():
    parser = ArgumentParser(__doc__)
    add_evaluation_flags(parser)
    add_model_flags(parser)
    add_data_flags(parser)
    return parser.parse_args()


if __name__ == "__main__":
    start(main)
