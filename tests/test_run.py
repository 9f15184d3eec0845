"""The frame of a run: the arithmetic of a step against one written by hand, data, prompts, checkpoints, what is resumed."""

import csv
import errno
import math
import os
from unittest import mock

import pytest
import torch
from line import Line, LineConfig, fit_line, make_line, points
from torch import nn

import utils.training
from utils.checkpoints import (
    CONTENTS,
    find_checkpoint,
    fingerprint,
    load_checkpoint,
    load_model,
    newest_checkpoint,
    save_checkpoint,
)
from utils.cli import UserError
from utils.optimizers import Muon, orthogonalized
from utils.plots import plot_metrics
from utils.run import Run
from utils.tables import read_numbers, read_rows
from utils.training import TrainingConfig, batch_index, build_model, scheduled_rate

CONFIG = TrainingConfig(100, 4, 0.1, warmup_steps=9)


def test_the_rate_warms_up_linearly_and_falls_on_half_a_cosine():
    rates = [scheduled_rate(CONFIG, step) for step in range(101)]
    cosine = [0.1 * (1 + math.cos(math.pi * step / 100)) / 2 for step in range(101)]
    assert rates[:9] == pytest.approx([rate * (step + 1) / 10 for step, rate in enumerate(cosine[:9])])
    assert (
        rates[9:] == pytest.approx(cosine[9:]) and rates[50] == pytest.approx(0.05) and rates[100] == pytest.approx(0)
    )


def test_a_run_is_the_loop_that_one_would_write_by_hand(tmp_path):
    """Adam with decoupled decay, in numbers; a schedule; clipping; averaging from the first trained weights on."""
    total, seed, clip, decay = 12, 3, 0.5, 0.9
    checkpoint = load_checkpoint(
        fit_line(tmp_path, total=total, muon=False, max_grad_norm=clip, ema_decay=decay, seed=seed), "line"
    )
    model, _, training = make_line(total, seed=seed)
    x, parameters = points(), list(model.parameters())
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    order = torch.cat(
        [torch.randperm(20, generator=torch.Generator().manual_seed(hash((seed, e)) % 2**32)) for e in range(3)]
    )
    norms, rates, average = [], [], []
    for step in range(total):
        torch.manual_seed(hash((seed, step, 0)) % 2**32)
        gradients = torch.autograd.grad(model(x[order[4 * step : 4 * step + 4]]), parameters)
        norm = torch.sqrt(sum(g.square().sum() for g in gradients))
        norms.append(norm.item())
        rate = 0.1 * min(1, (step + 1) / 3) * (1 + math.cos(math.pi * step / total)) / 2
        rates.append(rate)
        with torch.no_grad():
            for p, g, m, v in zip(parameters, gradients, first, second):
                g = g * min(1, clip / norm.item())
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                p -= rate * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
            now = [p.clone() for p in parameters]
            average = now if step == 0 else [decay * a + (1 - decay) * p for a, p in zip(average, now)]
    assert max(norms) > clip
    for (name, tensor), p, a in zip(checkpoint["model"].items(), parameters, average):
        torch.testing.assert_close(tensor, p.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(checkpoint["ema"][name], a, rtol=1e-4, atol=1e-5)
    with open(tmp_path / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx(rates)
    assert [float(row["grad_norm"]) for row in rows] == pytest.approx(norms, rel=1e-4)


def test_evaluation_has_the_averaged_weights_and_gives_the_others_back(tmp_path):
    seen = {}

    def look(step, run):
        if step == 8:
            assert run.model.training
            before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
            with run.evaluation() as averaged:
                assert not averaged.training and not torch.is_grad_enabled()
                for name, p in averaged.named_parameters():
                    assert torch.equal(p, run.averaged.module.get_parameter(name)) and not torch.equal(p, before[name])
            assert run.model.training and torch.is_grad_enabled()
            for name, p in run.model.named_parameters():
                assert torch.equal(p, before[name])
            seen["it"] = True

    fit_line(tmp_path, at_step=look)
    assert seen


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_model_in_training_is_in_training_mode_at_every_step(tmp_path, ema_decay):
    modes = []
    fit_line(tmp_path, sample_every=2, ema_decay=ema_decay, at_step=lambda step, run: modes.append(run.model.training))
    assert modes == [True] * 12


def test_each_step_has_noise_of_its_own_and_evaluations_all_the_same(tmp_path):
    drawn, evaluated = [], []

    def look(step, run):
        state = torch.get_rng_state()
        drawn.append(torch.randn(3))
        if step in (4, 9):
            with run.evaluation():
                evaluated.append(torch.randn(3))
        torch.set_rng_state(state)

    fit_line(tmp_path, at_step=look)
    assert len({tuple(x.tolist()) for x in drawn}) == 12 and torch.equal(*evaluated)


def test_a_stopped_and_resumed_run_ends_with_the_same_bits(tmp_path):
    def stop(step, run):
        if step == 11:
            run.write_metrics()  # rows of steps behind the checkpoint of step 7
            raise KeyboardInterrupt

    whole = load_checkpoint(fit_line(tmp_path / "whole"), "line")
    with pytest.raises(KeyboardInterrupt):
        fit_line(tmp_path / "stopped", at_step=stop)
    resumed = load_checkpoint(fit_line(tmp_path / "stopped", resume=True, seed=99), "line")  # its first seed counts
    for part in ("model", "ema"):
        for name, tensor in whole[part].items():
            assert torch.equal(resumed[part][name], tensor), (part, name)
    for a, b in zip(whole["optimizers"], resumed["optimizers"]):
        assert str(a) == str(b)
    for name in ("metrics.csv", "held_out_metrics.csv"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "stopped" / name).read_text()
    with open(tmp_path / "whole/metrics.csv") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, 13))


def test_a_run_goes_on_with_its_own_seed_and_keeps_it(tmp_path):
    fit_line(tmp_path)
    checkpoint = load_checkpoint(fit_line(tmp_path, resume=True, total=20, seed=99), "line")
    assert checkpoint["training"]["seed"] == 3


def test_checkpoints_carry_the_held_out_metrics_last_seen(tmp_path):
    seen = {7: 5, 12: 12}  # the step of each checkpoint, and that of the metrics in it
    fit_line(tmp_path)
    rows = {row["step"]: row["held_out"] for row in read_numbers(tmp_path / "held_out_metrics.csv")}
    for step, measured in seen.items():
        assert load_checkpoint(tmp_path / f"line-{step}.pt")["held_out"] == pytest.approx({"held_out": rows[measured]})
    last = fit_line(tmp_path, resume=True, total=13, sample_every=50, at_step=lambda step, run: run.save())
    assert load_checkpoint(last.with_name("line-12.pt"))["held_out"] == pytest.approx({"held_out": rows[12]})


OTHERWISE = {
    "batch_size was '4' and is '5'": {"batch_size": 5},
    "weight_decay was": {"weight_decay": 0.5},
    "learning_rate was": {"learning_rate": 0.2},
    "ema_decay was": {"ema_decay": 0.0},
    "max_grad_norm was": {"max_grad_norm": 0.5},
    "number of images was '20' and is '19'": {"num_images": 19},
    "width was": {"width": 4},
    "slope was '2' and is '3'": {"slope": 3},
    "tokenizer was": {"origin": {"tokenizer": "another"}},
    "examples of the data was": {"origin": {"data": {"examples": ["edited"]}}},
    "the dvae it learned from was": {"origin": {"sources": {"dvae": {"fingerprint": "another"}}}},
}


@pytest.mark.parametrize("said", OTHERWISE)
def test_a_run_is_not_gone_on_with_otherwise(said, tmp_path):
    origin = {"data": {"examples": ["as it was"]}, "tokenizer": "one", "sources": {"dvae": {"fingerprint": "one"}}}
    fit_line(tmp_path, origin=origin)
    change = OTHERWISE[said]
    change = {**change, "origin": origin | change.get("origin", {})}
    before = (tmp_path / "line-12.pt").read_bytes(), (tmp_path / "metrics.csv").read_text()
    with pytest.raises(UserError, match=f"trained otherwise: {said}"):
        fit_line(tmp_path, resume=True, total=20, **change)
    assert before == ((tmp_path / "line-12.pt").read_bytes(), (tmp_path / "metrics.csv").read_text())


def test_a_field_that_is_new_in_the_config_had_its_default(tmp_path):
    fit_line(tmp_path)
    path = tmp_path / "line-12.pt"
    checkpoint = torch.load(path)
    del checkpoint["config"]["slope"]
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match="slope was '2' and is '3'"):
        fit_line(tmp_path, resume=True, total=14, slope=3)
    fit_line(tmp_path, resume=True, total=14)


def test_what_is_finished_is_not_gone_on_with_and_other_optimizers_neither(tmp_path):
    fit_line(tmp_path)
    with pytest.raises(UserError, match="at step 12 already"):
        fit_line(tmp_path, resume=True)
    with pytest.raises(ValueError):
        fit_line(tmp_path, resume=True, total=20, muon=False)
    fit_line(tmp_path, resume=True, total=20, save_every=3, sample_every=6)


def test_finished_is_the_last_checkpoint_of_just_this_training(tmp_path):
    def is_finished(total=12, num_images=20, **numbers):
        model, optimizers, training = make_line(total, **numbers)
        return Run("line", model, optimizers, training, tmp_path).is_finished(num_images)

    assert not is_finished()
    fit_line(tmp_path)
    assert is_finished() and is_finished(save_every=2, seed=5)
    assert not is_finished(total=20) and not is_finished(batch_size=5) and not is_finished(width=4)
    assert not is_finished(num_images=19) and not is_finished(slope=3)
    (tmp_path / "line-12.pt").unlink()
    assert not is_finished() and (tmp_path / "line-7.pt").exists()  # stopped half-way


def test_an_earlier_run_is_moved_aside(tmp_path, capsys):
    def at_last(step, run):
        (tmp_path / "sample-5.png").write_text(str(step))
        (tmp_path / "loss.png").write_text(str(step))

    fit_line(tmp_path, at_step=at_last)
    (tmp_path / "notes.txt").write_text("mine")
    fit_line(tmp_path, total=14, resume=True, at_step=at_last)
    names = {"line-7.pt", "line-12.pt", "line-14.pt", "metrics.csv", "held_out_metrics.csv", "sample-5.png", "loss.png"}
    before = {name: (tmp_path / name).read_bytes() for name in names}
    assert "earlier run" not in capsys.readouterr().out and not (tmp_path / "earlier-1").exists()
    fit_line(tmp_path, total=8)
    assert f"wrote is now in {tmp_path / 'earlier-1'}" in capsys.readouterr().out
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert {path.name: path.read_bytes() for path in (tmp_path / "earlier-1").iterdir()} == before
    assert {path.name for path in tmp_path.glob("*.pt")} == {"line-7.pt", "line-8.pt"}
    fit_line(tmp_path, total=8)
    assert (tmp_path / "earlier-2/line-8.pt").exists() and (tmp_path / "earlier-1/line-12.pt").exists()


def test_what_a_killed_run_left_half_written_is_deleted_and_nothing_else(tmp_path):
    left = {".line-9.pt.tmp", ".metrics.csv.tmp", ".held_out_metrics.csv.tmp"}
    for name in {".of the user.tmp", *left}:
        (tmp_path / name).write_text("half")
    fit_line(tmp_path)
    assert {path.name for path in tmp_path.glob(".*.tmp")} == {".of the user.tmp"}


def test_the_bar_shows_the_mean_loss_of_the_last_steps_and_does_not_fill_a_file(tmp_path, capsys):
    fit_line(tmp_path, total=100, seconds=0.02, sample_every=100, save_every=100)
    rows = [float(row["loss"]) for row in read_rows(tmp_path / "metrics.csv")]
    shown = capsys.readouterr().err
    assert f"loss={sum(rows[50:]) / 50:.4g}" in shown.splitlines()[-1]
    assert shown.count("\r") < 8


def test_a_loop_that_is_left_with_break_keeps_its_metrics(tmp_path):
    model, optimizers, training = make_line()
    with Run("line", model, optimizers, training, tmp_path) as run:
        for step, _ in run.steps(20):
            run.update(model(points()[:4]))
            if step == 2:
                break
    assert [row["step"] for row in read_rows(tmp_path / "metrics.csv")] == ["1", "2", "3"]


def test_a_body_without_an_update_is_refused(tmp_path):
    model, optimizers, training = make_line()
    with (
        pytest.raises(RuntimeError, match="without run.update"),
        Run("line", model, optimizers, training, tmp_path) as run,
    ):
        for step, _ in run.steps(20):
            if step == 3:
                continue
            run.update(model(points()))
    assert run.step == 3


def test_a_file_that_the_body_misses_is_no_fault_of_the_runs_folder(tmp_path):
    def read(step, run):
        open(tmp_path / "elsewhere" / "mine.txt")

    with pytest.raises(FileNotFoundError, match="mine.txt"):
        fit_line(tmp_path / "run", at_step=read)


def test_a_connection_that_the_body_misses_is_no_fault_of_the_runs_folder(tmp_path):
    def connect(step, run):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    with pytest.raises(ConnectionRefusedError):
        fit_line(tmp_path, at_step=connect)


def test_metrics_that_come_later_have_their_column(tmp_path):
    """A metric that is added to the code before a run goes on."""
    fit_line(tmp_path)
    model, optimizers, training = make_line(16)
    with Run("line", model, optimizers, training, tmp_path) as run:
        for step, index in run.steps(20, resume=True):
            run.update(model(points()[index]), double=2.0 * step)
    rows = read_numbers(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == list(range(1, 17))
    assert [row["double"] for row in rows[12:]] == [24, 26, 28, 30] and math.isnan(rows[0]["double"])
    plot_metrics(tmp_path, "line")
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_each_epoch_shows_each_image_once_however_many_processes(monkeypatch):
    seen = torch.cat([batch_index(step, 10, 4, 0) for step in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    large = torch.cat([batch_index(step, 3, 7, 0) for step in range(3)])  # of more images than there are
    assert large.view(7, 3).sort(dim=1).values.tolist() == [[0, 1, 2]] * 7
    parts = []
    for process in range(2):
        monkeypatch.setattr(utils.training, "num_processes", lambda: 2)
        monkeypatch.setattr(utils.training, "process_index", lambda process=process: process)
        parts.append(batch_index(2, 10, 4, 0))
    assert torch.equal(torch.cat(parts), seen[8:12])


def test_the_order_of_the_images_follows_the_seed():
    one, same, other = (torch.cat([batch_index(step, 40, 8, seed) for step in range(5)]) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_muon_is_torchs_but_for_its_precision():
    torch.manual_seed(0)
    shapes = [(6, 6), (12, 4), (4, 12)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    first = [p.detach().clone() for p in ours]
    settings = {"lr": 0.02, "weight_decay": 0.3}
    optimizers = Muon(ours, **settings), torch.optim.Muon(theirs, **settings, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        for p, q in zip(ours, theirs):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q, start in zip(ours, theirs, first):
        assert (p - q).norm() < 0.02 * (p - start).norm()  # bfloat16 has three digits


def test_muon_trains_the_filters_of_a_convolution_as_the_rows_of_a_matrix():
    torch.manual_seed(0)
    matrix = nn.Parameter(torch.randn(6, 18))
    filters = nn.Parameter(matrix.detach().view(6, 2, 3, 3).to(memory_format=torch.channels_last))
    optimizers = [Muon([p], 0.02) for p in (matrix, filters)]
    for _ in range(3):
        matrix.grad = torch.randn(6, 18)
        filters.grad = matrix.grad.view(6, 2, 3, 3).to(memory_format=torch.channels_last)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(filters.flatten(1), matrix)


def test_orthogonalized_matrices_have_singular_values_of_about_one():
    torch.manual_seed(0)
    matrix = torch.randn(8, 5) @ torch.diag(torch.tensor([1.0, 0.5, 0.3, 0.1, 0.05]))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalized(matrix, torch.float32)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6 and values.max() < 1.3
    assert (u.T @ found @ v.T - torch.diag((u.T @ found @ v.T).diag())).abs().max() < 1e-4


def test_building_a_model_fills_every_parameter_by_the_seed():
    first, again, other = (build_model(Line, LineConfig(), TrainingConfig(1, 1, 0.1, seed=s)) for s in (0, 0, 1))
    assert torch.equal(first.layer.weight, again.layer.weight)
    assert not torch.equal(first.layer.weight, other.layer.weight)
    assert not any(p.is_meta for p in first.parameters())


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"num_training_steps": 0},
        {"learning_rate": math.nan},
        {"ema_decay": 1.0},
        {"seed": -1},
        {"max_grad_norm": math.inf},
    ],
)
def test_training_numbers_that_are_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainingConfig(**{"num_training_steps": 1, "batch_size": 1, "learning_rate": 0.1, **wrong})


def test_checkpoints_are_checked(tmp_path):
    path = tmp_path / "dvae-10.pt"
    save_checkpoint(path, {"name": "dvae", "step": 10})
    with pytest.raises(UserError, match="without config, data, ema, "):
        load_checkpoint(path, "dvae")
    save_checkpoint(path, {**dict.fromkeys(CONTENTS), "name": "dvae", "step": 10})
    assert load_checkpoint(path, "dvae")["step"] == 10
    assert [file.name for file in tmp_path.iterdir()] == ["dvae-10.pt"]
    with pytest.raises(UserError, match="a dall_e checkpoint is needed"):
        load_checkpoint(path, "dall_e")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="half-written"):
        load_checkpoint(path, "dvae")
    with pytest.raises(UserError, match="no checkpoint"):
        find_checkpoint(str(tmp_path / "none.pt"), "dvae")


def test_a_loaded_model_has_the_average_is_in_evaluation_mode_and_frozen(tmp_path):
    checkpoint = load_checkpoint(fit_line(tmp_path), "line")
    model = load_model(checkpoint, Line, LineConfig)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, checkpoint["ema"][name]) and not torch.equal(tensor, checkpoint["model"][name])


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path):
    """Flushed to the disk, then renamed: a machine that loses its power leaves the old file or the new one."""
    events = []
    fsync, replace = os.fsync, os.replace
    with (
        mock.patch("os.fsync", lambda fd: (events.append("fsync"), fsync(fd))),
        mock.patch("os.replace", lambda a, b: (events.append("replace"), replace(a, b))),
    ):
        save_checkpoint(tmp_path / "line-1.pt", {"x": torch.zeros(3)})
    assert events == ["fsync", "replace"]


def test_fingerprints_tell_weights_and_names_apart():
    one = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    assert fingerprint(one.state_dict()) == fingerprint(one.state_dict())
    swapped = nn.ModuleDict({"b": one["a"], "a": one["b"]})
    renamed = nn.ModuleDict({"c": one["a"], "d": one["b"]})
    changed = nn.ModuleDict({"a": one["a"], "b": nn.Linear(2, 2)})
    assert len({fingerprint(model.state_dict()) for model in (one, swapped, renamed, changed)}) == 4


def test_the_newest_checkpoint_is_the_one_of_most_steps_whenever_it_was_written(tmp_path):
    assert newest_checkpoint(tmp_path, "dvae") is None
    for time, step in enumerate((1000, 200, 90)):
        save_checkpoint(tmp_path / f"dvae-{step}.pt", {})
        os.utime(tmp_path / f"dvae-{step}.pt", (time, time))
    (tmp_path / "dvae-2000.pt.old").write_text("")
    assert newest_checkpoint(tmp_path, "dvae").name == "dvae-1000.pt"
