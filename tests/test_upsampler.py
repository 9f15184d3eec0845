"""The up-sampler: what it is told, what its training is shown, that it learns, and how up-samplers follow a decoder."""

from dataclasses import replace

import pytest
import torch
from diffusion_upsampler import UPSAMPLER_PRESETS, Upsampler, UpsamplerConfig, corrupt, shrink, upsample
from layout import assert_laid_out_and_filled
from pipeline import doublings, load_upsamplers
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur
from unet import Attention

from utils.checkpoints import CONTENTS, save_checkpoint
from utils.cli import UserError

UPSAMPLER = UpsamplerConfig(small_size=8, image_size=16, image_channels=3, width=8, width_multipliers=(1, 2))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_it_starts_from_nothing_and_has_convolutions_only():
    upsampler = Upsampler(UPSAMPLER)
    out = upsampler(torch.randn(2, 3, 16, 16), torch.tensor([1, 1000]), torch.rand(2, 3, 8, 8))
    assert out.shape == (2, 3, 16, 16) and (out == 0).all()
    assert not any(isinstance(module, Attention) for module in upsampler.modules())


def test_it_reads_all_it_is_told():
    upsampler = Upsampler(UPSAMPLER).eval()
    for parameter in upsampler.parameters():  # its output starts as zero, which would hide everything
        nn.init.normal_(parameter, std=0.2)
    x_t, t, small = torch.randn(2, 3, 16, 16), torch.tensor([50, 700]), torch.rand(2, 3, 8, 8)
    out = upsampler(x_t, t, small)
    for changed in (upsampler(x_t + 1, t, small), upsampler(x_t, t + 10, small), upsampler(x_t, t, 1 - small)):
        assert (changed - out).abs().max() > 1e-4


def test_shrinking_takes_the_mean_of_the_pixels_and_leaves_images_of_that_size_alone():
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(shrink(images, 8), images.view(2, 3, 8, 2, 8, 2).mean(dim=(3, 5)))
    assert torch.equal(shrink(images, 16), images)


def test_corruption_is_the_papers_blur_and_a_little_noise(monkeypatch):
    small = torch.rand(2, 3, 14, 14)
    noise = corrupt(torch.full((100, 1, 14, 14), 0.5)) - 0.5
    assert noise.std() == pytest.approx(0.05, rel=0.05) and noise.mean().abs() < 1e-3
    monkeypatch.setattr("diffusion_upsampler.NOISE_STD", 0.0)
    theirs = gaussian_blur(small, kernel_size=3, sigma=0.6)
    torch.testing.assert_close(corrupt(small)[:, :, 1:-1, 1:-1], theirs[:, :, 1:-1, 1:-1])  # edges are padded otherwise
    torch.testing.assert_close(corrupt(torch.full((1, 3, 14, 14), 0.3)), torch.full((1, 3, 14, 14), 0.3))


def test_it_learns_to_enlarge_better_than_by_hand():
    upsampler = Upsampler(replace(UPSAMPLER, image_channels=1))
    diffusion, optimizer = upsampler.diffusion, torch.optim.AdamW(upsampler.parameters())
    images = torch.zeros(2, 1, 16, 16)
    images[0, :, 3:12, 4:11] = 1  # edges that fall within pixels of the small images
    images[1, :, :, 7:10] = 1
    small, steps = shrink(images, 8), 120
    for step in range(steps):
        x_0, shown = (2 * images - 1).repeat(8, 1, 1, 1), corrupt(small.repeat(8, 1, 1, 1))
        t, eps = torch.randint(1, 1001, (16,)), torch.randn_like(x_0)
        predicted = upsampler(diffusion.q_sample(x_0, t, eps), t, shown)
        loss = F.mse_loss(predicted, diffusion.target(x_0, t, eps))
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = upsample(upsampler.eval(), small, torch.randn_like(images), num_steps=10)
    by_hand = F.interpolate(small, size=(16, 16), mode="bicubic")
    assert drawn.min() >= 0 and drawn.max() <= 1
    assert (drawn - images).square().mean() < (by_hand - images).square().mean() / 2


@pytest.mark.parametrize(
    "size, image_size, pairs", [(14, 28, [(14, 28)]), (32, 128, [(32, 64), (64, 128)]), (28, 28, [])]
)
def test_up_samplers_double_until_the_images_are_as_large_as_the_datas(size, image_size, pairs):
    assert doublings(size, image_size) == pairs


@pytest.mark.parametrize("size", [1, 10, 29, 56])
def test_sizes_that_do_not_double_to_the_datas_are_refused(size):
    with pytest.raises(UserError, match="28x28"):
        doublings(size, 28)


def test_up_samplers_are_found_and_where_one_is_missing_or_does_not_fit_a_sentence_says_so(tmp_path):
    data = {"dataset": "my images", "image_size": 32, "image_channels": 3}
    decoder = {"config": {"image_size": 8, "image_channels": 3}, "data": data}
    missing = (
        "no up-sampler to 32x32 yet; run train_mnist.py --stage upsampler --decoder_image_size 8 --dataset 'my images'"
    )
    for size in (16, 32):
        with pytest.raises(UserError, match=missing if size == 32 else "no up-sampler to 16x16"):
            load_upsamplers(decoder, None, tmp_path)
        folder = tmp_path / f"upsampler_{size}"
        folder.mkdir(parents=True)
        upsampler = Upsampler(replace(UPSAMPLER, small_size=size // 2, image_size=size))
        made = {"name": folder.name, "config": vars(upsampler.config), "model": upsampler.state_dict()}
        save_checkpoint(folder / f"{folder.name}-1.pt", {**dict.fromkeys(CONTENTS), **made})
    files = [str(tmp_path / f"upsampler_{size}/upsampler_{size}-1.pt") for size in (16, 32)]
    found = load_upsamplers(decoder, None, tmp_path)
    assert list(found) == files and [u.config.image_size for u in found.values()] == [16, 32]
    assert list(load_upsamplers(decoder, files, tmp_path)) == files
    assert load_upsamplers({"config": {"image_size": 32}, "data": data}, None, tmp_path) == {}
    with pytest.raises(UserError, match="2 up-samplers, and 1 are given"):
        load_upsamplers(decoder, files[:1], tmp_path)
    with pytest.raises(UserError, match="upsampler_16 checkpoint is needed"):
        load_upsamplers(decoder, files[::-1], tmp_path)
    with pytest.raises(UserError, match="of 3 channels, and the decoder draws 1"):
        load_upsamplers({**decoder, "config": {"image_size": 8, "image_channels": 1}}, None, tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: 0} for name in ("small_size", "image_size", "image_channels", "width", "num_blocks", "num_timesteps")),
        {"width": 9},
        {"width_multipliers": ()},
        {"schedule": "none"},
    ],
)
def test_impossible_up_samplers_are_refused(wrong):
    with pytest.raises(ValueError):
        UpsamplerConfig(**wrong)


def test_it_is_laid_out_without_memory_and_filled_part_by_part():
    assert_laid_out_and_filled(Upsampler, UPSAMPLER)


def test_the_paper_preset_has_the_papers_size():
    with torch.device("meta"):
        upsampler = Upsampler(UPSAMPLER_PRESETS["paper"])
    millions = sum(p.numel() for p in upsampler.parameters()) / 1e6
    assert millions == pytest.approx(700, abs=150)  # appendix C; our U-Net has fewer blocks where levels meet
