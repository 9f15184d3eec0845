"""Checkpoints: containers and tensors in one file, written whole or not at all; the included ones are safetensors."""

import hashlib
import json
import os
import re
from dataclasses import fields
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
    """Write to a temporary file, then rename it: a reader finds the old file or the new one. Raises OSError."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except RuntimeError as error:  # torch's word for a disk that is full
        raise OSError(None, str(error).splitlines()[0], str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def existing(given: str, exists, kind: str) -> Path:
    """The path `given`, from the working directory or else from the root. Raises UserError if it is at neither."""
    for path in (Path(given), ROOT / given):
        if exists(path):
            return path
    raise UserError(f"There is no {kind.format(shortened(given))}.")


def models_folder(given: str | None) -> Path:
    """The folder `given`, which holds models in a folder each, or output/. Raises UserError if it does not exist."""
    return existing(given, os.path.isdir, "folder {} of models") if given else ROOT / "output"


def find_checkpoint(given: str | None, name: str, models: Path = ROOT / "output") -> Path | None:
    """The file `given`, a checkpoint of the model `name`; for None the newest in MODELS/NAME, printed, or None if there
    is none. Raises UserError if the given file does not exist."""
    if given is not None:
        return existing(given, os.path.isfile, f"checkpoint {{}}; without the flag, the newest {name} is taken")
    path = newest_checkpoint(models / name, name)
    if path is not None:
        say(f"Taking the newest {name} checkpoint, {path}")
    return path


def find_checkpoints(
    given: dict[str, str | None], models: str | None, folder: Path, pretrained: str | None
) -> dict[str, Path]:
    """The files of models used together, {name: file}: `given`, for None the newest in the folder `models` or output/;
    the included ones in `folder` for `pretrained`, or if nothing is given or trained. Raises UserError if one does not
    exist, or if more than `pretrained` is given."""
    if pretrained and (models or any(given.values())):
        raise UserError("--pretrained takes the place of naming models; give one of the two.")
    if not pretrained:
        where = models_folder(models)
        files = {name: find_checkpoint(file, name, where) for name, file in given.items()}
        missing = [name for name, file in files.items() if file is None]
        if not missing:
            return files
        if models or len(missing) < len(files):
            how = f"train it, name one with --{missing[0]}_checkpoint, or pass --pretrained mnist"
            raise UserError(f"There is no {missing[0]} checkpoint in {where / missing[0]}; {how}.")
        pretrained = PRETRAINED[0]
        say(f"There is no {' or '.join(given)} checkpoint in output/; taking the included ones, {folder / pretrained}")
    files = {name: folder / pretrained / f"{name}.safetensors" for name in given}
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
    """Move what an earlier run of the model `name` wrote to FOLDER/earlier-1, or -2, ..., so that nothing is lost."""
    files = [*checkpoints_in(folder, name).values(), *folder.glob("sample*-*.*"), *folder.glob("*metrics.csv")]
    files += folder.glob("loss.png")
    if any(file.stat().st_size for file in files):
        number = 1
        while (aside := folder / f"earlier-{number}").exists():
            number += 1
        aside.mkdir()
        for file in files:
            file.rename(aside / file.name)
        say(f"What an earlier run wrote is now in {aside}; with --resume this one would have gone on from it.")


def differences(checkpoint: dict, identity: dict, config_class: type) -> list[str]:
    """How the training of a checkpoint differs from another one's identity, a phrase each. A field that its config does not
    have yet had what is the default now."""
    defaults = {f.name: f.default for f in fields(config_class)}
    checkpoint = {**checkpoint, "config": {**defaults, **checkpoint["config"]}}

    def facts(of: dict) -> dict:
        facts = {**of["config"], "number of images": of["num_images"], "tokenizer": of["tokenizer"]}
        facts |= {name: value for name, value in of["training"].items() if name not in MAY_CHANGE}
        facts |= {f"{name} of the data": value for name, value in of["data"].items()}
        return facts | {f"the {name} it learned from": source["fingerprint"] for name, source in of["sources"].items()}

    was, now = facts(checkpoint), facts(identity)
    different = [name for name in now | was if was.get(name) != now.get(name)]
    return [f"{name} was {shortened(was.get(name))} and is {shortened(now.get(name))}" for name in different]


def restore(checkpoint: dict, model: nn.Module, averaged: nn.Module | None, optimizers: list) -> None:
    """Load a checkpoint's weights, their averages and the states of the optimizers."""
    model.load_state_dict(checkpoint["model"])
    if averaged is not None:
        averaged.module.load_state_dict(checkpoint["ema"])
        averaged.n_averaged.fill_(checkpoint["step"])
    for optimizer, state in zip(optimizers, checkpoint["optimizers"], strict=True):
        optimizer.load_state_dict(state)


def load_checkpoint(path: Path, name: str | None = None) -> dict:
    """The checkpoint of the model `name`, or any for None: CONTENTS, on the CPU; no code in the file is run. Raises
    UserError if the file is broken or holds something else."""
    path = Path(path)
    try:
        exported = path.suffix == ".safetensors"
        checkpoint = read_exported(path) if exported else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file provokes
        raise UserError(f"{path} is not a checkpoint that can be read; it may be broken or half-written.") from error
    if not isinstance(checkpoint, dict) or "name" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of this project, or of an older version of it.")
    if name and checkpoint["name"] != name:
        raise UserError(f"{path} is a {shortened(checkpoint['name'])} checkpoint; a {name} checkpoint is needed here.")
    if missing := CONTENTS - checkpoint.keys():
        raise UserError(f"{path} is of another version, without {', '.join(sorted(missing))}; train anew.")
    return checkpoint


def read_exported(path: Path) -> dict:
    """Weights in half precision, with all else as JSON in the file's header (utils/export.py writes them)."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        others = json.loads((file.metadata() or {}).get("checkpoint", "{}"))
        weights = {name: file.get_tensor(name).float() for name in file.keys()}
    return {**others, "model": weights, "ema": None, "optimizers": []}


def load_model(checkpoint: dict, model_class, config_class):
    """The model of a checkpoint, with averaged weights if it has them, frozen. Raises UserError if they misfit."""
    try:
        model = model_class(config_class(**checkpoint["config"]))
        model.load_state_dict(weights_of(checkpoint))
    except Exception as error:  # whatever a config or weights of another version provoke
        raise UserError(f"The {checkpoint['name']} checkpoint is broken, or of another version; train anew.") from error
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
