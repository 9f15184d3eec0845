"""What no paper is about, around a training loop that its script shows."""

import contextlib
import functools
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from utils.board import Board
from utils.checkpoints import checkpoints_in, load_checkpoint, newest_checkpoint, save_checkpoint
from utils.cli import UserError, shortened
from utils.machine import (
    Threads,
    get_device,
    largest,
    lock_folder,
    num_processes,
    process_index,
    say,
    stop_signals,
)
from utils.tables import drop_rows_after, write_rows
from utils.training import TrainingConfig, batch_index, load_state, local, scheduled_rate, whole

METRICS_EVERY = 50  # steps between looks at the metrics: each look waits for the device
ASK_OTHERS_EVERY = 10  # steps between questions to the other processes whether one of them was stopped


class Run:
    """A training run that writes NAME-STEP.pt, metrics.csv, held_out_metrics.csv and loss.png to a folder of its own.

    Everything random in a step follows from (seed, step, process): a run that was stopped and resumed sees the same images,
    captions and noise as one that was not. `extra` (plain containers) goes into the checkpoints; a resumed run must have
    the same extra["sources"], {name: {"fingerprint": ...}} of the frozen models that it learns from.

    Raises UserError if the folder cannot be written or another run writes there, if the disk is full, if a loss is not
    finite, and if what is resumed is finished or was another model.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        optimizers: list,
        training: TrainingConfig,
        folder: Path,
        resume=False,
        **extra,
    ):
        self.name, self.module, self.optimizers, self.training = name, model, optimizers, training
        self.folder, self.resume = Path(folder), resume
        self.extra = {"data": {}, "tokenizer": None, "sources": {}, **extra}
        self.device, self.is_main = get_device(), process_index() == 0
        self.sharded = training.shard and num_processes() > 1
        self.ema = {n: p.detach().clone() for n, p in model.named_parameters()} if training.ema_decay else None
        self.step, self.seed, self.pending, self.held_out, self.board = 0, training.seed, [], {}, None
        bf16 = training.mixed_precision == "bf16"
        self.autocast = functools.partial(torch.autocast, self.device.type, torch.bfloat16, enabled=bf16)
        trained = torch.compile(model) if training.compile else model
        if num_processes() > 1 and not self.sharded:
            trained = nn.parallel.DistributedDataParallel(trained)
        self.model = self.autocast()(trained.__call__)

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            problem = None
            if self.is_main:
                try:
                    stack.enter_context(lock_folder(self.folder))
                except UserError as error:
                    problem = error
            if largest(problem is not None):
                raise problem or SystemExit(2)  # the first process says why
            self.stopped_by = stack.enter_context(stop_signals())
            self.held = stack.pop_all()
        return self

    def __exit__(self, error_type, error, traceback):
        self.held.close()
        if self.board:
            self.board.close()
        if isinstance(error, OSError):
            reason = f"{self.folder} cannot be written: {error.strerror or error}."
            raise UserError(f"{reason} {self.last_good()}") from error

    def steps(self, num_images: int) -> Iterator[tuple[int, Tensor]]:
        """Each step from 0, or from where a resumed run was, with the images that this process sees in it, (B,) of
        0 .. num_images - 1. Ends the program with 128 + its number after the step in which a signal came."""
        t, parts = self.training, num_processes()
        if t.batch_size % parts:
            raise UserError(f"--batch_size {t.batch_size} does not divide among {parts} processes.")
        if largest(num_images) != -largest(-num_images):
            raise UserError("The processes have found different data; see to it that all of them can read the same.")
        self.num_images = num_images
        if self.resume:
            self.load()
        threads = Threads(t.num_threads)
        say(
            f"Training {self.name}: {sum(p.numel() for p in self.module.parameters()):,} parameters, "
            f"{t.num_training_steps} steps of {t.batch_size} images on {parts} x {self.device}, "
            f"mixed precision {t.mixed_precision}, into {self.folder}"
        )
        for name in ("metrics.csv", "held_out_metrics.csv") if self.is_main else ():
            drop_rows_after(self.folder / name, self.step)
        if t.tensorboard and self.is_main:
            self.board = Board(self.folder, self.step)
        bar = {"initial": self.step, "total": t.num_training_steps, "desc": self.name, "disable": not self.is_main}
        with tqdm(**bar) as self.progress:
            self.module.train()
            while self.step < t.num_training_steps:
                torch.manual_seed(hash((self.seed, self.step, process_index())) % 2**32)  # a generator takes 32 bits
                yield self.step, batch_index(self.step, num_images, t.batch_size, self.seed).to(self.device)
                threads.look()
                if number := self.signal_to_any():
                    self.save()
                    say(f"Stopped at step {self.step}, and saved; the same command with --resume goes on.")
                    sys.exit(128 + number)

    def update(self, loss: Tensor, **metrics) -> None:
        """A step of the optimizers down the gradient of `loss`, clipped, at the rate of the schedule; and of the averaged
        weights. metrics: scalars for the log."""
        learning_rate = scheduled_rate(self.training, self.step)
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.training.max_grad_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
            optimizer.zero_grad()
        if self.ema is not None:
            decay = self.training.ema_decay if self.step else 0.0  # the average begins with the first trained weights
            for name, parameter in self.module.named_parameters():
                local(self.ema[name]).lerp_(local(parameter.detach()), 1 - decay)

        self.step += 1
        grad_norm = grad_norm.full_tensor() if self.sharded else grad_norm
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
        same random numbers. All processes evaluate, as a sharded model needs them all."""
        self.write_metrics()
        self.exchange_average()
        if self.sharded:
            self.module.unshard()
        with torch.no_grad(), self.autocast():
            torch.manual_seed(self.seed)
            yield self.module.eval()
        if self.sharded:
            self.module.reshard()
        self.exchange_average()
        self.module.train()

    def exchange_average(self) -> None:
        """Put the averaged weights in the place of the weights, and the reverse."""
        for name, parameter in self.module.named_parameters() if self.ema else ():
            weights, average = local(parameter.data), local(self.ema[name])
            kept = weights.clone()
            weights.copy_(average)
            average.copy_(kept)

    def log_held_out(self, metrics: dict[str, float]) -> None:
        """Metrics of held-out data to the screen, to held_out_metrics.csv and to the next checkpoints; loss.png. With
        --tensorboard, they and the sample grid of this step go there, too."""
        self.held_out = metrics
        if self.is_main:
            from utils.plots import plot_metrics

            write_rows(self.folder / "held_out_metrics.csv", [{"step": self.step, **metrics}], append=True)
            plot_metrics(self.folder / "metrics.csv", self.folder / "loss.png", self.name)
            if self.board:
                self.board.log("held_out", [{"step": self.step, **metrics}])
                self.board.show(self.folder / f"sample-{self.step}.png", self.step)
            self.progress.write(f"step {self.step}: " + ", ".join(f"{n} {value:.4g}" for n, value in metrics.items()))

    def write_metrics(self) -> None:
        """The metrics of the last steps, averaged over the processes, to metrics.csv, up to the first row that is not
        finite: that one raises UserError."""
        rows, self.pending = [{name: float(value) for name, value in row.items()} for row in self.pending], []
        if rows and num_processes() > 1:
            values = torch.tensor([list(row.values()) for row in rows], dtype=torch.float64, device=self.device)
            dist.all_reduce(values)
            rows = [dict(zip(rows[0], row)) for row in (values / num_processes()).tolist()]
        bad = next((i for i, row in enumerate(rows) if not all(map(math.isfinite, row.values()))), len(rows))
        finite = [{**row, "step": int(row["step"])} for row in rows[:bad]]
        if self.is_main:
            write_rows(self.folder / "metrics.csv", finite, append=True)
        if self.board:
            self.board.log("training", finite)
        for row in rows[bad : bad + 1]:
            raise UserError(
                f"The loss is {row['loss']:.4g} and its gradient {row['grad_norm']:.4g} at step {row['step']:.0f}, with a "
                f"learning rate of {row['learning_rate']:.3g}, so the run is stopped. {self.last_good()} A lower "
                f"--learning_rate may help."
            )

    def save(self) -> None:
        """Write NAME-STEP.pt, and delete older ones but the newest `keep_newest` (0 keeps all) and those of each
        `milestone_every` steps (0: of none)."""
        self.write_metrics()
        t = self.training
        checkpoint = {
            "name": self.name,
            "config": asdict(self.module.config),
            "training": {**asdict(t), "seed": self.seed},
            "num_images": self.num_images,
            "step": self.step,
            "held_out": self.held_out,
            "model": whole(self.module.state_dict()),
            "ema": self.ema and whole(self.ema),
            "optimizers": [whole(optimizer.state_dict()) for optimizer in self.optimizers],
            **self.extra,
        }
        if self.is_main:
            save_checkpoint(self.folder / f"{self.name}-{self.step}.pt", checkpoint)
            files = {step: file for step, file in checkpoints_in(self.folder, self.name).items() if step <= self.step}
            for step in list(files)[: -t.keep_newest] if t.keep_newest else ():
                if not t.milestone_every or step % t.milestone_every:
                    files[step].unlink(missing_ok=True)
        largest(self.step)  # the others may go on to read it, and wait for the first process

    def load(self) -> None:
        """Go on from the newest checkpoint of the folder, if there is one, with its seed."""
        path = newest_checkpoint(self.folder, self.name)
        if path is None:
            return say(f"{self.folder} has no {self.name} checkpoint to resume from, so training starts at step 0.")
        checkpoint = load_checkpoint(path, self.name)
        was = facts(*(checkpoint[name] for name in ("config", "training", "num_images", "ema", "optimizers")))
        now = facts(asdict(self.module.config), asdict(self.training), self.num_images, self.ema, self.optimizers)
        for name in sorted(was.keys() | now.keys()):
            if was.get(name) != now.get(name):
                raise UserError(
                    f"{path} was trained with other sizes, settings or data: {name} was {shortened(was.get(name))} and is "
                    f"{shortened(now.get(name))}; resume with the flags it was begun with."
                )
        for name, source in self.extra["sources"].items():
            if checkpoint["sources"][name]["fingerprint"] != source["fingerprint"]:
                raise UserError(f"{path} learned from another {name} than this; train it anew, without --resume.")
        if checkpoint["step"] >= self.training.num_training_steps:
            reached = f"{self.folder} is at step {checkpoint['step']} already"
            raise UserError(f"{reached}; ask for more with --num_training_steps.")
        load_state(self.module, self.ema, self.optimizers, checkpoint)
        self.step, self.seed, self.held_out = checkpoint["step"], checkpoint["training"]["seed"], checkpoint["held_out"]
        say(f"Resuming from {path}")

    def signal_to_any(self) -> int:
        """The number of the signal that this process or another of the run has received, or 0: all stop after the same
        step. Several processes ask each other now and then only, as that waits for the device."""
        if num_processes() > 1 and self.step % ASK_OTHERS_EVERY:
            return 0
        return largest(max(self.stopped_by, default=0))

    def last_good(self) -> str:
        path = newest_checkpoint(self.folder, self.name)
        return "There is no checkpoint yet." if path is None else f"The last good checkpoint is {path}."


def facts(config: dict, training: dict, num_images: int, ema: dict | None, optimizers: list) -> dict:
    """What a resumed run must have as the run that it goes on from, by names that a user knows."""
    named = {"num_images": num_images, "batch_size": training["batch_size"], "averaged weights": ema is not None}
    return {**config, **named, "optimizers": len(optimizers)}
