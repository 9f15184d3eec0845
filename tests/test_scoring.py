"""What is measured with the scorer has the known answers: real digits, wrong prompts, no variety, copies."""

import pytest
import torch

pytest.importorskip("utils.datasets.colored_mnist", reason="no digits in color here")

from benchmarks.train_scorer import train_scorer
from lesson_08 import pipeline as pipeline_08
from lesson_17 import pipeline as pipeline_17
from utils.data import DataSource
from utils.datasets.colored_mnist import all_asked_for, paint
from utils.datasets.mnist import load_mnist_5k
from utils.scoring import (
    DigitReader,
    Judge,
    digits_of,
    diversity,
    frechet_distance,
    fullest_captions,
    load_scorer,
    nearest_images,
    wilson_interval,
)


@pytest.fixture(scope="module")
def scorer():
    """What reads digits."""
    return load_scorer("cpu")


def in_color():
    """The embedded digits, painted, to train and to test on."""
    return paint([(images.pixels[:, 0], images.caption_ids[:, 0]) for images in load_mnist_5k(DataSource(), None)])


def real_digits(images):
    """A perfect model: it draws real images of the prompted digits."""

    def draw(prompts, seeds):
        chosen = [images.index_of(prompt) for prompt in prompts]
        return images.images(torch.stack([of_digit[seed % len(of_digit)] for of_digit, seed in zip(chosen, seeds)]))

    return draw


@pytest.fixture
def measured(digits):
    def measure(draw, images_a_prompt=20):
        judge = Judge(DataSource("mnist_5k"), *digits)
        samples = judge.draw(draw, images_a_prompt)
        rows = [*judge.sample_rows("", samples), *judge.real_rows(len(samples.images))]
        return {row.name.strip(", "): row.value for row in rows}

    return measure


def test_real_images_score_what_real_images_score(digits, measured):
    train_set, _ = digits
    rows = measured(real_digits(train_set))
    assert rows["prompt accuracy"] > 0.95
    assert rows["Fréchet distance"] == pytest.approx(rows["real images, Fréchet distance"], rel=0.5)
    assert rows["diversity"] == pytest.approx(1, abs=0.1)
    assert rows["nearest training image"] == pytest.approx(0, abs=1e-3)
    assert rows["real images, nearest training image"] > 0.1


def test_shuffled_prompts_score_a_tenth(digits, measured):
    _, test_set = digits

    def draw(prompts, seeds):
        order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0))
        return real_digits(test_set)([prompts[i] for i in order], seeds)

    rows = measured(draw)
    assert 0.05 < rows["prompt accuracy"] < 0.15
    assert rows["diversity"] > 1.1  # of ten digits instead of one


def test_one_image_for_everything_has_no_diversity(digits, measured):
    _, test_set = digits
    rows = measured(lambda prompts, seeds: test_set.images(slice(1)).repeat(len(prompts), 1, 1, 1))
    assert rows["diversity"] == 0
    assert rows["prompt accuracy"] == pytest.approx(0.1)
    assert rows["Fréchet distance"] > 5 * rows["real images, Fréchet distance"]


def test_the_scorer_reads_digits_and_can_be_trained_anew(digits, scorer):
    train_set, test_set = digits
    trained = train_scorer(train_set, num_steps=150)
    for one, at_least in ((scorer, 0.99), (trained, 0.9)):
        right = test_set.map(one).argmax(dim=1) == digits_of(test_set)
        assert right.float().mean() > at_least


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
    distances, index = nearest_images(train_set.images([5, 700]), train_set)
    assert index.tolist() == [5, 700] and distances.max() < 1e-3


def test_the_reader_reads_painted_digits(digits, scorer):
    """Real digits in color: the ink always, the stroke where the captions name it, the digit as well as in gray."""
    train_set, test_set = in_color()
    reader = DigitReader(scorer, train_set)
    read, asked = reader.read(test_set.images()), all_asked_for(fullest_captions(test_set))
    assert torch.equal(read["ink"], asked["ink"])
    assert torch.equal(asked["digit"], digits_of(test_set))
    assert (read["digit"] == asked["digit"]).float().mean() > 0.95
    right = (asked["digit"] == read["digit"]) & (asked["stroke"] >= 0)
    assert torch.equal(read["stroke"][right], asked["stroke"][right])


def test_a_table_in_color_counts_each_thing_that_was_asked(scorer):
    """A model that draws thick red sevens whatever is asked is right in the sevens, the reds and the thick ones."""
    train_set, test_set = in_color()
    judge = Judge(DataSource("colored_mnist"), train_set, test_set)
    sevens = test_set.images(test_set.index_of("a thick red seven"))
    sevens = sevens[scorer(sevens).argmax(dim=1) == 7][:1]
    samples = judge.draw(lambda prompts, seeds: sevens.repeat(len(prompts), 1, 1, 1), 10)
    assert {group: len(prompts) for group, prompts in samples.groups.items()} == {"seen": 480, "never seen": 120}
    rows = {row.name: row.value for row in judge.sample_rows("samples", samples)}
    assert rows["samples, seen, digit"] == pytest.approx(5 / 48) and rows["samples, seen, ink"] == pytest.approx(8 / 48)
    assert rows["samples, seen, digit and ink"] == pytest.approx(1 / 48)
    assert 0.3 < rows["samples, seen, stroke"] < 0.7
    assert rows["samples, never seen, digit and ink"] == 0
    assert rows["samples, never seen, digit"] == pytest.approx(1 / 12)


@pytest.mark.parametrize("dataset", ["mnist", "colored_mnist"])
@pytest.mark.parametrize("lesson", ["lesson_08", "lesson_17"])
def test_the_weights_that_come_along_draw_what_is_asked_for(lesson, dataset, digits):
    """Two samples of each of 20 captions, or one of each of 60 pairs of digit and ink."""
    pipeline, sampling = pretrained(lesson, dataset)
    judge = Judge(DataSource(dataset, 28), *digits)
    samples = judge.draw(
        lambda prompts, seeds: pipeline.draw(prompts, seeds, **sampling), 2 if dataset == "mnist" else 1
    )
    right = judge.right(samples.images, samples.prompts)
    assert right["digit"].float().mean() > 0.9
    assert dataset == "mnist" or right["ink"].float().mean() > 0.98


def pretrained(lesson, dataset):
    """A lesson's models with the included weights, and their default sampling."""
    pipeline = pipeline_08 if lesson == "lesson_08" else pipeline_17
    return pipeline.Pipeline.load(pretrained=dataset), pipeline.DEFAULT_SAMPLING
