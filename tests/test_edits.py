"""Edits: inversion and inpainting in numbers, the arc between embeddings, and that each mode does what it says."""

import math

import pytest
import torch
from PIL import Image
from scripts import ROOT, refused, script, succeeds
from torch.nn import functional as F

from lesson_17.diffusion import Diffusion
from lesson_17.edit_mnist import (
    choose_images,
    decode,
    inpaint,
    invert,
    outside,
    principal_components,
    repaint,
    slerp,
    split,
    text_difference,
)
from lesson_17.pipeline import Pipeline
from utils.cli import UserError
from utils.datasets.mnist import DIGIT_WORDS


@pytest.fixture
def in_float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.load(pretrained="mnist")


@pytest.fixture
def threes(digits):
    return choose_images(digits[1], ["3"] * 3, seed=0)


def gaussian_network(diffusion, mean, std):
    """What a perfect network predicts for data of N(mean, std^2): the posterior mean of x_0."""

    def predict(x, t):
        signal, noise = diffusion.at(t, x)
        return mean + signal * std**2 / (signal**2 * std**2 + noise**2) * (x - signal * mean)

    return predict


@pytest.mark.parametrize("num_steps", [20, 50])
def test_inverted_and_sampled_it_returns(num_steps, in_float64):
    diffusion = Diffusion(1000, prediction="x_0")
    predict = gaussian_network(diffusion, 0.3, 0.5)
    x_0 = torch.randn(100, 1) * 0.5 + 0.3
    x_T = invert(diffusion, predict, x_0, num_steps, num_iterations=20)
    torch.testing.assert_close(diffusion.sample(predict, x_T, num_steps), x_0)
    assert x_T.std() == pytest.approx(1.0, abs=0.3)


def correlated_network(diffusion, covariance):
    """What a perfect network predicts for data of N(0, covariance)."""

    def predict(x, t):
        a_t, b_t = diffusion.at(t[:1], x)
        gain = a_t * covariance @ torch.linalg.inv(a_t**2 * covariance + b_t**2 * torch.eye(len(covariance)))
        return x @ gain.T

    return predict


def test_inpainting_keeps_what_is_known_and_draws_the_rest_to_fit(in_float64):
    diffusion, rho = Diffusion(1000, prediction="x_0"), 0.9
    predict = correlated_network(diffusion, torch.tensor([[1.0, rho], [rho, 1.0]]))
    x_0, known = torch.tensor([[1.5, 100.0]]).repeat(5000, 1), torch.tensor([True, False])
    torch.manual_seed(0)
    means = {}
    for num_repeats in (1, 10):
        x = repaint(diffusion, predict, x_0, known, 100, num_repeats)
        assert torch.equal(x[:, 0], x_0[:, 0])
        means[num_repeats] = x[:, 1].mean()
    # Given the first, the second has a mean of rho * 1.5 and a deviation of sqrt(1 - rho^2).
    assert means[10] == pytest.approx(rho * 1.5, abs=0.05) and x[:, 1].std() == pytest.approx(0.436, abs=0.05)
    assert abs(means[1] - rho * 1.5) > 2 * abs(means[10] - rho * 1.5)  # that is what the repeats are for


def test_the_arc_goes_from_the_first_to_the_second_at_a_steady_angle():
    a, b = F.normalize(torch.tensor([[1.0, 0, 0]])), F.normalize(torch.tensor([[0.6, 0.8, 0]]))
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    quarter = slerp(a, b, 0.25)
    assert math.acos(quarter[0, 0]) == pytest.approx(math.acos(0.6) / 4, abs=1e-5)
    torch.testing.assert_close(quarter.norm(dim=1), torch.ones(1))


def test_principal_components_are_rows_and_the_widest_comes_first():
    torch.manual_seed(0)
    z = torch.randn(5000, 3) * torch.tensor([0.1, 2.0, 0.5]) + torch.tensor([1.0, 2, 3])
    mean, directions = principal_components(z)
    torch.testing.assert_close(mean, torch.tensor([1.0, 2, 3]), atol=0.1, rtol=0)
    torch.testing.assert_close(directions.abs(), torch.eye(3)[[1, 2, 0]], atol=0.05, rtol=0)


def test_the_box_is_left_top_right_bottom():
    known = outside([4, 1, 14, 3], torch.zeros(1, 1, 28, 28))
    assert not known[1:3, 4:14].any() and known.sum() == 28 * 28 - 20


@pytest.mark.parametrize("box", [(4, 4, 4, 24), (0, 0, 29, 5), (20, 3, 10, 5)])
def test_boxes_that_do_not_lie_in_the_image_are_refused(box):
    with pytest.raises(UserError, match="no box in an image of 28x28"):
        outside(list(box), torch.zeros(1, 1, 28, 28))


def test_without_noise_an_image_comes_back_and_with_it_another_of_its_kind(pipeline, threes):
    x_0, z_i, x_T = split(pipeline, threes, 20)
    torch.testing.assert_close(x_0, threes.images())
    back = decode(pipeline.decoder, z_i, x_T, 20)
    assert (back - x_0).abs().mean() < 0.01
    torch.manual_seed(0)
    varied = decode(pipeline.decoder, z_i, x_T, 20, eta=1.0)
    assert (varied - x_0).abs().mean() > 5 * (back - x_0).abs().mean()
    little = decode(pipeline.decoder, z_i, x_T, 20, eta=0.1)
    assert (little - x_0).abs().mean() < (varied - x_0).abs().mean()


def test_a_text_difference_points_from_the_first_caption_to_the_second(pipeline):
    z_d = text_difference(pipeline, ["three"], ["8"])
    (three, eight), _ = pipeline.clip.encode_prompts(["three", "8"], pipeline.device)
    assert z_d.norm() == pytest.approx(1, abs=1e-5) and z_d[0] @ eight > 0 > z_d[0] @ three


def test_inpainting_keeps_the_known_pixels_and_follows_its_prompt(pipeline, threes):
    x_0, known = threes.images(), outside([0, 0, 28, 27], threes.images())  # nearly everything
    drawn = [inpaint(pipeline, x_0, known, [to] * 3, [0, 1, 2], 10, 3.0, num_repeats=1) for to in ("0", "1")]
    for images in drawn:
        assert torch.equal(images[:, :, known], x_0[:, :, known])
    assert drawn[0].mean() > 1.3 * drawn[1].mean()  # a zero has more ink than a one
    again = inpaint(pipeline, x_0[1:2], known, ["0"], [1], 10, 3.0, num_repeats=1)
    torch.testing.assert_close(again[0], drawn[0][1], atol=1e-3, rtol=0)  # a function of its seed


@pytest.mark.parametrize("mode", ["variations", "interpolation", "text_diff", "components", "inpaint"])
def test_each_mode_writes_its_figure(mode, tmp_path):
    edit = ("lesson_17/edit_mnist.py", mode, "--pretrained", "mnist", "--dataset", "mnist_5k", "--sampling_steps", 5)
    succeeds(*edit, "--prompts", "3", "8", "--output_dir", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{mode}.png"]
    refused(script(*edit, "--prompts", "eleven", "8", "--output_dir", tmp_path), "unknown")


def test_flags_have_their_effect(tmp_path):
    def figure(*flags):
        few = (
            "lesson_17/edit_mnist.py",
            flags[0],
            "--pretrained",
            "mnist",
            "--dataset",
            "mnist_5k",
            "--sampling_steps",
            5,
        )
        succeeds(*few, *flags[1:], "--prompts", "3", "8", "--output_dir", tmp_path)
        return (tmp_path / f"{flags[0]}.png").read_bytes()

    for flags in (["variations", "--eta"], ["text_diff", "--fraction"]):
        assert figure(*flags, 0.2) != figure(*flags, 0.9)
    assert figure("variations", "--seed", 1) != figure("variations", "--seed", 2)
    assert figure("variations", "--sampling_steps", 6) != figure("variations", "--sampling_steps", 7)
    assert figure("inpaint", "--box", 4, 4, 14, 24) != figure("inpaint", "--box", 4, 4, 14, 20)
    assert figure("inpaint", "--guidance_scale", 1) != figure("inpaint", "--guidance_scale", 5)


def test_a_decoder_of_smaller_images_edits_nothing(tmp_path):
    few = ("--dataset", "mnist_5k", "--batch_size", 8, "--num_training_steps", 1, "--output_dir", tmp_path)
    clip = ("--clip_checkpoint", ROOT / "lesson_17/pretrained/mnist/clip.safetensors")
    succeeds("lesson_17/train_decoder.py", *few, *clip, "--decoder_image_size", 14)
    prior = ("--prior_checkpoint", ROOT / "lesson_17/pretrained/mnist/prior.safetensors")
    decoder = ("--decoder_checkpoint", tmp_path / "decoder/decoder-1.pt")
    result = script("lesson_17/edit_mnist.py", "variations", *prior, *decoder, "--dataset", "mnist_5k")
    refused(result, "trained without --decoder_image_size")


def test_help_explains_each_mode_and_flag():
    text = " ".join(succeeds("lesson_17/edit_mnist.py", "--help").stdout.split())
    assert "--seed" in text and "inpaint: a box of the image drawn anew" in text


def test_it_refuses_half_a_pair():
    refused(script("lesson_17/edit_mnist.py", "text_diff", "--pretrained", "mnist", "--prompts", "3"), "two by two")


@pytest.mark.parametrize("mode, number", [("interpolation", 5), ("text_diff", 7), ("inpaint", 5)])
def test_images_with_an_odd_number_of_captions_are_edited_in_pairs(mode, number, tmp_path):
    pytest.importorskip("utils.datasets.own_images", reason="no folders here")
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        for digit in DIGIT_WORDS[:number]:
            Image.new("L", (28, 28), 100).save(tmp_path / part / f"{digit}.png")
            (tmp_path / part / f"{digit}.txt").write_text(digit)
    data = ("--dataset", tmp_path, "--data_dir", tmp_path / "data", "--output_dir", tmp_path / "out")
    succeeds("lesson_17/edit_mnist.py", mode, "--pretrained", "mnist", *data, "--sampling_steps", 5)
    assert (tmp_path / f"out/{mode}.png").exists()


def test_a_difference_needs_two_captions():
    two = ("text_diff", "--pretrained", "mnist", "--dataset", "mnist_5k", "--prompts", "3", "3")
    refused(script("lesson_17/edit_mnist.py", *two), "give two captions")
