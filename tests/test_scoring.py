"""What is measured with the scorer has the known answers: real digits, wrong prompts, no variety, copies."""

import pytest
import torch
from scripts import ROOT

import utils.scoring
from utils.data import load_digits
from utils.prompts import DIGIT_OF_PROMPT
from utils.scoring import (
    Judge,
    diversity,
    draw_samples,
    frechet_distance,
    load_scorer,
    nearest_images,
    train_scorer,
    wilson_interval,
)


@pytest.fixture(scope="module")
def digits():
    return load_digits("mnist_5k", ROOT, 1, "cpu")


@pytest.fixture(scope="module")
def scorer(digits):
    return train_scorer(digits[0], num_steps=300)


def real_digits(images):
    """A perfect model: it draws real images of the prompted digits."""

    def draw(prompts, seeds):
        chosen = [torch.where(images.labels == DIGIT_OF_PROMPT[prompt])[0] for prompt in prompts]
        index = torch.stack([of_digit[seed % len(of_digit)] for of_digit, seed in zip(chosen, seeds)])
        return images[index][0]

    return draw


def measured(draw, scorer, digits, images_a_prompt=20):
    samples = draw_samples(draw, scorer, images_a_prompt)
    judge = Judge(scorer, *digits)
    rows = [*judge.sample_rows("", samples), *judge.real_rows(len(samples.digits))]
    return {row.name.strip(", "): row.value for row in rows}


def test_real_images_score_what_real_images_score(digits, scorer):
    train_set, _ = digits
    rows = measured(real_digits(train_set), scorer, digits)
    assert rows["prompt accuracy"] > 0.95
    assert rows["Fréchet distance"] == pytest.approx(rows["real images, Fréchet distance"], rel=0.5)
    assert rows["diversity"] == pytest.approx(1, abs=0.1)
    assert rows["nearest training image"] == pytest.approx(0, abs=1e-3)
    assert rows["real images, nearest training image"] > 0.1


def test_shuffled_prompts_score_a_tenth(digits, scorer):
    _, test_set = digits

    def draw(prompts, seeds):
        order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0))
        return real_digits(test_set)([prompts[i] for i in order], seeds)

    rows = measured(draw, scorer, digits)
    assert 0.05 < rows["prompt accuracy"] < 0.15
    assert rows["diversity"] > 1.1  # of ten digits instead of one


def test_one_image_for_everything_has_no_diversity(digits, scorer):
    _, test_set = digits
    rows = measured(lambda prompts, seeds: test_set[:1][0].repeat(len(prompts), 1, 1, 1), scorer, digits)
    assert rows["diversity"] == 0
    assert rows["prompt accuracy"] == pytest.approx(0.1)
    assert rows["Fréchet distance"] > 5 * rows["real images, Fréchet distance"]


def test_the_scorer_is_trained_once(digits, tmp_path, monkeypatch):
    train_set, _ = digits
    monkeypatch.setattr(utils.scoring, "train_scorer", lambda train_set: train_scorer(train_set, num_steps=2))
    first = load_scorer(train_set, tmp_path)
    monkeypatch.delattr(utils.scoring, "train_scorer")
    again = load_scorer(train_set, tmp_path)
    images, _ = train_set[:10]
    torch.testing.assert_close(first(images), again(images), rtol=0, atol=0)


def test_frechet_distance_of_gaussians_along_the_axes():
    torch.manual_seed(0)
    a = torch.randn(500, 8, dtype=torch.float64)
    scale, shift = torch.linspace(0.5, 3, 8), torch.linspace(-1, 1, 8)
    a = a - a.mean(dim=0)
    a = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(a.T)), a.T, upper=False).T  # exactly white
    expected = shift.square().sum() + (scale - 1).square().sum()
    assert frechet_distance(a, a * scale + shift) == pytest.approx(expected.item(), rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_wilson_interval():
    low, high = wilson_interval(50, 100)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    low, high = wilson_interval(100, 100)
    assert low == pytest.approx(0.9630, abs=1e-4) and high == pytest.approx(1)


def test_small_measures_by_hand(digits):
    features = torch.tensor([[0.0, 0], [3, 4], [0, 0], [0, 1]])
    assert diversity(features, torch.tensor([7, 7, 8, 8])) == pytest.approx((5 + 1) / 2)
    train_set, _ = digits
    distances, index = nearest_images(train_set[[5, 700]][0], train_set)
    assert index.tolist() == [5, 700] and distances.max() < 1e-3
