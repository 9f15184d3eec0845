"""A run and its folder: one run at a time writes there, nothing bad is saved, and a stopped run loses nothing."""

import csv
import json
import math
import os
import signal
import socket
import threading
import time
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator

from utils.checkpoints import checkpoints_in, newest_checkpoint, save_checkpoint
from utils.cli import UserError
from utils.plots import plot_metrics

ASK_OTHERS_EVERY = 10  # steps


class RunFolder:
    """The folder that a run writes to, in a `with` statement: metrics, held-out metrics, checkpoints.

    In several processes only the main one writes; the others call the same methods. Raises UserError if another run is
    writing there, if the folder or the disk cannot be written, and if a loss is not finite; each names the last good
    checkpoint.
    """

    def __init__(self, path: Path, kind: str, is_main_process: bool):
        self.path = path
        self.kind = kind
        self.writes = is_main_process
        self.lock = FolderLock(path)

    def __enter__(self):
        if self.writes:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self.lock.acquire()
                for left_by_a_killed_run in self.path.glob(".*.tmp"):
                    left_by_a_killed_run.unlink()
            except OSError as error:
                raise UserError(f"{self.path} cannot be written: {error.strerror or error}.") from error
        return self

    def __exit__(self, kind, error, traceback):
        if self.writes:
            self.lock.release()
        if isinstance(error, OSError):
            raise UserError(f"{self.path} cannot be written: {error.strerror or error}. {self.last_good()}") from error

    def last_good(self) -> str:
        path = newest_checkpoint(self.path, self.kind)
        return "There is no checkpoint yet." if path is None else f"The last good checkpoint is {path}."

    def checkpoint_at(self, step: int) -> Path:
        return self.path / f"{self.kind}-{step}.pt"

    def open_logs(self, step: int) -> None:
        """Begin both CSV files, or go on with them after `step`."""
        if self.writes:
            self.metrics = MetricsLog(self.path / "metrics.csv", step)
            self.held_out = MetricsLog(self.path / "held_out_metrics.csv", step)

    def write_metrics(self, rows: list[dict]) -> None:
        """Rows of metrics, up to the first that is not finite: that one raises UserError."""
        bad = next((i for i, row in enumerate(rows) if not all(map(math.isfinite, row.values()))), len(rows))
        if self.writes:
            self.metrics.write(rows[:bad])
        if bad < len(rows):
            row = rows[bad]
            raise UserError(
                f"The loss is {row['loss']:.4g} and its gradient {row['grad_norm']:.4g} at step {row['step']}, with a learning "
                f"rate of {row['learning_rate']:.3g}, so the run is stopped. {self.last_good()} A lower --learning_rate may help."
            )

    def write_held_out(self, row: dict) -> None:
        self.held_out.write([row])
        plot_metrics(self.metrics.path, self.path / "loss.png", self.kind)

    def save(self, checkpoint: dict, keep_newest: int, milestone_every: int) -> None:
        """Write KIND-STEP.pt, and delete older ones but the newest `keep_newest` (0 keeps all) and those of each
        `milestone_every` steps (0: of none)."""
        if not self.writes:
            return
        save_checkpoint(self.checkpoint_at(checkpoint["step"]), checkpoint)
        if keep_newest:
            older = [step for step in checkpoints_in(self.path, self.kind) if step <= checkpoint["step"]][:-keep_newest]
            for step in older:
                if not milestone_every or step % milestone_every:
                    self.checkpoint_at(step).unlink()


class MetricsLog:
    """Rows of a CSV file, one a step. Opened at `step`, it drops what an earlier run wrote after that step."""

    def __init__(self, path: Path, step: int):
        self.path = path
        rows = []
        if step and path.exists():
            whole_lines = path.read_text().rpartition("\n")[0].splitlines()  # a killed run may have left half of one
            rows = [row for row in csv.DictReader(whole_lines) if int(row["step"]) <= step]
        temporary = path.with_name(f".{path.name}.tmp")
        write_rows(temporary, rows)
        os.replace(temporary, path)

    def write(self, rows: list[dict]) -> None:
        write_rows(self.path, rows)


def write_rows(path: Path, rows: list[dict]) -> None:
    """Append rows to a CSV file, below a header if it is new."""
    with open(path, "a", newline="") as file:
        if rows:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            if file.tell() == 0:
                writer.writeheader()
            writer.writerows(rows)


class FolderLock:
    """Keeps a second run out of a folder, by a file in it that names the first; a killed run's is recognised.

    `acquire` raises UserError if another run is writing there.
    """

    def __init__(self, folder: Path):
        self.path = folder / ".running"

    def acquire(self) -> None:
        me = psutil.Process()
        own = json.dumps({"pid": me.pid, "started": me.create_time(), "host": socket.gethostname()})
        while True:
            try:
                with open(self.path, "x") as file:
                    file.write(own)
                return
            except FileExistsError:
                self.refuse_unless_stale()

    def release(self) -> None:
        self.path.unlink(missing_ok=True)

    def refuse_unless_stale(self) -> None:
        try:
            holder = json.loads(self.path.read_text())
            pid, started, host = holder["pid"], holder["started"], holder["host"]
        except (OSError, ValueError, KeyError, TypeError):  # it was killed while it wrote this, or has gone by now
            return self.release()
        if host == socket.gethostname() and not is_alive(pid, started):
            return self.release()
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(started))
        raise UserError(
            f"{self.path.parent} is being written by another run, process {pid} on {host} since {when}; wait for it, stop it, "
            f"or choose another --output_dir. If it is gone, delete {self.path}."
        )


def is_alive(pid: int, started: float) -> bool:
    """Whether the process still runs: it, and not a later one of the same number."""
    try:
        return psutil.Process(pid).create_time() == started
    except psutil.Error:
        return False


class StopSignals:
    """Catches SIGINT and SIGTERM: the first only asks the run to stop, in `received`; the second ends it at once.

    A launcher passes on what the terminal has already sent, so what comes within a second of the first is the same one.
    """

    def __init__(self):
        self.received = 0  # its number
        self.at = math.inf

    def __enter__(self):
        self.previous = {}
        if threading.current_thread() is threading.main_thread():  # others may not catch signals
            self.previous = {number: signal.signal(number, self.catch) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def catch(self, number: int, frame) -> None:
        if self.received and time.monotonic() - self.at > 1:
            os._exit(128 + number)
        if not self.received:
            self.received, self.at = number, time.monotonic()

    def received_by_any(self, accelerator: Accelerator, step: int) -> int:
        """The signal that this process or another of the run has received, or 0: all stop after the same step. Several
        processes ask each other now and then only, as that waits for the device."""
        if accelerator.num_processes == 1:
            return self.received
        if step % ASK_OTHERS_EVERY:
            return 0
        received = torch.tensor([self.received], device=accelerator.device)
        return int(accelerator.gather(received).max())
