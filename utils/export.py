"""Make the weights that come along from checkpoints: safetensors in half precision, with all that the model needs to be used.

For a lesson and a data set, name the checkpoints of all of its models in one command, those that others learned from first:
the models that learned another one's tokens or embeddings then know it by its rounded weights.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.checkpoints import export_checkpoint, find_checkpoint, fingerprint, load_checkpoint, weights_of
from utils.cli import ROOT, ArgumentParser, start


def main() -> None:
    args = parse_args()
    exported = {}  # {fingerprint of a model's own weights: what models that learned from it are told of the rounded ones}
    for given in args.checkpoints:
        name = Path(given).stem.rpartition("-")[0]
        checkpoint = load_checkpoint(find_checkpoint(given, name), name)
        path = args.folder / f"{name}.safetensors"
        sources = {
            kind: {**source, **exported.get(source["fingerprint"], {})}
            for kind, source in checkpoint["sources"].items()
        }
        export_checkpoint({**checkpoint, "sources": sources}, path)
        rounded = fingerprint({key: weights.half().float() for key, weights in weights_of(checkpoint).items()})
        file = path.resolve()
        source = {"file": str(file.relative_to(ROOT) if file.is_relative_to(ROOT) else path), "fingerprint": rounded}
        exported[fingerprint(weights_of(checkpoint))] = source
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("folder", type=Path, help="such as lesson_08/pretrained/mnist")
    parser.add_argument("checkpoints", nargs="+", help="such as output/dvae/dvae-2200.pt output/dall_e/dall_e-1600.pt")
    return parser.parse_args()


if __name__ == "__main__":
    start(main)
