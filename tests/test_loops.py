"""What the loops of the six trainings hand to their models, step by step, and how their optimizers share the weights."""

import math

import pytest
import torch
from scripts import ROOT, TINY, succeeds
from stages import STAGES

from lesson_08.dall_e import DallE, DallEConfig
from lesson_08.dvae import DiscreteVAE, DVAEConfig, kl_weight_schedule, tau_schedule
from lesson_17.clip import CLIP, CLIPConfig
from lesson_17.diffusion import Diffusion
from lesson_17.diffusion_decoder import Decoder, DecoderConfig, shrink
from lesson_17.diffusion_prior import DiffusionPrior
from lesson_17.frozen_clip import FrozenCLIP
from utils.bpe import Tokenizer
from utils.checkpoints import load_checkpoint, load_model
from utils.data import DataSource
from utils.datasets import load_images
from utils.datasets.mnist import DIGIT_CAPTIONS
from utils.optimizers import make_optimizers
from utils.training import TrainingConfig, batch_index

STEPS, BATCH = 12, 8


@pytest.fixture(scope="module")
def train_set():
    return load_images(DataSource("mnist_5k"), ROOT, "cpu")[0]


def batches(train_set):
    """Images and labels of each step, as the order of the images has them."""
    index, labels = (
        [batch_index(step, len(train_set), BATCH, seed=0) for step in range(STEPS)],
        train_set.caption_ids[:, 0],
    )
    return [(train_set.images(i), labels[i]) for i in index]


@pytest.fixture
def handed_over(monkeypatch, earlier_stages, tmp_path):
    """Runs a training and returns the arguments of each call of its model in training."""

    def run(name, model_class, *flags):
        calls, forward = [], model_class.forward

        def spy(self, *args, **kwargs):
            if self.training:
                calls.append((*args, *kwargs.values()))
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(model_class, "forward", spy)
        steps = ("--num_training_steps", STEPS, *flags)
        succeeds(*STAGES[name], *TINY, *steps, *earlier_stages.get(name, []), "--output_dir", tmp_path)
        assert len(calls) == STEPS
        return calls

    return run


def prompts_of(tokenizer, text_tokens):
    """What captions say: their tokens put together."""
    rows = ["".join(tokenizer.bpe.id_to_token(i) for i in row if i) for row in text_tokens.tolist()]
    return [row.removeprefix("\u0120") for row in rows]  # how byte-level BPE writes a blank


def assert_said_of(prompts, labels):
    assert all(prompt in DIGIT_CAPTIONS[label::10] for prompt, label in zip(prompts, labels.tolist()))


def test_the_dvae_sees_the_images_and_the_schedules_of_their_step(handed_over, train_set):
    for step, ((images, tau, kl_weight), (expected, _)) in enumerate(
        zip(handed_over("dvae", DiscreteVAE), batches(train_set))
    ):
        assert torch.equal(images, expected)
        assert tau == tau_schedule(step / STEPS) and kl_weight == kl_weight_schedule(step / STEPS)


def test_dall_e_sees_each_images_tokens_with_its_caption(handed_over, train_set, earlier_stages):
    calls = handed_over("dall_e", DallE)
    dvae = load_model(load_checkpoint(earlier_stages["dall_e"][1], "dvae"), DiscreteVAE, DVAEConfig)
    said = set()
    for (text_tokens, image_tokens), (images, labels) in zip(calls, batches(train_set)):
        assert torch.equal(image_tokens, dvae.encode(images))
        prompts = prompts_of(Tokenizer.train(DIGIT_CAPTIONS), text_tokens)
        assert_said_of(prompts, labels)
        said |= {prompt.isdigit() for prompt in prompts}
    assert said == {True, False}


def test_clip_sees_each_image_with_its_caption_and_its_scale_stays_limited(
    handed_over, train_set, monkeypatch, tmp_path
):
    init = CLIP.__init__

    def high(self, config):
        init(self, config)
        torch.nn.init.constant_(self.logit_scale, 10.0)

    monkeypatch.setattr(CLIP, "__init__", high)
    monkeypatch.setattr(torch.nn.functional, "grid_sample", lambda images, grid, **how: 1 - images)  # as distorted
    for (images, text_tokens, caption, caption_ids), (expected, labels) in zip(
        handed_over("clip", CLIP), batches(train_set)
    ):
        assert torch.equal(images, 1 - expected) and torch.equal(caption_ids, torch.stack([labels, labels + 10], dim=1))
        prompts = prompts_of(Tokenizer.train(DIGIT_CAPTIONS), text_tokens)
        assert prompts == [DIGIT_CAPTIONS[i] for i in caption]
        assert_said_of(prompts, labels)
    checkpoint = load_checkpoint(tmp_path / f"clip/clip-{STEPS}.pt", "clip")
    assert checkpoint["model"]["logit_scale"] <= math.log(100) + 1e-6


@pytest.mark.parametrize("name, number", [("dvae", 29), ("dall_e", 8), ("clip", 12), ("prior", 4), ("decoder", 42)])
def test_the_trainings_have_muon_for_the_matrices_and_filters_of_their_blocks(name, number, earlier_stages, tmp_path):
    few = ("--num_training_steps", 1, *earlier_stages.get(name, []), "--output_dir", tmp_path)
    succeeds(*STAGES[name], *TINY, *few)
    (path,) = tmp_path.rglob(f"{name}-1.pt")
    muon, adamw = torch.load(path)["optimizers"]
    assert len(muon["state"]) == number and muon["param_groups"][0]["momentum"] == 0.95
    assert "betas" in adamw["param_groups"][0]


def frozen_clip(earlier_stages):
    return FrozenCLIP.load(str(earlier_stages["prior"][1]))


def nearest_prompts(encodings, table):
    """Which of DIGIT_CAPTIONS each caption's encodings (B, T, D) are those of."""
    distances = torch.cdist(encodings.flatten(1), table.flatten(1))
    assert distances.min(dim=1).values.max() < 1e-3
    return [DIGIT_CAPTIONS[i] for i in distances.argmin(dim=1)]


@pytest.fixture
def noised(monkeypatch):
    """What q_sample was given and what it gave in the steps of a training, as they are made: x_0, t, eps, x_t."""
    steps, q_sample = [], Diffusion.q_sample

    def spy(self, x_0, t, eps):
        x_t = q_sample(self, x_0, t, eps)
        if torch.is_grad_enabled():  # and not of held-out images
            steps.append((x_0, t, eps, x_t))
        return x_t

    monkeypatch.setattr(Diffusion, "q_sample", spy)
    return steps


def assert_timesteps_and_noise(noised):
    """Every timestep of three comes, but 0, and the noise is Gaussian."""
    assert len(noised) == STEPS
    assert set(torch.cat([t for _, t, _, _ in noised]).tolist()) == {1, 2, 3}
    assert torch.cat([eps.flatten() for _, _, eps, _ in noised]).std() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name, model_class", [("prior", DiffusionPrior), ("decoder", Decoder)])
def test_diffusion_sees_every_timestep_but_0_and_each_caption_with_its_image(
    name, model_class, handed_over, noised, train_set, earlier_stages
):
    calls = handed_over(name, model_class, "--num_timesteps", 3)
    assert_timesteps_and_noise(noised)
    clip = frozen_clip(earlier_stages)
    text_embed, encodings = clip.encode_prompts(DIGIT_CAPTIONS, "cpu")
    for call, (x_0, t, _, x_t), (images, labels) in zip(calls, noised, batches(train_set)):
        assert torch.equal(call[0], x_t) and torch.equal(call[1], t)
        prompts = nearest_prompts(call[3], encodings)
        assert_said_of(prompts, labels)
        image_embed = clip.model.encode_image(images)
        if name == "decoder":
            torch.testing.assert_close(call[2], image_embed, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(x_0, 2 * images - 1)
        else:
            torch.testing.assert_close(call[2], text_embed[[DIGIT_CAPTIONS.index(prompt) for prompt in prompts]])
            all_embed = clip.encode_images(train_set)
            scaled = (image_embed - all_embed.mean(dim=0)) / all_embed.std(dim=0)
            torch.testing.assert_close(x_0, scaled, rtol=1e-2, atol=1e-2)


def test_a_decoder_of_smaller_images_learns_them(handed_over, noised, train_set):
    handed_over("decoder", Decoder, "--decoder_image_size", 14)
    for (x_0, _, _, _), (images, _) in zip(noised, batches(train_set)):
        torch.testing.assert_close(x_0, 2 * shrink(images, 14) - 1)


def test_the_decoder_learns_more_of_noisy_timesteps_unless_told_otherwise(handed_over, noised):
    for flag in ("--noisy_timesteps", "--no-noisy_timesteps"):
        small = ("--decoder_image_size", 14, "--width", 8, "--head_dim", 8)
        handed_over("decoder", Decoder, "--batch_size", 200, *small, flag)
    noisy, uniform = (torch.cat([t for _, t, _, _ in steps]) for steps in (noised[:STEPS], noised[STEPS:]))
    assert (noisy > 500).float().mean() == pytest.approx(0.66, abs=0.06)
    assert (uniform > 500).float().mean() == pytest.approx(0.5, abs=0.06)


def assert_shared_out(model, optimizers, by_muon):
    """Muon trains the parameters of these names and AdamW all others, once each; decay is for what has two dimensions."""
    names = {id(p): name for name, p in model.named_parameters()}
    muon, adamw = optimizers
    assert [type(optimizer).__name__ for optimizer in optimizers] == ["Muon", "AdamW"]
    parts = [[names[id(p)] for group in o.param_groups for p in group["params"]] for o in optimizers]
    assert sorted(parts[0] + parts[1]) == sorted(names.values())
    assert set(parts[0]) == set(by_muon)
    for group in [*muon.param_groups, *adamw.param_groups]:
        decays = {p.ndim > 1 for p in group["params"]}
        assert decays == {group["weight_decay"] == 0.3}


TRAINING = TrainingConfig(1, 1, 0.1, weight_decay=0.3)


def test_muon_trains_the_matrices_of_dall_es_blocks_and_nothing_else():
    model = DallE(DallEConfig(dim=16, num_layers=2))
    layers = ("attention.to_qkv", "attention.to_out", "mlp.0", "mlp.2")
    matrices = [f"blocks.{i}.{layer}.weight" for i in range(2) for layer in layers]
    assert_shared_out(model, make_optimizers(model, TRAINING, model.blocks), matrices)


def test_muon_trains_the_filters_of_the_dvaes_blocks_and_nothing_else():
    model = DiscreteVAE(DVAEConfig(hidden_dim=8, codebook_size=16))
    outside = {"encoder.0", "encoder.7", "codebook", "decoder.6"}  # the first convolution, the logits, the pixels
    assert outside <= {name for name, _ in model.named_modules()}
    filters = {name for name, p in model.named_parameters() if p.ndim > 1 and name[: -len(".weight")] not in outside}
    assert {"encoder.1.residual.1.weight", "encoder.3.skip.weight", "decoder.0.residual.7.weight"} <= filters
    assert_shared_out(model, make_optimizers(model, TRAINING, model.blocks), filters)


def test_muon_trains_the_matrices_of_clips_blocks_and_nothing_else():
    model = CLIP(CLIPConfig(image_width=16, image_layers=1, text_width=16, text_layers=1))
    layers = ("attention.to_qkv", "attention.to_out", "mlp.0", "mlp.2")
    matrices = [f"{encoder}_encoder.blocks.0.{layer}.weight" for encoder in ("image", "text") for layer in layers]
    blocks = [*model.image_encoder.blocks, *model.text_encoder.blocks]
    assert_shared_out(model, make_optimizers(model, TRAINING, blocks), matrices)


def test_muon_trains_the_matrices_and_filters_of_the_decoders_blocks_and_nothing_else():
    model = Decoder(DecoderConfig(width=8, width_multipliers=(1, 2), head_dim=8))
    inside = {name for name, p in model.named_parameters() if name.startswith(("unet.down", "unet.middle", "unet.up"))}
    matrices = {name for name in inside if model.get_parameter(name).ndim > 1}
    assert "unet.middle.0.attention.to_qkv.weight" in matrices and "unet.up.0.block.conv_1.weight" in matrices
    assert_shared_out(model, make_optimizers(model, TRAINING, model.unet.blocks), matrices)


def test_what_has_no_blocks_is_trained_by_adamw_and_numbers_without_dimension_too():
    model = DiscreteVAE(DVAEConfig(hidden_dim=8, codebook_size=16))
    model.scale = torch.nn.Parameter(torch.tensor(1.0))
    (adamw,) = make_optimizers(model, TRAINING)
    trained = [p for group in adamw.param_groups for p in group["params"]]
    assert len(trained) == len(list(model.parameters())) and any(p is model.scale for p in trained)
    for group in adamw.param_groups:
        assert all((p.ndim > 1) == (group["weight_decay"] == 0.3) for p in group["params"])
