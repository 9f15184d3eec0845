"""Checkpoints: plain containers and tensors in one file, written whole or not at all. The trained weights that come with a
lesson are checkpoints without what only a training needs, as safetensors."""

import hashlib
import json
import os
import re
import warnings
from pathlib import Path

import torch
from torch import nn

from utils.cli import ROOT, UserError, shortened
from utils.machine import say

PRETRAINED = ("mnist", "colored_mnist")  # data sets whose trained weights are included
CONTENTS = set("name config training num_images data tokenizer sources step held_out model ema optimizers".split())
# What of a TrainingConfig another may have that goes on from a checkpoint.
MAY_CHANGE = set("num_training_steps save_every sample_every seed mixed_precision compile num_threads".split())


def save_checkpoint(path: Path, checkpoint: dict) -> None:
    """Write `checkpoint` to `path` such that a reader finds the old file or the new one, never half of either. Raises
    OSError if it cannot be written."""
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
    with None, the newest in MODELS/NAME, named on the screen, or None if there is none. Raises UserError if the file
    that was given does not exist."""
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
    """The files of models that are used together, {name: file}: `given`, for None the newest ones in the folder
    `models`, or in output/. If that has none at all, they are the included ones for MNIST, in `folder`; with
    `pretrained`, those for that data set. Raises UserError if one of them does not exist, or `pretrained` is not all
    that is given."""
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
    """The NAME-STEP.pt of most steps in a folder; the times of files do not survive every copy."""
    return next(reversed(checkpoints_in(folder, name).values()), None)


def last_good(folder: Path, name: str) -> str:
    """A sentence on what a run that failed has left."""
    path = newest_checkpoint(folder, name)
    return "There is no checkpoint yet." if path is None else f"The last good checkpoint is {path}."


def move_aside(folder: Path, name: str) -> None:
    """Move what an earlier run of the model `name` has written to a folder within its own, so that nothing is lost."""
    files = [*checkpoints_in(folder, name).values(), *folder.glob("sample*-*.*"), *folder.glob("*metrics.csv")]
    files += folder.glob("loss.png")
    if any(file.stat().st_size for file in files):
        numbers = [
            int(path.name.removeprefix("earlier-")) for path in folder.glob("earlier-*") if path.name[8:].isdigit()
        ]
        aside = folder / f"earlier-{max(numbers, default=0) + 1}"
        aside.mkdir()
        for file in files:
            file.rename(aside / file.name)
        say(f"What an earlier run wrote is now in {aside}; with --resume this one would have gone on from it.")


def differences(checkpoint: dict, identity: dict) -> list[str]:
    """What the training of a checkpoint has otherwise than another that is described like it, a phrase each."""

    def facts(of: dict) -> dict:
        training = {name: value for name, value in of["training"].items() if name not in MAY_CHANGE}
        data = {f"{name} of the data": value for name, value in of["data"].items()}
        sources = {f"the {name} it learned from": source["fingerprint"] for name, source in of["sources"].items()}
        others = {"number of images": of["num_images"], "tokenizer": of["tokenizer"]}
        return {**of["config"], **training, **data, **sources, **others}

    was, now = facts(checkpoint), facts(identity)
    different = [name for name in now | was if was.get(name) != now.get(name)]
    return [f"{name} was {shortened(was.get(name))} and is {shortened(now.get(name))}" for name in different]


def restore(checkpoint: dict, model: nn.Module, averaged: nn.Module | None, optimizers: list) -> None:
    """Put a checkpoint's weights, their averages and the states of the optimizers in their places."""
    model.load_state_dict(checkpoint["model"])
    if averaged is not None:
        averaged.module.load_state_dict(checkpoint["ema"])
        averaged.n_averaged.fill_(checkpoint["step"])
    for optimizer, state in zip(optimizers, checkpoint["optimizers"], strict=True):
        optimizer.load_state_dict(state)


def load_checkpoint(path: Path, name: str | None = None) -> dict:
    """The checkpoint of the model `name`, or any for None, in `path`: CONTENTS, on the CPU; only containers and tensors
    are read, never code. Raises UserError if the file is broken or holds something else."""
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


def read_exported(path: Path) -> dict:
    """Weights in half precision, with all else as JSON in the file's header (utils/export.py writes them)."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        others = json.loads((file.metadata() or {}).get("checkpoint", "{}"))
        weights = {name: file.get_tensor(name).float() for name in file.keys()}
    return {**others, "model": weights, "ema": None, "optimizers": []}


def load_model(checkpoint: dict, model_class, config_class):
    """The model of a checkpoint, ready to use: its averaged (EMA) weights where it has them, evaluation mode, frozen.
    Raises UserError if the weights do not fit the model."""
    try:
        model = model_class(config_class(**checkpoint["config"]))
        model.load_state_dict(weights_of(checkpoint))
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError, ArithmeticError) as error:
        raise UserError(
            f"The {checkpoint['name']} checkpoint is broken, or of another version of this project; train anew."
        ) from error
    return model.eval().requires_grad_(False)


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
