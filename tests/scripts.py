"""Runs the scripts as a reader does: in this process, which is quick, or in processes of their own."""

import contextlib
import io
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--preset", "small", "--dataset", "mnist_5k", "--batch_size", "8", "--mixed_precision", "no"]


def script(name, *arguments, cwd=ROOT, num_processes=1):
    """Run a script in this process, or in several that are forked from it."""
    arguments = [str(argument) for argument in arguments]
    if num_processes == 1:
        return called(ROOT / name, arguments, cwd)
    results = in_processes(called, ROOT / name, arguments, cwd, number=num_processes)
    return max(results, key=lambda result: (result.returncode, len(result.stdout)))


def in_processes(function, *arguments, number=2):
    """What function(*arguments) gives in each of some processes, which find each other as under torchrun. They are forked,
    as importing torch anew takes seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def one(rank):
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
        os.environ.update({name: str(value) for name, value in world.items()})
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
        try:
            results.put((rank, function(*arguments)))
        except BaseException:
            results.put((rank, subprocess.CompletedProcess([], 1, "", traceback.format_exc())))
            raise

    processes = [context.Process(target=one, args=(rank,)) for rank in range(number)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=200) for _ in processes)
    for process in processes:
        process.join()
    return [found[rank] for rank in range(number)]


def called(path, arguments, cwd):
    """A script run as __main__ by this process: what it was called with, its exit code, and what it printed."""
    stdout, stderr, returncode = io.StringIO(), io.StringIO(), 0
    before = sys.argv, sys.path[:], os.getcwd()
    try:
        sys.argv, sys.path[:0] = [str(path), *arguments], [str(path.parent)]
        os.chdir(cwd)
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            runpy.run_path(str(path), run_name="__main__")
    except SystemExit as stop:
        returncode = stop.code or 0
    finally:
        sys.argv, sys.path[:] = before[:2]
        os.chdir(before[2])
        torch.set_num_threads(1)
    return subprocess.CompletedProcess([str(path), *arguments], returncode, stdout.getvalue(), stderr.getvalue())


class Forked:
    """function(*arguments, **options) in a process that is forked from this one, to be used like a subprocess.Popen."""

    def __init__(self, function, *arguments, **options):
        self.written = [tempfile.TemporaryFile("w+") for _ in range(2)]

        def run():
            for number, file in enumerate(self.written, start=1):
                os.dup2(file.fileno(), number)
            sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
            function(*arguments, **options)

        self.process = multiprocessing.get_context("fork").Process(target=run, daemon=True)
        self.process.start()
        self.pid, self.kill = self.process.pid, self.process.kill

    def poll(self):
        return self.process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def wait(self, timeout=None):
        self.process.join(timeout)
        return self.process.exitcode

    def ended(self):
        """What it wrote and its exit code, when it is over, as subprocess.run gives them."""
        returncode = self.wait(120)
        assert returncode is not None
        for file in self.written:
            file.seek(0)
        return subprocess.CompletedProcess([], returncode, *(file.read() for file in self.written))


def succeeds(*arguments, **kwargs):
    result = script(*arguments, **kwargs)
    assert result.returncode == 0, result.stderr
    return result


def refused(result, reason):
    """One sentence on stderr with the reason in it, and exit code 2."""
    assert result.returncode == 2 and reason in result.stderr, result.stderr
    assert "Traceback" not in result.stderr and len(result.stderr.strip().splitlines()) == 1, result.stderr


def read_image(path):
    return pil_to_tensor(Image.open(path))


def files_of(folder):
    """The names of the files that a run leaves, but for its lock."""
    return {path.name for path in folder.iterdir()} - {".lock", ".running"}
