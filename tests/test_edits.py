"""Edits: inversion and inpainting in numbers, the arc between embeddings, and that each mode does what it says."""

import math

import pytest
import torch
from PIL import Image
from scripts import ROOT, read_image, refused, script, succeeds
from torch.nn import functional as F

from lesson_17 import edit_mnist
from lesson_17.diffusion import Diffusion
from lesson_17.diffusion_decoder import decode_image_embed
from lesson_17.edit_mnist import (
    EDITS,
    NUM_COMPONENTS,
    choose_images,
    decode,
    inpaint,
    invert,
    outside,
    principal_components,
    read_pictures,
    repaint,
    slerp,
    split,
    text_difference,
)
from lesson_17.pipeline import Pipeline
from utils.cli import UserError
from utils.datasets.mnist import DIGIT_WORDS
from utils.plots import to_picture


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


def test_the_way_back_is_the_way_there_with_nothing_cut_off(pipeline, threes):
    x_0, z_i, x_T = split(pipeline, threes, 10)
    back = decode(pipeline.decoder, z_i, x_T, 10)
    cut_off = decode_image_embed(pipeline.decoder, z_i, None, x_T, num_steps=10, x_0_range=1.0)
    assert (back - x_0).abs().mean() < 0.8 * (cut_off - x_0).abs().mean()


def test_what_is_known_has_as_much_noise_as_there_is_at_each_step():
    diffusion, seen = Diffusion(1000, prediction="x_0"), []

    def network(x, t):
        seen.append((t[0], x[:, 0]))
        return torch.zeros_like(x)

    torch.manual_seed(0)
    repaint(diffusion, network, torch.full((4000, 2), 3.0), torch.tensor([True, False]), num_steps=5, num_repeats=1)
    for t, known in seen[1:]:
        signal, noise = diffusion.at(t, known)
        assert known.mean() == pytest.approx(3 * signal.item(), abs=0.1)
        assert known.std() == pytest.approx(noise.item(), abs=0.05)


def test_an_image_of_a_prompt_has_that_caption_and_the_seed_chooses_it(digits):
    test_set = digits[1]
    chosen = {choose_images(test_set, ["7", "four"] * 5, seed).pixels.numpy().tobytes() for seed in range(3)}
    assert len(chosen) == 3
    images = choose_images(test_set, ["7", "four"] * 5, seed=0)
    for prompt, ids in zip(["7", "four"] * 5, images.caption_ids):
        assert prompt in [images.captions[i] for i in ids]
    with pytest.raises(UserError, match="No test image"):
        choose_images(test_set, ["eleven"], seed=0)


@pytest.fixture
def edit(pipeline, digits, monkeypatch):
    """What a mode makes, called with flags, (R, K, C, H, H) and its captions."""

    monkeypatch.setattr(edit_mnist, "NUM_COLUMNS", 3)

    def run(mode, *flags):
        command = ["edit_mnist.py", mode, "--sampling_steps", "6", *map(str, flags)]
        monkeypatch.setattr("sys.argv", command)
        return EDITS[mode](pipeline, *digits, edit_mnist.parse_args())

    run.test_set = digits[1]
    return run


@pytest.fixture
def decoded(monkeypatch):
    """Which z_i and x_T a mode has decoded."""
    pairs = []

    def spy(decoder, z_i, x_T, num_steps, *noise, **more):
        pairs.append((z_i, x_T))
        return torch.zeros_like(x_T)

    monkeypatch.setattr(edit_mnist, "decode", spy)
    return pairs


def test_eta_is_how_much_fresh_noise_variations_get(edit):
    cells, _ = edit("variations", "--prompts", "3", "--eta", 0, "--guidance_scale", 1)
    image, back, *varied = cells[0]
    assert (back - image).abs().mean() < 0.02
    assert all(torch.allclose(one, back, atol=1e-3) for one in varied)
    unguided = ("variations", "--prompts", "3", "--guidance_scale", 1)
    little, much = (edit(*unguided, "--eta", eta)[0][0, 2:] for eta in (0.1, 1.0))
    assert 0.005 < (little - image).abs().mean() < (much - image).abs().mean()
    assert not torch.allclose(much[0], much[1], atol=0.1)


def test_the_way_to_x_T_has_as_many_steps_as_the_way_back(edit, monkeypatch):
    steps, invert_in = [], edit_mnist.invert
    monkeypatch.setattr(edit_mnist, "invert", lambda *args: steps.append(args[-1]) or invert_in(*args))
    for mode in ("variations", "interpolation", "text_diff", "components"):
        edit(mode, "--prompts", "3", "8")
    assert steps == [6] * 4


def test_interpolation_goes_from_one_image_of_a_pair_to_the_other(edit, decoded, pipeline, digits):
    edit("interpolation", "--prompts", "3", "8", "4", "9")
    images = choose_images(digits[1], ["3", "8", "4", "9"], seed=0)
    _, z_i, x_T = split(pipeline, images, 6)
    assert len(decoded) == 6
    for pair, (both, z_alone, x_alone) in enumerate((decoded[:3], decoded[3:])):
        first, second = 2 * pair, 2 * pair + 1
        for which, image in ((0, first), (-1, second)):
            torch.testing.assert_close(both[0][which], z_i[image], atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(both[1][which], x_T[image], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(z_alone[0], both[0])
        torch.testing.assert_close(x_alone[1], both[1])
        assert all(torch.equal(x, x_T[first]) for x in z_alone[1])
        assert all(torch.equal(z, z_i[first]) for z in x_alone[0])


def test_text_diff_turns_each_embedding_and_keeps_its_x_T(edit, decoded, pipeline, digits):
    edit("text_diff", "--prompts", "3", "8", "4", "9", "--fraction", 0.3)
    images = choose_images(digits[1], ["3", "4"], seed=0)
    _, z_i, x_T = split(pipeline, images, 6)
    z_d = text_difference(pipeline, ["3", "4"], ["8", "9"])
    torch.testing.assert_close(decoded[0][0], z_i, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(decoded[-1][0], slerp(z_i, z_d, 0.3), atol=1e-4, rtol=1e-3)
    assert all(torch.equal(noise, x_T) for _, noise in decoded)


def test_edits_are_guided_as_asked_and_what_is_to_keep_the_image_is_not(edit, pipeline):
    unguided, guided = (
        edit("text_diff", "--prompts", "3", "8", "--guidance_scale", scale)[0][0, 1:] for scale in (1, 3)
    )
    assert (guided - unguided).abs().mean() > 0.02
    _, z_i, x_T = split(pipeline, choose_images(edit.test_set, ["3"], seed=0), 6)
    torch.testing.assert_close(guided[:1], decode(pipeline.decoder, z_i, x_T, 6, 3.0), atol=1e-3, rtol=0)
    for mode in ("variations", "interpolation"):
        cells, _ = edit(mode, "--prompts", "3", "8", "--guidance_scale", 3)
        assert (cells[0, 1] - cells[0, 0]).abs().mean() < 0.02  # the image comes back
    unguided, guided = (edit("variations", "--prompts", "3", "--guidance_scale", scale)[0][0, 2:] for scale in (1, 3))
    assert (guided - unguided).abs().mean() > 0.02


def test_components_are_cut_around_the_mean_and_shown_with_two_noises(edit, decoded, pipeline, digits):
    edit("components", "--prompts", "3")
    embedded = pipeline.clip.encode_images(digits[0])
    _, z_i, x_T = split(pipeline, choose_images(digits[1], ["3"], seed=0), 6)
    mean = embedded.mean(dim=0)
    _, _, widest = torch.linalg.svd(embedded - mean, full_matrices=False)
    half = len(decoded) // 2
    for number, (own, random) in zip(NUM_COMPONENTS, zip(decoded[:half], decoded[half:])):
        kept = sum(((z_i[0] - mean) @ direction) * direction for direction in widest[:number])
        torch.testing.assert_close(own[0], F.normalize(mean + kept, dim=-1)[None], atol=1e-3, rtol=1e-2)
        torch.testing.assert_close(random[0], own[0])
        assert torch.equal(own[1], x_T) and (random[1] - x_T).abs().mean() > 0.5


def test_inpainting_draws_the_second_prompt_under_the_guidance_that_was_asked_for(edit, monkeypatch):
    predicted, predict = [], Diffusion.predict

    def spy(*args):
        x_0, eps = predict(*args)
        predicted.append(x_0)
        return x_0, eps

    whole = ("--box", 0, 0, 28, 27)
    zeros, _ = edit("inpaint", "--prompts", "1", "0", *whole, "--guidance_scale", 2)
    ones, _ = edit("inpaint", "--prompts", "0", "1", *whole, "--guidance_scale", 2)
    assert zeros[:, 2:].mean() > 1.3 * ones[:, 2:].mean()  # a zero has more ink than a one
    corner, _ = edit("inpaint", "--prompts", "3", "8", "--box", 0, 0, 9, 28)
    torch.testing.assert_close(corner[0, 2, :, :, 9:], corner[0, 0, :, :, 9:])
    assert (corner[0, 2] - corner[0, 0])[:, :, :9].abs().max() > 0.1
    monkeypatch.setattr(Diffusion, "predict", spy)
    guided, _ = edit("inpaint", "--prompts", "1", "0", *whole, "--guidance_scale", 5)
    assert not torch.allclose(guided, zeros, atol=0.1)
    shape = guided.shape[2:]
    assert max(x_0.abs().max() for x_0 in predicted if x_0.shape[1:] == shape) <= 1


@pytest.mark.parametrize("mode", ["variations", "interpolation", "text_diff", "components", "inpaint"])
def test_each_mode_writes_its_figure(mode, tmp_path):
    edit = ("lesson_17/edit_mnist.py", mode, "--pretrained", "mnist", "--dataset", "mnist_5k", "--sampling_steps", 5)
    succeeds(*edit, "--prompts", "3", "8", "--output_dir", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{mode}.png"]
    refused(script(*edit, "--prompts", "eleven", "8", "--output_dir", tmp_path), "unknown")


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


def test_a_picture_of_ones_own_takes_the_place_of_a_test_image(threes, tmp_path):
    image = threes.images()[0]
    wide = F.pad(
        F.interpolate(image[None], scale_factor=3)[0], (30, 30)
    )  # its middle is the digit, three times as large
    to_picture(wide).convert("RGB").save(tmp_path / "mine.png")
    read = read_pictures([tmp_path / "mine.png"], threes).images()
    assert read.shape == (1, 1, 28, 28) and (read[0] - image).abs().mean() < 0.02
    edit = ("--pretrained", "mnist", "--dataset", "mnist_5k", "--sampling_steps", 5, "--output_dir", tmp_path)
    for mode, more in (("variations", ()), ("text_diff", ("--prompts", "3", "8"))):
        succeeds("lesson_17/edit_mnist.py", mode, *edit, "--image", tmp_path / "mine.png", *more)
        drawn = read_image(tmp_path / f"{mode}.png")
        succeeds("lesson_17/edit_mnist.py", mode, *edit, *(more or ("--prompts", "3")))
        assert not torch.equal(drawn, read_image(tmp_path / f"{mode}.png"))


@pytest.mark.parametrize(
    "mode, flags, problem",
    [
        ("text_diff", ("--image", "a.png"), "two --prompts for each image"),
        ("inpaint", ("--image", "a.png", "--prompts", "3", "8", "4", "9"), "two --prompts for each image"),
        ("interpolation", ("--image", "a.png", "b.png", "c.png"), "two by two"),
        ("variations", ("--image", ROOT / "README.md"), "cannot be read as a picture"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(mode, flags, problem):
    known = ("--pretrained", "mnist", "--dataset", "mnist_5k")
    refused(script("lesson_17/edit_mnist.py", mode, *known, *flags), problem)


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
