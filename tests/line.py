"""The smallest training there is, for tests of the frame of a run; as a script, `python line.py FOLDER [NAME=VALUE ...]`."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from utils.cli import start
from utils.optimizers import Muon
from utils.run import Run
from utils.training import TrainingConfig, build_model


@dataclass
class LineConfig:
    width: int = 3
    slope: int = 2  # no weight has a shape by it


class Line(nn.Module):
    """The smallest model with a config: w x + b is fitted to slope x, with noise that the random state decides."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.layer = nn.Linear(config.width, config.width)

    def forward(self, x):
        return (self.layer(x + torch.randn_like(x)) - self.config.slope * x).square().mean()


def make_line(total=12, muon=True, **numbers):
    """The model, its optimizers, and its TrainingConfig."""
    numbers = {"warmup_steps": 2, "ema_decay": 0.9, "save_every": 7, "sample_every": 5, "seed": 3, **numbers}
    numbers = {"batch_size": 4, "learning_rate": 0.1, **numbers}
    config = LineConfig(**{name: numbers.pop(name) for name in ("width", "slope") if name in numbers})
    training = TrainingConfig(total, mixed_precision="no", num_threads=1, **numbers)
    model = build_model(Line, config, training)
    if not muon:
        return model, [torch.optim.AdamW(model.parameters(), weight_decay=0.0)], training
    return model, [Muon([model.layer.weight], 0.1), torch.optim.AdamW([model.layer.bias])], training


def points():
    return torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


def fit_line(folder, resume=False, seconds=0.0, at_step=None, total=12, origin=None, num_images=20, **numbers):
    """Train it, a step taking so many `seconds`; at_step(step, run) is called before each. Returns the last checkpoint."""
    model, optimizers, training = make_line(total, **numbers)
    x, origin = points()[:num_images, : model.config.width], origin or {}
    with Run("line", model, optimizers, training, Path(folder), **origin) as frame:
        for step, index in frame.steps(len(x), bool(resume)):
            if at_step is not None:
                at_step(step, frame)
            time.sleep(seconds)
            frame.update(model(x[index]))
            if frame.is_due(training.sample_every):
                with frame.evaluation() as averaged:
                    held_out = averaged(x).item()
                frame.log_held_out({"held_out": held_out})
            if frame.is_due(training.save_every):
                frame.save()
    return Path(folder) / f"line-{total}.pt"


def main():
    folder, *settings = sys.argv[1:]
    pairs = (setting.split("=") for setting in settings)
    fit_line(folder, **{name: float(value) if name == "seconds" else int(value) for name, value in pairs})


if __name__ == "__main__":
    start(main)
