"""Training steps and drawing on a GPU, told from the meta device, which has shapes and no values: whoever looks at a value
there, or mixes devices, fails. On a GPU the first would wait for all that was asked of it before.
"""

import contextlib
from functools import partial

import pytest
import torch
from tqdm import tqdm

from lesson_08.dall_e import DallE, DallEConfig
from lesson_08.dvae import DiscreteVAE, DVAEConfig
from lesson_17.clip import CLIP, CLIPConfig
from lesson_17.diffusion_decoder import Decoder, DecoderConfig, decode_image_embed, to_x_0
from lesson_17.diffusion_prior import DiffusionPrior, PriorConfig, draw_image_embed
from utils.optimizers import make_optimizers
from utils.run import Run
from utils.training import TrainingConfig

on_meta = partial(torch.zeros, device="meta")
IMAGES, NUMBERS = on_meta(4, 1, 28, 28), on_meta(4, dtype=torch.long)
EMBED, ENCODINGS = on_meta(4, 64), on_meta(4, 7, 64)


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """The meta device has none."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())


def made(model_class, config):
    with torch.device("meta"):
        return model_class(config)


def train(model, blocks, loss, tmp_path):
    """Two steps, as they are taken in a run."""
    training = TrainingConfig(100, 4, 1e-3, mixed_precision="bf16", ema_decay=0.9)
    run = Run("model", model, make_optimizers(model, training, blocks), training, tmp_path)
    run.progress = tqdm(disable=True)
    for _ in range(2):
        value, metrics = loss()
        run.update(value, **metrics)
        assert value.is_meta and all(metric.is_meta for metric in metrics.values())


def noise(shape):
    return torch.randn(shape)  # on the CPU, as SeededNoise is


def test_the_dvae(tmp_path):
    dvae = made(DiscreteVAE, DVAEConfig())
    train(dvae, [], lambda: dvae(IMAGES, tau=0.5, kl_weight=1.0), tmp_path)
    assert dvae.decode(dvae.encode(IMAGES)).is_meta


def test_the_transformer(tmp_path):
    dall_e = made(DallE, DallEConfig())
    text, image = (on_meta(4, n, dtype=torch.long) for n in (dall_e.config.text_seq_len, dall_e.config.image_seq_len))
    train(dall_e, dall_e.blocks, lambda: dall_e(text, image), tmp_path)
    dall_e.eval()
    for how in ({"top_k": 5, "top_p": 0.9, "guidance_scale": 1.3}, {"temperature": 0}, {"prefix": image[:, :3]}):
        assert dall_e.generate(text, num_tokens=5, **how).is_meta


def test_clip(tmp_path):
    clip = made(CLIP, CLIPConfig())
    tokens = on_meta(4, clip.config.text_seq_len, dtype=torch.long)
    blocks = [*clip.image_encoder.blocks, *clip.text_encoder.blocks]
    train(clip, blocks, lambda: clip(IMAGES, tokens, NUMBERS, NUMBERS[:, None]), tmp_path)
    clip.clip_logit_scale()
    assert clip.encode_image(IMAGES).is_meta and clip.encode_text(tokens)[0].is_meta


def test_the_prior(tmp_path):
    prior = made(DiffusionPrior, PriorConfig())
    prior.fit_scale(EMBED)
    train(
        prior, prior.blocks, lambda: (prior.diffusion.loss(prior, prior.scale(EMBED), EMBED, ENCODINGS), {}), tmp_path
    )
    prior.eval()
    assert draw_image_embed(prior, EMBED, ENCODINGS, 1.5, 3, noise).is_meta


def test_the_decoder(tmp_path):
    decoder = made(Decoder, DecoderConfig())
    train(decoder, [], lambda: (decoder.diffusion.loss(decoder, to_x_0(IMAGES), EMBED, ENCODINGS), {}), tmp_path)
    decoder.eval()
    for eta in (0.0, 0.5, 1.0):
        assert decode_image_embed(decoder, EMBED, ENCODINGS, IMAGES, 1.5, 3, eta=eta, randn=noise).is_meta


def test_the_up_sampler(tmp_path):
    module = pytest.importorskip("lesson_17.diffusion_upsampler", reason="no up-samplers here")
    upsampler, small = made(module.Upsampler, module.UpsamplerConfig()), IMAGES[..., :14, :14]
    loss = upsampler.diffusion.loss
    train(upsampler, [], lambda: (loss(upsampler, to_x_0(IMAGES), module.corrupt(small)), {}), tmp_path)
    assert module.upsample(upsampler, small, IMAGES, 3).is_meta


def test_edits():
    module = pytest.importorskip("lesson_17.edit_mnist", reason="no edits here")
    decoder = made(Decoder, DecoderConfig()).eval()
    network = module.guided(decoder, 1.5, EMBED, ENCODINGS)
    assert module.invert(decoder.diffusion, network, IMAGES, 3).is_meta
    known = module.outside([4, 4, 14, 24], IMAGES)
    assert module.repaint(decoder.diffusion, network, IMAGES, known, 3, 2, noise, 1.0).is_meta


@pytest.mark.parametrize("device, dtype", [("cpu", torch.bfloat16), ("meta", torch.float32)])
def test_the_residual_stream_is_in_bfloat16_on_a_cpu_only(device, dtype, monkeypatch):
    with torch.device(device):
        dall_e = DallE(DallEConfig()).eval()
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device_type: torch.bfloat16)
    monkeypatch.setattr(dall_e, "blocks", torch.nn.ModuleList())
    monkeypatch.setattr(dall_e, "norm", torch.nn.Identity())
    assert dall_e.transformer(torch.zeros(1, 3, dall_e.config.dim, device=device)).dtype == dtype
