"""Checkpoints: plain containers and tensors in one file, written whole or not at all; and the trained weights that come with
a lesson, which are checkpoints without what only a training needs.
"""

import hashlib
import json
import os
import re
import warnings
from pathlib import Path

import torch

from utils.cli import ROOT, UserError, shortened
from utils.machine import say

PRETRAINED = ("mnist", "colored_mnist")  # data sets whose trained weights are included
MODELS_HELP = "holds the models, each in a folder of its own, of which the newest is taken (default: output)"
PRETRAINED_HELP = (
    "take the included weights for this data set, and no checkpoints (default: mnist, if nothing is trained)"
)
CONTENTS = {
    "name",
    "config",
    "training",
    "num_images",
    "step",
    "held_out",
    "model",
    "ema",
    "optimizers",
    "data",
    "tokenizer",
    "sources",
}


def save_checkpoint(path: Path, checkpoint: dict) -> None:
    """Write `checkpoint` to `path` such that a reader finds the old file or the new one, never half of either.

    Raises OSError if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError):  # torch's word for a disk that is full
            raise OSError(str(error).splitlines()[0]) from error
        raise


def models_folder(given: str | None) -> Path:
    """The folder that holds models, each in a folder of its own: `given`, from the working directory or else the repository's
    root; output/ for None. Raises UserError if there is none."""
    if given is None:
        return ROOT / "output"
    for path in (Path(given), ROOT / given):
        if path.is_dir():
            return path
    raise UserError(f"There is no folder {shortened(given)} of models.")


def find_checkpoint(given: str | None, name: str, models: Path = ROOT / "output") -> Path | None:
    """The file of a checkpoint of the model `name`: `given`, from the working directory or else the repository's root;
    with None, the newest in MODELS/NAME, named on the screen, or None if there is none.

    Raises UserError if the file that was given does not exist.
    """
    if given is None:
        path = newest_checkpoint(models / name, name)
        if path is not None:
            say(f"Taking the newest {name} checkpoint, {path}")
        return path
    for path in (Path(given), ROOT / given):
        if os.path.isfile(path):  # also of a name that no file can have
            return path
    raise UserError(
        f"There is no checkpoint {shortened(given)}; leave the flag out to take the newest {name} checkpoint."
    )


def find_checkpoints(
    given: dict[str, str | None], models: str | None, folder: Path, pretrained: str | None
) -> dict[str, Path]:
    """The files of models that are used together, {name: file}: `given`, for None the newest ones in the folder `models`, or
    in output/. If that has none at all, they are the included ones for MNIST, in `folder`; with `pretrained`, those for that
    data set.

    Raises UserError if one of them does not exist, or `pretrained` is not all that is given.
    """
    if pretrained and (models or any(given.values())):
        raise UserError("--pretrained takes the place of naming models; give one of the two.")
    where = models_folder(models)
    files = {} if pretrained else {name: find_checkpoint(file, name, where) for name, file in given.items()}
    missing = [name for name in given if files.get(name) is None]
    if not missing:
        return files
    if models or len(missing) < len(given):
        raise UserError(
            f"There is no {missing[0]} checkpoint in {where / missing[0]}; train it, name one with --{missing[0]}_checkpoint, "
            f"or pass --pretrained mnist."
        )
    included = folder / (pretrained or PRETRAINED[0])
    if not pretrained:
        say(f"There is no {' or '.join(given)} checkpoint in output/; taking the included weights, {included}")
    files = {name: included / f"{name}.safetensors" for name in given}
    for file in files.values():
        if not file.exists():
            raise UserError(f"{file} belongs to the repository and is missing; clone the repository again, or train.")
    return files


def checkpoints_in(folder: Path, name: str) -> dict[int, Path]:
    """The files NAME-STEP.pt of a folder by their steps, the fewest first."""
    matches = {path: re.fullmatch(rf"{name}-(\d+)\.pt", path.name) for path in folder.glob(f"{name}-*.pt")}
    return dict(sorted((int(match[1]), path) for path, match in matches.items() if match))


def newest_checkpoint(folder: Path, name: str) -> Path | None:
    """The most recently written NAME-STEP.pt of a folder, the one of more steps if two are of the same moment."""
    steps = checkpoints_in(folder, name)
    return max(steps.items(), key=lambda item: (item[1].stat().st_mtime, item[0]), default=(None, None))[1]


def load_checkpoint(path: Path, name: str | None = None) -> dict:
    """The checkpoint of the model `name`, or any for None, in `path`: CONTENTS, on the CPU; only containers and tensors are
    read, never code.

    Raises UserError if the file is broken or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            checkpoint = read_exported(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a broken file is answered below
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file provokes: the answer is the same
        raise UserError(f"{path} is not a checkpoint that can be read; it may be broken or half-written.") from error
    if not isinstance(checkpoint, dict) or "name" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of this project, or of an older version of it.")
    if name and checkpoint["name"] != name:
        raise UserError(f"{path} is a {shortened(checkpoint['name'])} checkpoint; a {name} checkpoint is needed here.")
    missing = CONTENTS - checkpoint.keys()
    if missing:
        raise UserError(
            f"{path} is of another version of this project, without {', '.join(sorted(missing))}; train anew."
        )
    return checkpoint


def load_model(checkpoint: dict, model_class, config_class):
    """The model of a checkpoint, ready to use: its averaged (EMA) weights where it has them, evaluation mode, frozen.

    Raises UserError if the weights do not fit the model.
    """
    try:
        model = model_class(config_class(**checkpoint["config"]))
        model.load_state_dict(weights_of(checkpoint))
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError, ArithmeticError) as error:
        raise UserError(
            f"The {checkpoint['name']} checkpoint is broken, or of another version of this project; train anew."
        ) from error
    return model.eval().requires_grad_(False)


def export_checkpoint(checkpoint: dict, path: Path) -> str:
    """Write a checkpoint to `path` as safetensors: the weights in half precision, averaged ones where it has them, and all
    else but the optimizers' state as JSON in the file's header. load_checkpoint() reads it.

    Returns the fingerprint of the model that is read from it, which is another one, as its weights are rounded.
    """
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


def read_exported(path: Path) -> dict:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        others = json.loads((file.metadata() or {}).get("checkpoint", "{}"))
        weights = {name: file.get_tensor(name).float() for name in file.keys()}
    return {**others, "model": weights, "ema": None, "optimizers": []}


def weights_of(checkpoint: dict) -> dict[str, torch.Tensor]:
    """The weights to use, averaged ones where it has them."""
    return {**checkpoint["model"], **(checkpoint["ema"] or {})}


def fingerprint(weights: dict[str, torch.Tensor]) -> str:
    """A short hash of a model's state dict: tokens and embeddings mean something only to the model that made them."""
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
