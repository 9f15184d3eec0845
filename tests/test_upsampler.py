"""The up-sampler: what it is told, what its training is shown, that it learns, and how up-samplers follow a decoder."""

from dataclasses import replace

import pytest
import torch
from scripts import TINY, files_of, read_image, refused, script, succeeds
from stages import STAGES
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from lesson_17.diffusion_decoder import shrink
from lesson_17.diffusion_upsampler import UPSAMPLER_PRESETS, Upsampler, UpsamplerConfig, corrupt, upsample
from lesson_17.train_upsampler import evaluate
from lesson_17.unet import Attention
from lesson_17.upsample_mnist import load_upsamplers, upsample_all
from utils.checkpoints import CONTENTS, save_checkpoint
from utils.cli import UserError
from utils.data import DataSource
from utils.datasets import load_images
from utils.samples import write_images
from utils.training import batch_index

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
    monkeypatch.setattr("lesson_17.diffusion_upsampler.NOISE_STD", 0.0)
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
        loss = diffusion.loss(upsampler, x_0, shown)
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = upsample(upsampler.eval(), small, torch.randn_like(images), num_steps=10)
    by_hand = F.interpolate(small, size=(16, 16), mode="bicubic")
    assert drawn.min() >= 0 and drawn.max() <= 1
    assert (drawn - images).square().mean() < (by_hand - images).square().mean() / 2


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


def test_the_paper_preset_has_the_papers_size():
    with torch.device("meta"):
        upsampler = Upsampler(UPSAMPLER_PRESETS["paper"])
    millions = sum(p.numel() for p in upsampler.parameters()) / 1e6
    assert millions == pytest.approx(700, abs=150)  # appendix C; our U-Net has fewer blocks where levels meet


def save(upsampler, folder):
    name = f"upsampler_{upsampler.config.image_size}"
    (folder / name).mkdir(parents=True)
    made = {"name": name, "config": vars(upsampler.config), "model": upsampler.state_dict()}
    save_checkpoint(folder / name / f"{name}-1.pt", {**dict.fromkeys(CONTENTS), **made})


def test_up_samplers_are_found_for_as_long_as_there_is_one_that_doubles(tmp_path):
    with pytest.raises(UserError, match="train_upsampler.py --upsampled_size 16"):
        load_upsamplers(8, 3, tmp_path)
    for size in (16, 32):
        save(Upsampler(replace(UPSAMPLER, small_size=size // 2, image_size=size)), tmp_path)
    assert [u.config.image_size for u in load_upsamplers(8, 3, tmp_path)] == [16, 32]
    assert [u.config.image_size for u in load_upsamplers(16, 3, tmp_path)] == [32]
    with pytest.raises(UserError, match="of 3 channels, and these have 1"):
        load_upsamplers(8, 1, tmp_path)


def test_an_enlarged_image_is_a_function_of_its_image_and_seed(tmp_path):
    for size in (16, 32):
        upsampler = Upsampler(replace(UPSAMPLER, small_size=size // 2, image_size=size))
        for parameter in upsampler.parameters():
            nn.init.normal_(parameter, std=0.05)
        save(upsampler, tmp_path)
    upsamplers, small = load_upsamplers(8, 3, tmp_path), torch.rand(3, 3, 8, 8)
    images = upsample_all(upsamplers, small, [4, 5, 6], 3)
    assert images.shape == (3, 3, 32, 32)
    torch.testing.assert_close(upsample_all(upsamplers, small[1:2], [5], 3)[0], images[1], atol=1e-4, rtol=0)
    assert (upsample_all(upsamplers, small[1:2], [9], 3)[0] - images[1]).abs().max() > 1e-2


def test_its_training_sees_each_image_with_itself_made_small_blurred_and_noised(monkeypatch, tmp_path):
    train_set, test_set, _ = load_images(DataSource("mnist_5k"), tmp_path, "cpu")
    told, forward = [], Upsampler.forward

    def spy(self, x_t, t, small):
        told.append((self.training, small))
        return forward(self, x_t, t, small)

    monkeypatch.setattr(Upsampler, "forward", spy)
    succeeds(*STAGES["upsampler_28"], *TINY, "--num_training_steps", 2, "--output_dir", tmp_path)
    names = {"upsampler_28-2.pt", "sample-2.png", "metrics.csv", "held_out_metrics.csv", "loss.png"}
    assert files_of(tmp_path / "upsampler_28") == names
    training = [small for in_training, small in told if in_training]
    index = batch_index(0, len(train_set), 8, seed=0)
    clean = shrink(train_set.images(index), 14)
    padded = F.pad(clean, (1, 1, 1, 1), mode="replicate")
    blurred = gaussian_blur(padded, kernel_size=3, sigma=0.6)[:, :, 1:-1, 1:-1]
    assert len(training) == 2 and (training[0] - blurred).std() == pytest.approx(0.05, rel=0.1)
    # and so does the measure of its loss, in batches of the training's
    measured = [small for in_training, small in told if not in_training and len(small) == 8]
    clean = shrink(test_set.images(slice(8)), 14)
    assert (measured[0] - clean).std() > 0.03


def test_the_held_out_loss_is_of_all_images_whatever_the_batches(digits):
    upsampler = Upsampler(UpsamplerConfig(width=8)).eval()
    torch.manual_seed(0)
    one = evaluate(upsampler, digits[1].subset(slice(0, 500, 5)), 7)
    torch.manual_seed(1)
    assert one == pytest.approx(evaluate(upsampler, digits[1].subset(slice(0, 500, 5)), 100), rel=0.05)


@pytest.mark.parametrize("name", ["train_upsampler.py", "upsample_mnist.py"])
def test_help_explains_each_flag(name):
    assert "--output_dir" in succeeds(f"lesson_17/{name}", "--help").stdout


def test_what_cannot_be_enlarged_is_refused(tmp_path):
    enlarge = ("lesson_17/upsample_mnist.py", tmp_path, "--models", tmp_path)
    refused(script(*enlarge), "no samples.csv")
    write_images(torch.rand(2, 1, 14, 14), ["seven", "2"], [0, 1], tmp_path)
    refused(script(*enlarge), "no up-sampler for images of 14x14")
    write_images(torch.rand(1, 1, 7, 7), ["seven"], [0], tmp_path / "others")
    (tmp_path / "others/0000-seven.png").rename(tmp_path / "0000-seven.png")
    refused(script(*enlarge), "different sizes")
    write_images(torch.rand(1, 1, 28, 14), ["seven"], [0], tmp_path)
    refused(script(*enlarge), "14x28 pixels, and no squares")


def test_a_decoder_of_small_images_draws_them_and_they_are_enlarged(tmp_path):
    few = (*TINY, "--num_training_steps", 1, "--output_dir", tmp_path)
    sizes = ("--image_width", 16, "--image_layers", 1, "--dim", 16, "--num_layers", 1, "--width", 8, "--head_dim", 8)
    succeeds("lesson_17/train_mnist.py", *few, *sizes, "--decoder_image_size", 14)
    drawn = tmp_path / "drawn"
    draw = ("lesson_17/generate_mnist.py", "--models", tmp_path, "--prompts", "seven", "2", "--sampling_steps", 2)
    succeeds(*draw, "--output_dir", drawn)
    assert read_image(drawn / "0000-seven.png").shape == (1, 14, 14)
    refused(script("lesson_17/upsample_mnist.py", drawn, "--models", tmp_path), "no up-sampler for images of 14x14")
    succeeds("lesson_17/train_upsampler.py", *few, "--width", 8)
    succeeds("lesson_17/upsample_mnist.py", drawn, "--models", tmp_path, "--sampling_steps", 2)
    assert read_image(drawn / "upsampled/0001-2.png").shape == (1, 28, 28)
    assert (drawn / "upsampled/samples.csv").read_text() == (drawn / "samples.csv").read_text()  # and their seeds
    small = torch.stack([read_image(drawn / name) for name in ("0000-seven.png", "0001-2.png")]) / 255
    expected = upsample_all(load_upsamplers(14, 1, tmp_path), small, [0, 1], 2)
    for name, image in zip(("0000-seven.png", "0001-2.png"), expected):
        torch.testing.assert_close(read_image(drawn / "upsampled" / name) / 255, image, atol=3 / 255, rtol=0)
    refused(script("lesson_17/train_upsampler.py", *few, "--upsampled_size", 27), "is odd")


@pytest.mark.parametrize("seed", ["abc", "²", "-1", "1" * 19])
def test_a_seed_that_is_no_number_is_refused(seed, tmp_path):
    save(Upsampler(replace(UPSAMPLER, small_size=8, image_size=16)), tmp_path)
    write_images(torch.rand(1, 3, 8, 8), ["seven"], [seed], tmp_path / "drawn")
    refused(script("lesson_17/upsample_mnist.py", tmp_path / "drawn", "--models", tmp_path), f"seed '{seed}'")
