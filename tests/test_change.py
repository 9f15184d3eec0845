"""A learner's change: layers that are added to a model keep the first values that their own constructors give them, are trained,
and are in the checkpoint; and a config keeps its flags and its checks however its file writes annotations."""

import ast
import importlib

import pytest
import torch
from scripts import ROOT
from torch import nn
from torch.nn import functional as F

from utils.checkpoints import load_checkpoint, load_model
from utils.cli import TrainingParser, UserError
from utils.optimizers import make_optimizers
from utils.run import Run
from utils.training import TrainingConfig, build_model

CLIP_SIZES = {"clip_embed_dim": 8, "clip_text_width": 16, "clip_text_seq_len": 2}
U_NET_SIZES = {"width": 8, "width_multipliers": (1, 2), "image_size": 8}


def images(size=8):
    return torch.rand(4, 1, size, size)


def captions():
    return torch.tensor([[3, 0], [4, 0], [5, 0], [6, 0]])


def conditions():
    return F.normalize(torch.randn(4, 8), dim=-1), torch.randn(4, 2, 16)


def diffusion_loss(model, x_0, *conditions):
    return model.diffusion.loss(model, x_0, *conditions)


MODELS = {  # where each model is, itself and its config, small sizes, and its loss on a batch of four
    "dvae": (
        ("lesson_08/dvae.py", "DiscreteVAE", "DVAEConfig"),
        {"image_size": 8, "codebook_size": 8, "codebook_dim": 8, "hidden_dim": 8},
        lambda model: model(images(), 1.0, 1.0)[0],
    ),
    "dall_e": (
        ("lesson_08/dall_e.py", "DallE", "DallEConfig"),
        {"text_vocab_size": 10, "text_seq_len": 2, "image_vocab_size": 8, "grid_size": 2, "dim": 16, "num_layers": 2},
        lambda model: model(captions(), torch.randint(8, (4, 4)))[0],
    ),
    "clip": (
        ("lesson_17/clip.py", "CLIP", "CLIPConfig"),
        {"image_size": 8, "patch_size": 4, "image_width": 16, "text_vocab_size": 10, "text_seq_len": 2, "embed_dim": 8},
        lambda model: model(images(), captions(), torch.arange(4), torch.arange(4)[:, None])[0],
    ),
    "prior": (
        ("lesson_17/diffusion_prior.py", "DiffusionPrior", "PriorConfig"),
        {**CLIP_SIZES, "dim": 16, "num_layers": 1},
        lambda model: diffusion_loss(model, torch.randn(4, 8), *conditions()),
    ),
    "decoder": (
        ("lesson_17/diffusion_decoder.py", "Decoder", "DecoderConfig"),
        {**CLIP_SIZES, **U_NET_SIZES, "head_dim": 8},
        lambda model: diffusion_loss(model, images(), *conditions()),
    ),
    "upsampler": (
        ("lesson_17/diffusion_upsampler.py", "Upsampler", "UpsamplerConfig"),
        {**U_NET_SIZES, "small_size": 4},
        lambda model: diffusion_loss(model, images(), images(4)),
    ),
}
MODELS = {name: model for name, model in MODELS.items() if (ROOT / model[0][0]).exists()}  # a room can be missing
ADDED = ("gain", "normalize", "attention")
DIM = 64


def changed(model_class):
    """A model with three more parts, whose output goes into the model's own or into its loss."""

    class Changed(model_class):
        def __init__(self, config):
            super().__init__(config)
            self.gain = nn.Parameter(torch.full((DIM, 1, 1), 0.5))
            self.normalize = nn.BatchNorm2d(DIM)
            self.attention = nn.MultiheadAttention(DIM, 4, batch_first=True)
            self.given = {name: value.clone() for name, value in added(self).items()}

        def forward(self, *inputs, **options):
            output = super().forward(*inputs, **options)
            x = torch.linspace(-1, 1, 2 * DIM * 9, device=self.gain.device).view(2, DIM, 3, 3)
            x = (self.gain * self.normalize(x)).flatten(2).transpose(1, 2)
            more = self.attention(x, x, x)[0].square().mean()
            return (output[0] + more, *output[1:]) if isinstance(output, tuple) else output + more

    return Changed


def added(model):
    """What of a model's state belongs to the parts that were added."""
    return {name: value.detach() for name, value in model.state_dict().items() if name.split(".")[0] in ADDED}


def of(name):
    """A model's class, changed, its config, small, its loss, and a training of one step."""
    (file, model_class, config_class), sizes, loss = MODELS[name]
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    training = TrainingConfig(1, 4, 1e-2, warmup_steps=0, ema_decay=0.9, mixed_precision="no", num_threads=1, seed=5)
    return getattr(module, model_class), getattr(module, config_class), sizes, loss, training


@pytest.mark.parametrize("name", MODELS)
def test_added_parts_begin_with_the_values_of_their_own_constructors(name):
    model_class, config_class, sizes, _, training = of(name)
    model = build_model(changed(model_class), config_class(**sizes), training)
    assert (model.gain == 0.5).all()
    for key, value in added(model).items():
        torch.testing.assert_close(value.cpu(), model.given[key], rtol=0, atol=0)
    b = model.normalize
    assert (b.weight == 1).all() and (b.bias == 0).all() and (b.running_mean == 0).all() and (b.running_var == 1).all()
    a, fresh = model.attention, nn.MultiheadAttention(DIM, 4)
    assert (a.in_proj_bias == 0).all() and (a.out_proj.bias == 0).all()
    for ours, theirs in ((a.in_proj_weight, fresh.in_proj_weight), (a.out_proj.weight, fresh.out_proj.weight)):
        assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.05)
        assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.05)  # of uniform ones
        assert ours.mean().abs() < 0.1 * ours.std()
    # and the rest begins as it would without them
    unchanged = build_model(model_class, config_class(**sizes), training).state_dict()
    for key, value in model.state_dict().items():
        assert key.split(".")[0] in ADDED or torch.equal(value, unchanged[key]), key


@pytest.mark.parametrize("name", MODELS)
def test_added_parts_are_trained_and_kept(name, tmp_path):
    model_class, config_class, sizes, loss, training = of(name)
    model = build_model(changed(model_class), config_class(**sizes), training)
    blocks = [module for module in model.modules() if type(module).__name__ == "Block"]
    with Run(name, model, make_optimizers(model, training, blocks), training, tmp_path) as run:
        for _ in run.steps(4):
            with run.autocast():
                value = loss(model)
            run.update(value)
            with run.evaluation() as averaged:
                expected = loss(averaged)
            run.save()
    checkpoint = load_checkpoint(tmp_path / f"{name}-1.pt", name)
    for kept in (checkpoint["model"], checkpoint["ema"]):
        assert kept.keys() >= model.given.keys()
        for key, first in model.given.items():
            assert kept[key].isfinite().all() and not torch.equal(kept[key], first), key
            torch.testing.assert_close(kept[key], added(model)[key].cpu())
    loaded = load_model(checkpoint, changed(model_class), config_class).to(run.device)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    torch.manual_seed(training.seed)
    torch.testing.assert_close(loss(loaded), expected)
    with pytest.raises(UserError, match="another version"):
        load_model(checkpoint, model_class, config_class)  # without the parts


def with_string_annotations(file, folder):
    """The module of a copy of a file whose annotations are strings."""
    source = (ROOT / file).read_text()
    lines, docstring = source.splitlines(keepends=True), ast.parse(source).body[0]
    lines.insert(docstring.end_lineno, "\nfrom __future__ import annotations\n")
    copy = f"copy_of_{file.split('/')[1].removesuffix('.py')}"
    (folder / f"{copy}.py").write_text("".join(lines))
    return importlib.import_module(copy)


@pytest.mark.parametrize("name", MODELS)
def test_string_annotations_change_neither_flags_nor_checks(name, tmp_path, monkeypatch):
    (file, _, config_class), _, _ = MODELS[name]
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    original, copy = of(name)[1], getattr(with_string_annotations(file, tmp_path), config_class)
    assert all(isinstance(kind, str) for kind in copy.__annotations__.values())

    def parser_of(config):
        training = TrainingConfig(3, 4, 1e-2)
        return TrainingParser(
            "A training.", {name: ({"small": config()}, {"small": training})}, tmp_path, {"image_size"}
        )

    def flags_of(parser):
        return {action.dest: (action.type, action.choices, type(action)) for action in parser._actions}

    parser, flags = parser_of(copy), flags_of(parser_of(original))
    assert flags_of(parser) == flags and flags["num_training_steps"][0] is int and "image_size" not in flags
    of_model = [field for field in copy.__dataclass_fields__ if field in flags]
    numbers = [field for field in of_model if flags[field][0] in (int, float)]
    assert len(numbers) > 4 and {flags[field][0] for field in of_model} <= {int, float, str, None}
    for field in numbers:
        with pytest.raises(UserError):
            parser.configs(parser.parse_args([f"--{field}", "-1"]))
        value = getattr(copy(), field)
        (config, _) = parser.configs(parser.parse_args([f"--{field}", str(value)]))[name]
        assert type(getattr(config, field)) is type(value) and config == copy()


def test_a_config_of_ones_own_gets_a_flag_for_each_number(tmp_path, monkeypatch, capsys):
    (tmp_path / "config_of_ones_own.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Config:\n"
        "    width: int = 4\n"
        "    gain: float = 0.5\n"
        "    turned: bool = False\n"
        "    kind: str = 'round'\n"
        "    corners: tuple[int, ...] = (1, 2)\n"
        "    def __post_init__(self):\n"
        "        if self.width < 1:\n"
        "            raise ValueError('width is 1 or more.')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    config_class = importlib.import_module("config_of_ones_own").Config
    stages = {"shape": ({"small": config_class()}, {"small": TrainingConfig(3, 4, 1e-2)})}
    parser = TrainingParser("A training.", stages, tmp_path, set())
    args = parser.parse_args(["--width", "7", "--gain", "2", "--turned", "--kind", "flat", "--batch_size", "9"])
    config, training = parser.configs(args)["shape"]
    assert config == config_class(7, 2.0, True, "flat") and type(config.gain) is float and training.batch_size == 9
    assert parser.configs(parser.parse_args([]))["shape"][0] == config_class()
    for wrong in (["--width", "7.5"], ["--gain", "much"], ["--turned", "no"], ["--corners", "3"]):
        with pytest.raises(SystemExit) as stopped:
            parser.parse_args(wrong)
        assert stopped.value.code == 2
    assert "invalid int value: '7.5'" in capsys.readouterr().err
    with pytest.raises(UserError, match="width is 1 or more"):
        parser.configs(parser.parse_args(["--width", "0"]))
    assert "(default: 0.5)" in " ".join(parser.format_help().split())
