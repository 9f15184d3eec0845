"""The machine that a script runs on: its device, its processes, its threads, its memory."""

import contextlib
import ctypes
import gc
import importlib
import math
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from filelock import FileLock, Timeout

LOOK_EVERY = 2.0  # seconds between looks at what else the machine is doing
FIRST_LOOK = 0.3  # seconds that the first look takes at least
MAX_THREADS = torch.get_num_threads()  # what PyTorch takes by itself: the cores, or OMP_NUM_THREADS


class UserError(Exception):
    """A mistake that the user can mend; its message says how. utils.cli.start prints it and exits with 2."""


def say(text: str) -> None:
    """Print a line, once for all processes."""
    if process_index() == 0:
        print(text, flush=True)


def get_device() -> torch.device:
    """The accelerator of this process, the CPU where there is none."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None or accelerator.type == "mps" and "WORLD_SIZE" in os.environ:  # which has one process only
        return torch.device("cpu")
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", 0)))


@contextlib.contextmanager
def processes():
    """Joins this process to the others that `torchrun` started, if it did, and parts from them at the end."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    device = get_device()
    if device.type == "cuda":
        if device.index >= torch.cuda.device_count():
            raise UserError(f"There are more processes than GPUs, which are {torch.cuda.device_count()}.")
        torch.cuda.set_device(device)
    importlib.import_module("torch.distributed.nn")  # its functions' defaults are the group, if there is one by then
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
    """The values of all processes, in their order, when each of them is here."""
    values = [value] * num_processes()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def default_precision() -> str:
    """bf16 where the device multiplies it faster than float32, else no."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    if torch.backends.mps.is_available():
        return "no"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # not every torch can tell
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "no"


def total_memory(device: torch.device) -> int:
    """Bytes that one process may fill: its accelerator's, or its part of this machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def free_memory(device: torch.device) -> int:
    """Bytes of the device that nothing uses yet."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def keep_freed_memory() -> None:
    """Have glibc's malloc keep the memory that is freed, for what comes next: handing it back to Linux and asking for it
    anew costs a CPU a tenth of each step of training and more."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
        mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25)  # some versions take no more
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def clocks() -> tuple[float, float, float]:
    """Seconds so far: of the clock, of all cores at work, of this process at work."""
    times = psutil.cpu_times()
    all_cores = sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system"))  # Windows has no nice
    return time.monotonic(), all_cores, time.process_time()


STARTED = clocks()  # what a script loads takes time, in which it can be seen what others do


class Threads:
    """As many threads of the CPU as there are cores that nothing else keeps busy.

    The threads of a parallel loop wait for the slowest of them. If another program holds one of two cores, the thread
    on that core is put aside again and again, and two threads are several times slower than one.

    num_threads: this many, whatever else runs; 0 chooses. Several processes of a run are not changed: torchrun gives each
    of them one thread, or what OMP_NUM_THREADS says.
    """

    def __init__(self, num_threads: int = 0):
        self.num_threads, self.since = num_threads, STARTED
        self.is_free = num_threads == 0 and num_processes() == 1 and "OMP_NUM_THREADS" not in os.environ

    def choose(self) -> None:
        """Set the number of threads by what other programs have done since the last choice, FIRST_LOOK seconds at least, and
        say so if it changes."""
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
            cores = f"{busy:.1f} of {psutil.cpu_count()} cores"
            say(f"Other programs keep {cores} busy, so {threads} of {MAX_THREADS} threads are at work.")

    def choose_again(self) -> None:
        """The same, if the last choice is LOOK_EVERY seconds old."""
        if self.is_free and time.monotonic() - self.since[0] >= LOOK_EVERY:
            self.choose()


@contextlib.contextmanager
def lock_folder(folder: Path):
    """A folder that no other run writes to, held by the first process for all; the system frees the lock of a run that
    is killed, and the checkpoints and tables that such a run has left half-written are deleted. Raises UserError in the
    first process if there is another run or the folder cannot be written, and SystemExit in the others."""
    holder, problem = folder / ".running", None
    lock = FileLock(folder / ".lock", blocking=False)
    if process_index() == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            since = time.strftime("%Y-%m-%d %H:%M")
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()} since {since}")
            for half_written in [*folder.glob(".*.pt.tmp"), *folder.glob(".*metrics.csv.tmp")]:
                half_written.unlink()
        except Timeout:
            other = holder.read_text() if holder.exists() else "one that has just begun"
            advice = "wait for it, stop it, or choose another --output_dir"
            problem = UserError(f"{folder} is being written by another run, {other}; {advice}.")
        except OSError as error:
            problem = UserError(f"{folder} cannot be written: {error.strerror or error}.")
    if any(gathered(problem is not None)):
        raise problem or SystemExit(2)
    try:
        yield
    finally:
        if process_index() == 0:
            with contextlib.suppress(OSError):  # of a folder that has vanished
                holder.unlink(missing_ok=True)
            lock.release()


def concerns(error: OSError, folder: Path) -> bool:
    """Whether an error is one of writing to the folder: it names a file in it, or none, as that of a full disk does."""
    return error.filename is None or Path(os.fsdecode(error.filename)).absolute().is_relative_to(folder.absolute())


@contextlib.contextmanager
def stop_signals():
    """Catches SIGINT and SIGTERM, in a run of one process: yields a list that the number of the first is put into; a second
    one ends the program. Several processes are ended by their launcher, and their last checkpoint is what there is.

    A launcher passes on what the terminal has already sent, so what comes within a second of the first is the same one.
    """
    received, first = [], math.inf

    def catch(number: int, frame) -> None:
        nonlocal first
        if time.monotonic() - first > 1:
            os._exit(128 + number)
        if not received:
            received.append(number)
            first = time.monotonic()

    in_main = threading.current_thread() is threading.main_thread()  # other threads may not catch signals
    caught = (signal.SIGINT, signal.SIGTERM) if in_main and num_processes() == 1 else ()
    handlers = {number: signal.signal(number, catch) for number in caught}
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
