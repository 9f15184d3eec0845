"""Several processes: the gradient of the whole batch, the same weights in all, checkpoints that any number of processes goes
on from, one death that ends all."""

import csv
import shutil
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from line import make_line, points
from scripts import ROOT, TINY, in_processes, succeeds
from stages import STAGES, folder_of

from lesson_17.clip import CLIP, CLIPConfig, contrastive_loss
from utils.checkpoints import load_checkpoint
from utils.machine import processes

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def in_two_processes(program, folder):
    """A program, in two processes that have a `rank`; it gets the `folder`."""

    def one():
        with processes():
            exec(program, {"rank": dist.get_rank(), "folder": folder, "torch": torch})

    failed = [result for result in in_processes(one) if result is not None]
    assert not failed, failed[0].stderr


def test_the_gradient_of_two_processes_is_the_mean_of_their_halves_gradients(tmp_path):
    """One step of a model without chance in it, from the same start, by one process and by two."""
    program = """
from line import make_line, points
from utils.run import Run
model, optimizers, training = make_line(total=1, muon=False, max_grad_norm=1e9)
model.forward = lambda x: (model.layer(x) - 2 * x).square().mean()
with Run("line", model, optimizers, training, folder) as run:
    for step, index in run.steps(20):
        run.update(model(points()[index]))
        torch.save({"index": index, "model": model.state_dict()}, f"{folder}/{rank}.pt")
"""
    in_two_processes(program, tmp_path)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    model, _, _ = make_line(total=1)
    gradients = []
    for part in parts:
        x = points()[part["index"]]
        loss = (model.layer(x) - 2 * x).square().mean()
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    assert len(parts[0]["index"]) == len(parts[1]["index"]) == 2
    assert not set(parts[0]["index"].tolist()) & set(parts[1]["index"].tolist())
    mean = (gradients[0] + gradients[1]) / 2
    assert rows_of(tmp_path)[0]["grad_norm"] == pytest.approx(mean.norm().item(), rel=1e-5)
    for name, tensor in parts[0]["model"].items():
        assert torch.equal(tensor, parts[1]["model"][name])


def test_processes_draw_noise_of_their_own_and_keep_equal_weights(tmp_path):
    program = """
from line import make_line, points
from utils.run import Run
model, optimizers, training = make_line(total=8)
noise = []
with Run("line", model, optimizers, training, folder) as run:
    for step, index in run.steps(20):
        noise.append(torch.randn(2))
        run.update(model(points()[index]))
torch.save({"noise": torch.stack(noise), "model": model.state_dict(), "ema": dict(run.averaged.module.named_parameters())}, f"{folder}/{rank}.pt")
"""
    in_two_processes(program, tmp_path)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert (one["noise"] != two["noise"]).all()
    for part in ("model", "ema"):
        for name, tensor in one[part].items():
            assert torch.equal(tensor, two[part][name])


def test_clips_loss_of_two_processes_is_that_of_the_whole_batch(tmp_path):
    """And so is its gradient, averaged over the processes."""
    program = """
from lesson_17.clip import CLIP, CLIPConfig
from utils.training import average_gradients
torch.manual_seed(0)
model = CLIP(CLIPConfig(image_layers=1, text_layers=1))
images, tokens, meanings = torch.rand(8, 1, 28, 28), torch.randint(1, 20, (8, 7)), torch.randint(3, (8,))
tokens[:, -1] = 0
half = slice(4 * rank, 4 * rank + 4)
loss, _ = model(images[half], tokens[half], meanings[half], meanings[half, None])
loss.backward()
average_gradients(model)
torch.save({"loss": loss.detach(), "gradients": {n: p.grad for n, p in model.named_parameters()}}, f"{folder}/{rank}.pt")
"""
    in_two_processes(program, tmp_path)
    torch.manual_seed(0)
    model = CLIP(CLIPConfig(image_layers=1, text_layers=1))
    images, tokens, meanings = torch.rand(8, 1, 28, 28), torch.randint(1, 20, (8, 7)), torch.randint(3, (8,))
    tokens[:, -1] = 0
    logits = model.logits_per_image(model.encode_image(images), model.encode_text(tokens)[0])
    loss, _ = contrastive_loss(logits, meanings[:, None] == meanings)
    loss.backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found["loss"], loss.detach())
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found["gradients"][name], parameter.grad, rtol=1e-3, atol=1e-6)


def train(name, folder, earlier, *flags, **processes):
    steps = ("--save_every", 3, "--ema_decay", 0.9, *flags)
    return succeeds(*STAGES[name], *TINY, *steps, *earlier.get(name, []), "--output_dir", folder, **processes)


def rows_of(folder):
    with open(folder / "metrics.csv") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_trains_in_two_processes(name, earlier_stages, tmp_path):
    result = train(name, tmp_path, earlier_stages, "--num_training_steps", 3, num_processes=2)
    assert "on 2 x cpu" in result.stdout and result.stdout.count("Training") == 1
    folder = folder_of(name, tmp_path)
    assert [row["step"] for row in rows_of(folder)] == [1, 2, 3]
    assert (folder / "sample-3.png").exists() and load_checkpoint(folder / f"{name}-3.pt", name)["step"] == 3


@pytest.mark.parametrize("name, first, then", [("dall_e", 1, 2), ("decoder", 2, 1)])
def test_any_number_of_processes_goes_on_from_any_other(name, first, then, earlier_stages, tmp_path):
    begin = ("--num_training_steps", 5, "--sample_every", 5)
    train(name, tmp_path / "first", earlier_stages, *begin, num_processes=first)
    begun, folder = folder_of(name, tmp_path / "first"), folder_of(name, tmp_path / "then")
    folder.mkdir(parents=True)
    for file in (f"{name}-3.pt", "metrics.csv"):
        shutil.copy(begun / file, folder)
    result = train(name, tmp_path / "then", earlier_stages, *begin, "--resume", num_processes=then)
    assert "Resuming from" in result.stdout
    assert [row["step"] for row in rows_of(folder)] == list(range(1, 6))
    ends = [load_checkpoint(path / f"{name}-5.pt", name) for path in (begun, folder)]
    for key, tensor in ends[0]["model"].items():
        assert ends[1]["model"][key].shape == tensor.shape and torch.isfinite(ends[1]["model"][key]).all()


def test_processes_with_other_data_and_batches_that_do_not_divide_are_refused(tmp_path):
    program = """
from line import make_line
from utils.machine import UserError
from utils.run import Run
for case, (numbers, num_images) in {"data": ({}, 20 + rank), "batch": ({"batch_size": 5}, 20)}.items():
    model, optimizers, training = make_line(total=1, **numbers)
    try:
        with Run("line", model, optimizers, training, folder) as run:
            next(run.steps(num_images))
    except UserError as error:
        open(f"{folder}/{case}-{rank}", "w").write(str(error))
"""
    in_two_processes(program, tmp_path)
    for rank in range(2):
        assert "different data" in (tmp_path / f"data-{rank}").read_text()
        assert "--batch_size 5 does not divide among 2 processes" in (tmp_path / f"batch-{rank}").read_text()


def test_torchrun_starts_two_processes(tmp_path):
    flags = map(str, [*STAGES["dvae"][1:], *TINY, "--num_training_steps", 2, "--output_dir", tmp_path])
    result = subprocess.run([*TORCHRUN, ROOT / STAGES["dvae"][0], *flags], capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    assert "on 2 x cpu" in result.stdout and result.stdout.count("Training") == 1
    assert (tmp_path / "dvae-2.pt").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the names of threads are read from /proc")
def test_the_threads_that_talk_to_the_others_end_before_python_does(tmp_path):
    """One that frees a tensor while Python ends aborts its process, now and then, after all the work is done."""
    (tmp_path / "program.py").write_text(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
import torch
from torch.distributed.nn.functional import all_gather
from utils.machine import processes

def main():
    all_gather(torch.ones(1, requires_grad=True))[0].sum().backward()

def threads():
    return {{path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}}

with processes():
    main()
    assert any("gloo" in name for name in threads())
assert not any("gloo" in name for name in threads()), threads()
""")
    result = subprocess.run([*TORCHRUN, tmp_path / "program.py"], capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr


def test_a_process_that_dies_ends_the_run(tmp_path):
    program = """
import os, sys
from line import fit_line, start
def die(step, run):
    if step == 3 and os.environ["RANK"] == "1":
        os._exit(7)
start(lambda: fit_line(sys.argv[1], total=1000, seconds=0.01, at_step=die))
"""
    start = time.monotonic()
    result = subprocess.run(
        [*TORCHRUN, "--no_python", sys.executable, "-c", program, tmp_path],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode != 0 and "exitcode" in result.stderr and time.monotonic() - start < 60
