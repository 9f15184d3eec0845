"""What all the scripts share on their command lines: flags, presets, and mistakes answered in one sentence."""

import argparse
import inspect
import io
import os
import re
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import get_type_hints

from utils.machine import UserError, keep_freed_memory, processes

ROOT = Path(__file__).resolve().parents[1]


def start(main) -> None:
    """Call a script's `main` in each process of the run. A UserError, a file that cannot be read or written, and too
    little memory become one sentence on stderr and exit code 2."""
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # on a console of few letters, question marks in place of an error
            stream.reconfigure(errors="replace")
    try:
        with processes():
            return main()
    except UserError as error:
        message = error
    except OSError as error:
        message = f"{error.filename or 'A file'} cannot be read or written: {error.strerror or error}."
    except KeyboardInterrupt:
        sys.exit(130)
    except (MemoryError, RuntimeError) as error:
        message = "That does not fit into the memory; choose smaller sizes, or a smaller --batch_size."
        if re.search("(no working|failed to find).* compiler", str(error), re.IGNORECASE):
            message = "--compile needs a C++ compiler, and there is none that works; leave it out, or install one."
        elif isinstance(error, RuntimeError) and "tried to allocate" not in str(error).lower():
            raise
    print(message, file=sys.stderr)
    sys.exit(2)


def shortened(text) -> str:
    """What a user gave, for a message: in quotes, on one line, not too long."""
    text = str(text)
    return repr(text if len(text) <= 80 else text[:77] + "...")


def arguments_for(args: argparse.Namespace, function) -> dict:
    """The arguments of a function, from the flags of the same names."""
    return {name: getattr(args, name) for name in inspect.signature(function).parameters}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to a flag's help, unless there is none or the help names it."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or "(default" in action.help:
            return action.help
        return super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """Shows each flag's default in --help, and answers a wrong flag in one sentence."""

    def __init__(self, description: str, **options):
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str):
        message = " ".join(message.split())  # it repeats what was typed, whatever that is
        print(f"{self.prog}: {message[:300]}; --help lists the flags.", file=sys.stderr)
        sys.exit(2)


def bounded(number_type: type, low: float, high: float = float("inf")):
    """An argparse type: a finite int or float in [low, high]."""

    def parse(text: str):
        value = number_type(text)
        if not low <= value <= high or value == float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not in [{low:g}, {high:g}]")
        return value

    parse.__name__ = "whole number" if number_type is int else "number"
    return parse


def new_folder(text: str) -> Path:
    """An argparse type: a folder that is there or can be made, so that what takes minutes is not done in vain."""
    path = Path(text)
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise argparse.ArgumentTypeError(f"{shortened(there)} is no folder that can be written")
    return path


positive_int = bounded(int, 1, 10**9)
seed_number = bounded(int, 0, 2**31 - 1)


class TrainingParser(ArgumentParser):
    """The flags of a script that trains `stages`, {stage: (model configs by preset, TrainingConfigs by preset)}: a
    preset, where to write, and for each number of the configs, but those `from_data`, a flag for all stages."""

    def __init__(self, description: str, stages: dict[str, tuple[dict, dict]], output_dir: Path, from_data: set[str]):
        super().__init__(description)
        self.add_argument("--preset", choices=["small", "large", "paper"], default="small", help="sizes and steps")
        self.add_argument("--output_dir", type=Path, default=output_dir, help="where the run's files go")
        self.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the output folder")
        asked = re.search(r"--preset[ =](large|paper)", " ".join(sys.argv))
        preset = asked[1] if asked else "small"  # whose defaults --help shows
        self.stages, self.from_data, self.defaults = stages, from_data, {}  # {name: {stage: default}}
        flags = {}
        for stage, config in [(stage, presets[preset]) for stage, pair in stages.items() for presets in pair]:
            kinds = get_type_hints(type(config))  # the types themselves, also where annotations are strings
            for f in fields(config):
                if f.name not in from_data and kinds[f.name] in (int, float, bool, str):
                    flags.setdefault(f.name, (kinds[f.name], f.metadata, type(config).__name__))
                    self.defaults.setdefault(f.name, {})[stage] = getattr(config, f.name)
        for name, (kind, metadata, config_name) in flags.items():
            defaults = self.defaults[name]
            shown = ", ".join(f"{stage} {value}" for stage, value in defaults.items())
            if len(set(defaults.values())) == 1:
                shown = next(iter(defaults.values()))
            meaning = metadata.get("help", f"of the model: see {config_name}")
            how = (
                {"action": argparse.BooleanOptionalAction}
                if kind is bool
                else {"type": kind, "choices": metadata.get("choices")}
            )
            self.add_argument(f"--{name}", default=None, help=f"{meaning} (default: {shown})", **how)

    def configs(self, args) -> dict[str, list]:
        """{stage: [model config, TrainingConfig]} of the preset, with the given numbers set all at once, as one may
        fit only with another. Raises UserError if a config refuses one."""
        given = {name: getattr(args, name, None) for name in self.defaults.keys() | self.from_data}

        def with_given(config):
            return replace(config, **{f.name: given[f.name] for f in fields(config) if given.get(f.name) is not None})

        try:
            return {
                stage: [with_given(presets[args.preset]) for presets in pair] for stage, pair in self.stages.items()
            }
        except ValueError as error:
            raise UserError(str(error)) from error
