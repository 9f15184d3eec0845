"""How often a separately trained classifier reads the prompted digit in what DALL·E draws (100 images a digit)."""

import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "lesson_08")]

from accelerate import PartialState
from generate_mnist import DEFAULT_SAMPLING, Pipeline
from utils.cli import ArgumentParser, add_data_flags, run
from utils.data import load_digits
from utils.scoring import accuracy, prompt_accuracy, train_classifier

SAMPLING = {
    "plain, temperature 1": {},
    "default": DEFAULT_SAMPLING,
}


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--dvae_checkpoint", help="(default: the newest in output/dvae)")
    parser.add_argument("--dall_e_checkpoint", help="(default: the newest in output/dall_e)")
    add_data_flags(parser)
    args = parser.parse_args()
    device = PartialState().device
    pipeline = Pipeline.load(args.dvae_checkpoint, args.dall_e_checkpoint, device)
    train_set, test_set = load_digits(args.dataset, args.data_dir, pipeline.dvae.config.image_channels, device)
    print("Training the classifier ...", flush=True)
    classifier = train_classifier(train_set)
    images, labels = test_set[:]
    print(f"classifier on the test images: {accuracy(classifier, images, labels):.2%}")
    reconstructions = test_set.map(lambda images: pipeline.dvae.decode(pipeline.dvae.encode(images)))
    print(f"dVAE on the test images: MSE {(reconstructions - images).square().mean():.5f}")
    print(f"classifier on their reconstructions: {accuracy(classifier, reconstructions, labels):.2%}")
    for name, sampling in SAMPLING.items():
        share = prompt_accuracy(classifier, partial(pipeline.draw, **sampling))
        print(f"prompt accuracy of 1,000 samples, {name}: {share:.2%}")


if __name__ == "__main__":
    run(main)
