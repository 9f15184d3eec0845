"""The smallest training there is, for tests of the loop; as a script, `python line.py FOLDER [NAME=VALUE ...]`."""

import sys
import time
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from utils.cli import TrainingConfig, run
from utils.training import train


class Line(nn.Module):
    """The smallest model with a config: y = w x, with noise that the random state decides."""

    def __init__(self):
        super().__init__()
        self.config = TrainingConfig(1, 1, 1.0)  # any dataclass
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return (self.layer(x + torch.randn_like(x)) - 2 * x).square().mean()


def fit_line(folder, resume=False, total=12, seconds=0.0, at_step=None, **training):
    """Train it for `total` steps, a step taking so many `seconds`; at_step(step) is called before each."""
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = Line()
    numbers = {"warmup_steps": 2, "ema_decay": 0.9, "save_every": 7, "sample_every": 5, **training}
    args = Namespace(output_dir=Path(folder), seed=3, resume=resume, mixed_precision="no", compile=False, preset="cpu")

    def loss_of_batch(model, index, step):
        if at_step is not None:
            at_step(step)
        time.sleep(seconds)
        return model(x[index]), {}

    def sample(model, step):
        return {"held_out": 0.0}

    config = TrainingConfig(total, 4, 0.1, **numbers)
    return train("line", model, config, args, 20, loss_of_batch, sample, [model.layer.weight])


def main():
    folder, *settings = sys.argv[1:]
    pairs = (setting.split("=") for setting in settings)
    fit_line(folder, **{name: float(value) if name == "seconds" else int(value) for name, value in pairs})


if __name__ == "__main__":
    run(main)
