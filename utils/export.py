"""Make the included weights from checkpoints: safetensors in half precision, with all that the model needs to be used.

For a lesson and a data set, name the checkpoints of all of its models in one command, those that others learned from first:
the models that learned another one's tokens or embeddings then know it by its rounded weights.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.checkpoints import find_checkpoint, fingerprint, load_checkpoint, weights_of
from utils.cli import ROOT, ArgumentParser, UserError, start


def main() -> None:
    args = parse_args()
    exported = {}  # {fingerprint of a model's own weights: what models that learned from it are told of the rounded ones}
    for given in args.checkpoints:
        checkpoint = load_checkpoint(find_checkpoint(given, "model's"))
        sources = checkpoint["sources"]
        for source in sources.values():
            if source["file"].endswith(".safetensors"):  # included weights, which stay as they are
                exported[source["fingerprint"]] = {"file": os.path.relpath(source["file"], ROOT)}
            if source["fingerprint"] not in exported and not source.get("pretrained"):
                raise UserError(f"{given} learned from {source['file']}; name that one before it.")
        sources = {kind: source | exported.get(source["fingerprint"], {}) for kind, source in sources.items()}
        path = args.folder / f"{checkpoint['name']}.safetensors"
        rounded = export_checkpoint({**checkpoint, "sources": sources}, path)
        own = fingerprint(weights_of(checkpoint))
        exported[own] = {"file": os.path.relpath(path, ROOT), "fingerprint": rounded}
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def export_checkpoint(checkpoint: dict, path: Path) -> str:
    """Write a checkpoint to `path` as safetensors: the weights in half precision, averaged ones where it has them, and
    all else but the optimizers' state as JSON in the file's header. load_checkpoint() reads it. Returns the fingerprint
    of the model that is read from it, which is another one, as its weights are rounded."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    weights = {name: tensor.half().contiguous() for name, tensor in weights_of(checkpoint).items()}
    others = {key: value for key, value in checkpoint.items() if key not in ("model", "ema", "optimizers")}
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file(weights, path, {"checkpoint": json.dumps(others)})
    except SafetensorError as error:  # its word for a disk that is full
        raise OSError(None, str(error), str(path)) from error
    path.chmod(0o644)
    return fingerprint({name: tensor.float() for name, tensor in weights.items()})


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("folder", type=Path, help="such as lesson_08/pretrained/mnist")
    parser.add_argument("checkpoints", nargs="+", help="such as output/dvae/dvae-1400.pt output/dall_e/dall_e-2400.pt")
    return parser.parse_args()


if __name__ == "__main__":
    start(main)
