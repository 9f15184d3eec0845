"""What all the scripts share on their command lines: flags, presets, and mistakes answered in one sentence."""

import argparse
import inspect
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import get_type_hints

import torch

from utils.machine import UserError, keep_freed_memory, processes

ROOT = Path(__file__).resolve().parents[1]


def start(main) -> None:
    """Call a script's `main`, among the other processes of the run if there are any; a UserError becomes one sentence on
    stderr and exit code 2, without a traceback."""
    keep_freed_memory()
    try:
        with processes():
            main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"{error.filename or 'A file'} cannot be read or written: {error.strerror or error}.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "you tried to allocate" not in str(error):
            raise
        print("That does not fit into the memory; choose smaller sizes, or a smaller --batch_size.", file=sys.stderr)
        sys.exit(2)


def shortened(text) -> str:
    """What a user gave, as a message can repeat it: in quotes, on one line, not too long."""
    text = str(text)
    return repr(text if len(text) <= 80 else text[:77] + "...")


def arguments_for(args: argparse.Namespace, function) -> dict:
    """The arguments of a function that flags of the same names give it."""
    return {name: getattr(args, name) for name in inspect.signature(function).parameters}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """It adds the default to a flag's help, unless there is none or the help names it."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or "(default" in action.help:
            return action.help
        return super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """One that shows each flag's default in --help, and answers a wrong flag in one sentence."""

    def __init__(self, description: str, **options):
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str):
        message = " ".join(message.split())  # it repeats what was typed, whatever that is
        message = message if len(message) <= 300 else f"{message[:297]}..."
        print(f"{self.prog}: {message}; --help lists the flags.", file=sys.stderr)
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


positive_int = bounded(int, 1, 10**9)
seed_number = bounded(int, 0, 2**31 - 1)


class TrainingParser(ArgumentParser):
    """The flags of a script that trains `stages`, {stage: (model configs by preset, TrainingConfigs by preset)}: a preset,
    where to write, and a flag for each number of the configs but those that are `from_data`.

    A flag sets its number in every stage that has it.
    """

    def __init__(self, description: str, stages: dict[str, tuple[dict, dict]], output_dir: Path, from_data: set[str]):
        super().__init__(description)
        self.add_argument("--preset", choices=["small", "large", "paper"], default="small", help="sizes and steps")
        self.add_argument("--output_dir", type=Path, default=output_dir, help="where the run's files go")
        self.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the output folder")
        first_look = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
        first_look.add_argument("--preset", choices=["small", "large", "paper"], default="small")
        try:
            preset = first_look.parse_known_args()[0].preset  # whose defaults --help shows
        except argparse.ArgumentError:  # which the whole parser will answer
            preset = "small"
        self.stages, self.from_data, self.numbers = stages, from_data, {}
        for stage, config in [(stage, presets[preset]) for stage, pair in stages.items() for presets in pair]:
            kinds = get_type_hints(type(config))  # the types themselves, also where annotations are strings
            for f in fields(config):
                if f.name not in from_data and kinds[f.name] in (int, float, bool, str):
                    self.numbers.setdefault(f.name, []).append((stage, config, f, kinds[f.name]))
        for name, of_stages in self.numbers.items():
            _, config, f, kind = of_stages[0]
            defaults = {stage: getattr(config, name) for stage, config, _, _ in of_stages}
            alike = len(set(defaults.values())) == 1
            shown = getattr(config, name) if alike else ", ".join(f"{stage} {x}" for stage, x in defaults.items())
            meaning = f.metadata.get("help", f"of the model: see {type(config).__name__}")
            how = {"action": "store_true"} if kind is bool else {"type": kind, "choices": f.metadata.get("choices")}
            self.add_argument(f"--{name}", default=None, help=f"{meaning} (default: {shown})", **how)

    def configs(self, args) -> dict[str, list]:
        """{stage: [model config, TrainingConfig]}: those of the preset, with the numbers that were given. Raises
        UserError if a config will not take a number."""
        # Patches of 16 do not divide the preset's images of 28x28, but those of 32x32 that --image_size asks for.
        given = {name: getattr(args, name, None) for name in self.numbers.keys() | self.from_data}
        given = {name: value for name, value in given.items() if value is not None}

        def with_given(config):
            return replace(config, **{f.name: given[f.name] for f in fields(config) if f.name in given})

        try:
            return {
                stage: [with_given(presets[args.preset]) for presets in pair] for stage, pair in self.stages.items()
            }
        except ValueError as error:
            raise UserError(str(error)) from error
