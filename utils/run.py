"""What no paper is about, around a training loop that its script shows."""

import contextlib
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from utils import checkpoints, machine
from utils.machine import UserError, gathered, num_processes, say
from utils.tables import drop_rows_after, write_rows
from utils.training import TrainingConfig, average_gradients, batch_index, scheduled_rate

METRICS_EVERY = 50  # steps between looks at the metrics: each look waits for the device


class Run:
    """A training run that writes NAME-STEP.pt, metrics.csv and held_out_metrics.csv to a folder of its own.

    Everything random in a step follows from (seed, step, process): a run that was stopped and resumed sees the same
    images, captions and noise as one that was not. `origin` goes into the checkpoints, as plain containers: "data",
    "tokenizer" and "sources", {name: {"fingerprint", ...}} of the frozen models that it learns from. Raises UserError
    if the folder cannot be written or another run writes there, if the disk is full, if a loss is not finite, and if
    what is resumed is finished or was trained otherwise.
    """

    def __init__(self, name: str, model: nn.Module, optimizers: list, training: TrainingConfig, folder: Path, **origin):
        self.name, self.model, self.optimizers, self.training = name, model, optimizers, training
        self.folder, self.device, self.is_main = Path(folder), machine.get_device(), machine.process_index() == 0
        self.origin = {"data": {}, "tokenizer": None, "sources": {}, **origin}
        self.step, self.pending, self.held_out, self.averaged = 0, [], {}, None
        if training.ema_decay:
            self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(training.ema_decay))
        if training.compile:
            model.compile()

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            stack.enter_context(machine.lock_folder(self.folder))
            self.signals = stack.enter_context(machine.stop_signals())
            self.held = stack.pop_all()
        return self

    def __exit__(self, error_type, error, traceback):
        self.held.close()
        if isinstance(error, OSError) and machine.concerns(error, self.folder):
            reason = f"{self.folder} cannot be written: {error.strerror or error}."
            raise UserError(f"{reason} {checkpoints.last_good(self.folder, self.name)}") from error

    def steps(self, num_images: int, resume: bool = False) -> Iterator[tuple[int, Tensor]]:
        """Each step from 0, or from where a resumed run was, with the images that this process sees in it, (B,) of 0 ..
        num_images - 1. Ends the program with 128 + its number after the step in which a signal came. Raises
        RuntimeError if the loop's body comes to its end without update()."""
        t, parts = self.training, num_processes()
        if t.batch_size % parts:
            raise UserError(f"--batch_size {t.batch_size} does not divide among {parts} processes.")
        if len(set(gathered(num_images))) > 1:
            raise UserError("The processes have found different data; see to it that all of them can read the same.")
        self.num_images = num_images
        if resume:
            self.load()
        elif self.is_main:
            checkpoints.move_aside(self.folder, self.name)
        for name in ("metrics.csv", "held_out_metrics.csv") if self.is_main else ():
            drop_rows_after(self.folder / name, self.step)
        what = f"{sum(p.numel() for p in self.model.parameters()):,} parameters, {t.num_training_steps} steps of "
        what += f"{t.batch_size} images on {parts} x {self.device}, mixed precision {t.mixed_precision}"
        say(f"Training {self.name}: {what}, into {self.folder}")
        threads = machine.Threads(t.num_threads)
        threads.choose()
        bar = {"initial": self.step, "total": t.num_training_steps, "desc": self.name, "disable": not self.is_main}
        with tqdm(**bar) as self.progress:
            self.model.train()
            while (step := self.step) < t.num_training_steps:
                seed = self.training.seed
                torch.manual_seed(hash((seed, step, machine.process_index())) % 2**32)  # a generator takes 32 bits
                yield step, batch_index(step, num_images, t.batch_size, seed).to(self.device)
                if self.step == step:
                    raise RuntimeError("The body of the training loop came to its end without run.update(loss).")
                threads.choose_again()
                if self.signals:
                    self.save()
                    say(f"Stopped at step {self.step}, and saved; the same command with --resume goes on.")
                    sys.exit(128 + self.signals[0])

    def autocast(self) -> torch.autocast:
        """Matrix products in bfloat16, where the training's precision is mixed."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.training.mixed_precision == "bf16")

    def update(self, loss: Tensor, **metrics) -> None:
        """A step of the optimizers down the gradient of `loss`, the mean of all processes, clipped, at the rate of the schedule;
        and of the averaged weights, which begin with the first trained ones. metrics: scalars for the log."""
        learning_rate = scheduled_rate(self.training, self.step)
        loss.backward()
        average_gradients(self.model)
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.training.max_grad_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
            optimizer.zero_grad()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        self.step += 1
        measured = {"loss": loss, "grad_norm": grad_norm, **metrics}
        measured = {name: value.detach() if isinstance(value, Tensor) else value for name, value in measured.items()}
        self.pending.append({"step": self.step, "learning_rate": learning_rate, **measured})
        self.progress.update()
        if self.is_due(METRICS_EVERY):
            self.write_metrics()

    def is_due(self, every: int) -> bool:
        """Whether the step just taken is one of every so many, or the last."""
        return self.step % every == 0 or self.step == self.training.num_training_steps

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[nn.Module]:
        """The model with its averaged weights, if there are any, in evaluation mode, without gradients, each time with the
        same random numbers."""
        self.write_metrics()
        model = self.model if self.averaged is None else self.averaged.module
        with torch.no_grad(), self.autocast():
            torch.manual_seed(self.training.seed)
            yield model.eval()
        self.model.train()

    def log_held_out(self, metrics: dict[str, float]) -> None:
        """Metrics of held-out data to the screen, to held_out_metrics.csv and to the next checkpoints."""
        self.held_out = metrics
        if self.is_main:
            write_rows(self.folder / "held_out_metrics.csv", [{"step": self.step, **metrics}], append=True)
            self.progress.write(f"step {self.step}: " + ", ".join(f"{n} {value:.4g}" for n, value in metrics.items()))

    def write_metrics(self) -> None:
        """The metrics of the last steps, those of the first process, to metrics.csv, up to the first row that is not finite:
        that one raises UserError."""
        for row in self.pending:
            row |= {name: value.item() for name, value in row.items() if isinstance(value, Tensor)}
        bad = next((i for i, row in enumerate(self.pending) if not all(map(math.isfinite, row.values()))), None)
        rows, self.pending = self.pending, []
        if self.is_main:
            write_rows(self.folder / "metrics.csv", rows[:bad], append=True)
        if bad is not None:
            step, loss, norm, rate = (rows[bad][name] for name in ("step", "loss", "grad_norm", "learning_rate"))
            found = (
                f"The loss is {loss:.4g} and its gradient {norm:.4g} at step {step}, with a learning rate of {rate:.3g}"
            )
            last = checkpoints.last_good(self.folder, self.name)
            raise UserError(f"{found}, so the run is stopped. {last} A lower --learning_rate may help.")

    def save(self) -> None:
        """Write NAME-STEP.pt."""
        self.write_metrics()
        if self.is_main:
            ema = self.averaged and self.averaged.module.state_dict()
            checkpoint = {"step": self.step, "held_out": self.held_out, "model": self.model.state_dict(), "ema": ema}
            checkpoint["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
            path = self.folder / f"{self.name}-{self.step}.pt"
            checkpoints.save_checkpoint(path, {**self.identity(), **checkpoint})
        gathered(self.step)  # the others may go on to read it, and wait for the first process

    def identity(self) -> dict:
        """What makes this training the one that it is; a checkpoint carries it."""
        config, training = asdict(self.model.config), asdict(self.training)
        return {"name": self.name, "config": config, "training": training, "num_images": self.num_images, **self.origin}

    def is_finished(self, num_images: int) -> bool:
        """Whether the newest checkpoint of the folder is the last one of just this training."""
        self.num_images, path = num_images, checkpoints.newest_checkpoint(self.folder, self.name)
        checkpoint = path and checkpoints.load_checkpoint(path, self.name)
        if path is None or checkpoint["step"] != self.training.num_training_steps:
            return False
        other = checkpoints.differences(checkpoint, self.identity())
        if other:
            say(f"{path} was trained otherwise: {other[0]}. So {self.name} is trained anew.")
        else:
            say(f"{self.name} is trained already, {path}")
        return not other

    def load(self) -> None:
        """Go on from the newest checkpoint of the folder, if there is one, with its seed."""
        path = checkpoints.newest_checkpoint(self.folder, self.name)
        if path is None:
            return say(f"{self.folder} has no {self.name} checkpoint to resume from, so training starts at step 0.")
        checkpoint = checkpoints.load_checkpoint(path, self.name)
        if other := checkpoints.differences(checkpoint, self.identity()):
            raise UserError(f"{path} was trained otherwise: {other[0]}. Resume with the flags it was begun with.")
        self.step, self.held_out = checkpoint["step"], checkpoint["held_out"]
        if self.step >= self.training.num_training_steps:
            raise UserError(f"{self.folder} is at step {self.step} already; ask for more with --num_training_steps.")
        checkpoints.restore(checkpoint, self.model, self.averaged, self.optimizers)
        self.training = replace(self.training, seed=checkpoint["training"]["seed"])
        say(f"Resuming from {path}")
