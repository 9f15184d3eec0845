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

from utils import machine
from utils.checkpoints import differences, load_checkpoint, move_aside, newest_checkpoint, save_checkpoint
from utils.machine import UserError, gathered, num_processes, say
from utils.tables import drop_rows_after, write_rows
from utils.training import TrainingConfig, average_gradients, batch_index, scheduled_rate

METRICS_EVERY = 50  # steps between looks at the metrics: each look waits for the device


class Run:
    """A training run that writes NAME-STEP.pt, metrics.csv and held_out_metrics.csv to a folder of its own.

    Everything random in a step follows from (seed, step, process): a run that was stopped and resumed sees the same images,
    captions and noise as one that was not. `origin` goes into the checkpoints, as plain containers: "data", "tokenizer" and
    "sources", {name: {"fingerprint", ...}} of the frozen models that it learns from.

    Raises UserError if the folder cannot be written or another run writes there, if the disk is full, if a loss is not finite,
    and if what is resumed is finished or was trained otherwise.
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
            problem = None
            try:
                stack.enter_context(machine.lock_folder(self.folder) if self.is_main else contextlib.nullcontext())
            except UserError as error:
                problem = error
            if any(gathered(problem is not None)):
                raise problem or SystemExit(2)  # the first process says why
            self.signals = stack.enter_context(machine.stop_signals())
            self.held = stack.pop_all()
        return self

    def __exit__(self, error_type, error, traceback):
        self.held.close()
        if isinstance(error, OSError) and machine.concerns(error, self.folder):
            raise UserError(
                f"{self.folder} cannot be written: {error.strerror or error}. {self.last_good()}"
            ) from error

    def steps(self, num_images: int, resume: bool = False) -> Iterator[tuple[int, Tensor]]:
        """Each step from 0, or from where a resumed run was, with the images that this process sees in it, (B,) of
        0 .. num_images - 1. Ends the program with 128 + its number after the step in which a signal came.

        Raises RuntimeError if the loop's body comes to its end without update().
        """
        t, parts = self.training, num_processes()
        if t.batch_size % parts:
            raise UserError(f"--batch_size {t.batch_size} does not divide among {parts} processes.")
        if len(set(gathered(num_images))) > 1:
            raise UserError("The processes have found different data; see to it that all of them can read the same.")
        self.num_images = num_images
        if resume:
            self.load()
        if self.is_main:
            if not resume:
                move_aside(self.folder, self.name)
            for name in ("metrics.csv", "held_out_metrics.csv"):
                drop_rows_after(self.folder / name, self.step)
        say(
            f"Training {self.name}: {sum(p.numel() for p in self.model.parameters()):,} parameters, "
            f"{t.num_training_steps} steps of {t.batch_size} images on {parts} x {self.device}, mixed precision "
            f"{t.mixed_precision}, into {self.folder}"
        )
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
        rows, self.pending = [{name: float(value) for name, value in row.items()} for row in self.pending], []
        bad = next((i for i, row in enumerate(rows) if not all(map(math.isfinite, row.values()))), len(rows))
        if self.is_main:
            finite = [{**row, "step": int(row["step"])} for row in rows[:bad]]
            write_rows(self.folder / "metrics.csv", finite, append=True)
        for row in rows[bad : bad + 1]:
            raise UserError(
                f"The loss is {row['loss']:.4g} and its gradient {row['grad_norm']:.4g} at step {row['step']:.0f}, with a "
                f"learning rate of {row['learning_rate']:.3g}, so the run is stopped. {self.last_good()} A lower "
                f"--learning_rate may help."
            )

    def save(self) -> None:
        """Write NAME-STEP.pt."""
        self.write_metrics()
        weights = {"model": self.model.state_dict(), "ema": self.averaged and self.averaged.module.state_dict()}
        weights["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        if self.is_main:
            path, held_out = self.folder / f"{self.name}-{self.step}.pt", {"held_out": self.held_out}
            save_checkpoint(path, {**self.identity(), "step": self.step, **held_out, **weights})
        gathered(self.step)  # the others may go on to read it, and wait for the first process

    def identity(self) -> dict:
        """What makes this training the one that it is; a checkpoint carries it."""
        config = {"config": asdict(self.model.config), "training": asdict(self.training), "num_images": self.num_images}
        return {"name": self.name, **config, **self.origin}

    def is_finished(self, num_images: int) -> bool:
        """Whether the newest checkpoint of the folder is the last one of just this training."""
        self.num_images, path = num_images, newest_checkpoint(self.folder, self.name)
        checkpoint = path and load_checkpoint(path, self.name)
        if path is None or checkpoint["step"] != self.training.num_training_steps:
            return False
        if other := differences(checkpoint, self.identity()):
            say(f"{path} was trained otherwise: {other[0]}. So {self.name} is trained anew.")
            return False
        say(f"{self.name} is trained already, {path}")
        return True

    def load(self) -> None:
        """Go on from the newest checkpoint of the folder, if there is one, with its seed."""
        path = newest_checkpoint(self.folder, self.name)
        if path is None:
            return say(f"{self.folder} has no {self.name} checkpoint to resume from, so training starts at step 0.")
        checkpoint = load_checkpoint(path, self.name)
        if other := differences(checkpoint, self.identity()):
            raise UserError(f"{path} was trained otherwise: {other[0]}. Resume with the flags it was begun with.")
        if checkpoint["step"] >= self.training.num_training_steps:
            reached = f"{self.folder} is at step {checkpoint['step']} already"
            raise UserError(f"{reached}; ask for more with --num_training_steps.")
        self.model.load_state_dict(checkpoint["model"])
        if self.averaged is not None:
            self.averaged.module.load_state_dict(checkpoint["ema"])
            self.averaged.n_averaged.fill_(checkpoint["step"])
        for optimizer, state in zip(self.optimizers, checkpoint["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step, self.held_out = checkpoint["step"], checkpoint["held_out"]
        self.training = replace(self.training, seed=checkpoint["training"]["seed"])
        say(f"Resuming from {path}")

    def last_good(self) -> str:
        path = newest_checkpoint(self.folder, self.name)
        return "There is no checkpoint yet." if path is None else f"The last good checkpoint is {path}."
