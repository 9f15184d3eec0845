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

from utils import checkpoints, machine, tables
from utils.machine import UserError, gathered, num_processes, say
from utils.training import TrainingConfig, average_gradients, batch_index, scheduled_rate

METRICS_EVERY = 50  # steps between looks at the metrics: each look waits for the device


class Run:
    """A training run that writes NAME-STEP.pt, metrics.csv and held_out_metrics.csv to a folder of its own.

    Everything random in a step follows from (seed, step, process), so a resumed run is the same as one never stopped.
    `origin` goes into the checkpoints: "data", "tokenizer" and "sources", {name: {"fingerprint", ...}} of the frozen
    models that it learns from. Raises UserError if the folder cannot be written or another run writes to it, if a loss
    is not finite, or if what is resumed is finished or was trained otherwise.
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
        self.held = contextlib.ExitStack()
        self.held.enter_context(machine.lock_folder(self.folder))
        self.signals = self.held.enter_context(machine.stop_signals())
        return self

    def __exit__(self, error_type, error, traceback):
        with self.held:
            if error is None:
                self.write_metrics()  # of a loop that was left with break
        if isinstance(error, OSError) and machine.concerns(error, self.folder):
            last = checkpoints.last_good(self.folder, self.name)
            raise UserError(f"{self.folder} cannot be written: {error.strerror or error}. {last}") from error

    def steps(self, num_images: int, resume: bool = False) -> Iterator[tuple[int, Tensor]]:
        """Yields each step with the images that this process sees in it, (B,) in 0 .. num_images - 1. A signal ends the
        program after its step, with 128 + its number. Raises RuntimeError if the loop's body did not call update()."""
        self.num_images, parts = num_images, num_processes()
        if self.training.batch_size % parts:
            raise UserError(f"--batch_size {self.training.batch_size} does not divide among {parts} processes.")
        if len(set(gathered(num_images))) > 1:
            raise UserError("The processes have found different data; see to it that all of them can read the same.")
        if resume:
            self.load()
        elif self.is_main:
            checkpoints.move_aside(self.folder, self.name)
        for log in self.folder.glob("*metrics.csv") if self.is_main else ():
            tables.drop_rows_after(log, self.step)
        t, start, end = self.training, self.step, self.training.num_training_steps
        size = f"{sum(p.numel() for p in self.model.parameters()):,} parameters, mixed precision {t.mixed_precision}"
        say(f"Training {self.name} in {self.folder}: {size}, {t.batch_size} images a step on {parts} x {self.device}")
        threads = machine.Threads(t.num_threads)
        threads.choose()
        self.model.train()
        bar = machine.progress_bar(desc=self.name, initial=start, total=end, disable=not self.is_main)
        with bar as self.progress:
            for step in range(start, end):
                torch.manual_seed(hash((t.seed, step, machine.process_index())) % 2**32)  # a generator takes 32 bits
                yield step, batch_index(step, num_images, t.batch_size, t.seed).to(self.device)
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
        """A step of the optimizers, down the clipped gradient, and of the averaged weights. metrics: scalars to log."""
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
        row = {"step": self.step, "learning_rate": learning_rate, "loss": loss, "grad_norm": grad_norm, **metrics}
        self.pending.append({name: x.detach() if isinstance(x, Tensor) else x for name, x in row.items()})
        self.progress.update()
        if self.is_due(METRICS_EVERY):
            self.write_metrics()

    def is_due(self, every: int) -> bool:
        """Whether the step just taken is a multiple of `every`, or the last."""
        return self.step % every == 0 or self.step == self.training.num_training_steps

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[nn.Module]:
        """The model (averaged, if it has averages) in evaluation mode, each time with the same random numbers."""
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
            tables.write_rows(self.folder / "held_out_metrics.csv", [{"step": self.step, **metrics}], append=True)
            self.progress.write(f"step {self.step}: " + ", ".join(f"{n} {value:.4g}" for n, value in metrics.items()))

    def write_metrics(self) -> None:
        """The first process's metrics since the last look to metrics.csv, and their mean loss to the screen. Raises
        UserError if one is not finite."""
        rows = [{name: x.item() if isinstance(x, Tensor) else x for name, x in row.items()} for row in self.pending]
        bad = [row for row in rows if not all(map(math.isfinite, row.values()))]
        self.pending = []
        if self.is_main:
            tables.write_rows(self.folder / "metrics.csv", [row for row in rows if row not in bad], append=True)
        if rows:
            loss = sum(row["loss"] for row in rows) / len(rows)
            self.progress.set_postfix(loss=f"{loss:.4g}", refresh=False)
        if bad:
            found = "Loss {loss:.4}, gradient {grad_norm:.4} at step {step}, with a learning rate of {learning_rate:.3}"
            last = checkpoints.last_good(self.folder, self.name)
            raise UserError(f"{found.format(**bad[0])}, so the run is stopped; try a lower --learning_rate. {last}")

    def save(self) -> None:
        """Write NAME-STEP.pt."""
        self.write_metrics()
        if self.is_main:
            ema = self.averaged and self.averaged.module.state_dict()
            checkpoint = {"step": self.step, "held_out": self.held_out, "model": self.model.state_dict(), "ema": ema}
            checkpoint["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
            checkpoints.save_checkpoint(self.folder / f"{self.name}-{self.step}.pt", {**self.identity(), **checkpoint})
        gathered(self.step)  # the others may go on to read it, and wait for the first process

    def identity(self) -> dict:
        """What makes this training the one that it is; a checkpoint carries it."""
        config, training = asdict(self.model.config), asdict(self.training)
        return {"name": self.name, "config": config, "training": training, "num_images": self.num_images, **self.origin}

    def is_finished(self, num_images: int) -> bool:
        """Whether the newest checkpoint in the folder is the last one of just this training."""
        self.num_images, path = num_images, checkpoints.newest_checkpoint(self.folder, self.name)
        if path != self.folder / f"{self.name}-{self.training.num_training_steps}.pt":
            return False
        checkpoint = checkpoints.load_checkpoint(path, self.name)
        other = checkpoints.differences(checkpoint, self.identity(), type(self.model.config))
        already = f"is trained already, with --seed {checkpoint['training']['seed']}"
        say(f"{path} {f'was trained otherwise: {other[0]}' if other else already}.")
        return not other

    def load(self) -> None:
        """Go on from the newest checkpoint in the folder, if there is one, with its seed."""
        path = checkpoints.newest_checkpoint(self.folder, self.name)
        if path is None:
            return say(f"{self.folder} has no {self.name} checkpoint to resume from, so training starts at step 0.")
        checkpoint = checkpoints.load_checkpoint(path, self.name)
        if other := checkpoints.differences(checkpoint, self.identity(), type(self.model.config)):
            raise UserError(f"{path} was trained otherwise: {other[0]}. Resume with the flags it was begun with.")
        self.step, self.held_out = checkpoint["step"], checkpoint["held_out"]
        if self.step >= self.training.num_training_steps:
            raise UserError(f"{self.folder} is at step {self.step} already; ask for more with --num_training_steps.")
        checkpoints.restore(checkpoint, self.model, self.averaged, self.optimizers)
        self.training = replace(self.training, seed=checkpoint["training"]["seed"])
        say(f"Resuming from {path}")
