"""The machine that a script runs on: its device, its processes, its threads, its memory."""

import contextlib
import ctypes
import errno
import gc
import os
import signal
import socket
import sys
import time
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a group, which would become the default of its functions
from filelock import FileLock, Timeout
from tqdm import tqdm

LOOK_EVERY = 2.0  # seconds between looks at what else the machine is doing
FIRST_LOOK = 0.3  # seconds that the first look takes at least
BAR_EVERY = 5.0  # seconds between updates of a progress bar in a file, where each of them stays
MAX_THREADS = torch.get_num_threads()  # what PyTorch takes by itself: the cores, or OMP_NUM_THREADS


class UserError(Exception):
    """A mistake that the user can mend; utils.cli.start prints the message and exits with 2."""


def say(text: str) -> None:
    """Print a line, once for all processes."""
    if process_index() == 0:
        print(text, flush=True)


def progress_bar(*iterable, **settings) -> tqdm:
    """tqdm's, whose updates do not fill a file."""
    return tqdm(*iterable, mininterval=0.1 if sys.stderr.isatty() else BAR_EVERY, **settings)


def get_device() -> torch.device:
    """The accelerator of this process, or the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None or accelerator.type == "mps" and "WORLD_SIZE" in os.environ:  # which has one process only
        return torch.device("cpu")
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", 0)))


@contextlib.contextmanager
def processes():
    """Joins the processes that `torchrun` started, if it did, and leaves them at the end."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    device = get_device()
    if device.type == "cuda":
        if device.index >= torch.cuda.device_count():
            raise UserError(f"There are more processes than GPUs, which are {torch.cuda.device_count()}.")
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        gc.collect()  # the group's threads end with the last reference to it; one at work while Python ends is an abort
        dist.destroy_process_group()


def num_processes() -> int:
    """How many processes share the batches of this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def process_index() -> int:
    """Which of them this is; the first, 0, is the one that prints and writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def gathered(value) -> list:
    """The values of all processes, in order, once each has come here."""
    values = [value] * num_processes()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def default_precision() -> str:
    """bf16 where the device multiplies it faster than float32, else no."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "no"


def total_memory(device: torch.device) -> int:
    """Bytes that one process may fill."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def free_memory(device: torch.device) -> int:
    """Bytes of the device that nothing uses yet."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def keep_freed_memory() -> None:
    """Have glibc keep freed memory: giving it back to Linux costs a CPU a tenth of each training step."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # not every libc has it
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25)  # some versions take no more
        mallopt(trim_threshold, 2**31 - 1)


def clocks() -> tuple[float, float, float]:
    """Seconds so far: of the clock, of all cores at work, of this process at work."""
    times = psutil.cpu_times()
    all_cores = sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system"))  # Windows has no nice
    return time.monotonic(), all_cores, time.process_time()


STARTED = clocks()  # loading a script's modules takes time enough to see what others do


class Threads:
    """As many threads of the CPU as there are cores that nothing else keeps busy: parallel loops wait for the slowest.

    num_threads: this many, whatever else runs; 0 chooses. Several processes keep what torchrun or OMP_NUM_THREADS says.
    """

    def __init__(self, num_threads: int = 0):
        self.num_threads, self.since = num_threads, STARTED
        self.is_free = num_threads == 0 and num_processes() == 1 and "OMP_NUM_THREADS" not in os.environ

    def choose(self) -> None:
        """Set the number of threads by what other programs did since the last choice, and say so if it changes."""
        if self.num_threads:
            torch.set_num_threads(self.num_threads)
        if not self.is_free:
            return
        time.sleep(max(0.0, FIRST_LOOK - (time.monotonic() - self.since[0])))
        now = clocks()
        wall, all_cores, own = (after - before for after, before in zip(now, self.since))
        self.since = now
        busy = max(0.0, (all_cores - own) / wall)  # cores that other programs keep busy
        threads = max(1, min(MAX_THREADS, int(psutil.cpu_count() - busy + 0.5)))
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
            say(f"Other programs keep {busy:.1f} of {psutil.cpu_count()} cores busy, so {threads} threads are at work.")

    def choose_again(self) -> None:
        """The same, if the last choice is LOOK_EVERY seconds old."""
        if self.is_free and time.monotonic() - self.since[0] >= LOOK_EVERY:
            self.choose()


@contextlib.contextmanager
def lock_folder(folder: Path):
    """Holds a folder for one run, and deletes what a killed one, whose lock the system frees, left half-written. Raises
    UserError in the first process if that cannot be, and SystemExit in the others."""
    holder, lock, problem = folder / ".running", FileLock(folder / ".lock", blocking=False), None
    if process_index() == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            started = time.strftime("%Y-%m-%d %H:%M")
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()} since {started}")
            for half_written in [*folder.glob(".*.pt.tmp"), *folder.glob(".*metrics.csv.tmp")]:
                half_written.unlink()
        except Timeout:
            other = holder.read_text() if holder.exists() else "one that has just begun"
            problem = f"{folder} is being written by another run, {other}; stop it, or choose another --output_dir."
        except OSError as error:
            problem = f"{folder} cannot be written: {error.strerror or error}."
    if any(gathered(problem)):
        raise UserError(problem) if problem else SystemExit(2)
    try:
        yield
    finally:
        if process_index() == 0:
            holder.unlink(missing_ok=True)
            lock.release()


def concerns(error: OSError, folder: Path) -> bool:
    """Whether an error names a file in the folder, or is that of a full disk, which may name none."""
    if error.filename is None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return Path(os.fsdecode(error.filename)).absolute().is_relative_to(folder.absolute())


@contextlib.contextmanager
def stop_signals():
    """Yields a list for the number of the first SIGINT, SIGTERM or SIGHUP (of a terminal that is closed, unless nohup has
    it ignored); a second one ends the program at once. Several processes are ended by torchrun instead."""
    received, first = [], time.monotonic()

    def catch(number: int, frame) -> None:
        nonlocal first
        if not received:
            received.append(number)
            first = time.monotonic()
        elif time.monotonic() - first > 1:  # a terminal and a launcher may both send the same one
            os._exit(128 + number)

    caught = [signal.SIGINT, signal.SIGTERM] if num_processes() == 1 else []
    if caught and hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        caught.append(signal.SIGHUP)  # which Windows does not have
    handlers = {number: signal.signal(number, catch) for number in caught}
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
