"""What is measured with the scorer has the known answers: real digits, wrong prompts, no variety, copies."""

import json
import math

import pytest
import torch
from scripts import read_image

pytest.importorskip("utils.datasets.colored_mnist", reason="no digits in color here")

from benchmarks.train_scorer import train_scorer
from lesson_08 import evaluate_mnist as evaluate_08
from lesson_08 import pipeline as pipeline_08
from lesson_17 import evaluate_mnist as evaluate_17
from lesson_17 import pipeline as pipeline_17
from lesson_17.diffusion import Diffusion
from lesson_17.frozen_clip import EmbeddedImages
from utils.data import CaptionedImages, DataSource
from utils.datasets.colored_mnist import all_asked_for, paint
from utils.datasets.mnist import load_mnist_5k
from utils.scoring import (
    DigitReader,
    Judge,
    Row,
    Samples,
    digits_of,
    diversity,
    frechet_distance,
    fullest_captions,
    load_scorer,
    nearest_images,
    wilson_interval,
    write_report,
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


def test_the_nearest_image_is_found_wherever_it_lies():
    torch.manual_seed(0)
    pixels = torch.randint(256, (12_001, 1, 3, 3)).byte()
    images = CaptionedImages(pixels, ["any"], torch.zeros(12_001, 1, dtype=torch.long))
    asked = [7, 4999, 5000, 7001, 12_000]
    distances, index = nearest_images(images.images(asked), images)
    assert index.tolist() == asked and distances.max() < 1e-3
    apart, _ = nearest_images(torch.full((1, 1, 3, 3), 2.0), images)
    by_hand = ((2 - pixels.float() / 255) ** 2).mean(dim=(1, 2, 3)).sqrt().min()
    torch.testing.assert_close(apart[0], by_hand)


def test_the_report_counts_what_was_drawn_for_each_prompt_and_shows_what_is_nearest(digits, tmp_path, capsys):
    train_set, test_set = digits
    judge = Judge(DataSource("mnist_5k"), train_set, test_set)
    sevens = train_set.images(train_set.index_of("7"))[:5]
    samples = Samples({"": ["3", "three", "five", "7", "7"]}, sevens)
    write_report(tmp_path, "report", [Row("a measure", 0.5, "50%", "half")], samples, judge, {}, {"temperature": 0.9})
    report = json.loads((tmp_path / "report.json").read_text())
    expected = [[0] * 10 for _ in range(10)]
    expected[3][7], expected[5][7], expected[7][7] = 2, 1, 2
    assert report["confusion_matrix"] == expected and report["sampling"] == {"temperature": 0.9}
    assert report["measures"]["a measure"]["value"] == 0.5 and "50%  half" in capsys.readouterr().out
    above, below = read_image(tmp_path / "report.png")[0].float().chunk(2, dim=0)
    assert (above - below)[:, above.shape[1] // 10 :].abs().gt(64).float().mean() < 0.1  # copies, but for the captions


def test_what_was_not_asked_for_is_not_wrong_and_what_was_is(scorer):
    train_set, test_set = in_color()
    judge = Judge(DataSource("colored_mnist"), train_set, test_set)
    image = test_set.images(test_set.index_of("a thick red seven"))
    image = image[scorer(image).argmax(dim=1) == 7][:1].repeat(4, 1, 1, 1)
    right = judge.right(image, ["red seven", "a thin red seven", "a thick blue seven", "red 3"])
    assert right["stroke"].tolist() == [True, False, True, True]
    assert right["ink"].tolist() == [True, True, False, True] and right["digit"].tolist() == [True, True, True, False]


def test_the_floor_is_as_many_training_images(digits):
    train_set, test_set = digits
    judge = Judge(DataSource("mnist_5k"), train_set, test_set)
    rows = {row.name: row.value for row in judge.real_rows(300)}
    chosen = torch.randperm(len(train_set), generator=torch.Generator().manual_seed(0))[:300]
    floor = judge.frechet_distance(train_set.images(chosen))
    assert rows["real images, Fréchet distance"] == pytest.approx(floor, rel=1e-3)


def test_lesson_8s_losses_are_of_the_test_images_own_tokens_and_bits_are_not_nats(digits):
    pipeline, test_set = pipeline_08.Pipeline.load(pretrained="mnist"), digits[1].subset(slice(0, 500, 5))
    image_tokens = test_set.map(pipeline.dvae.encode)
    rows = {row.name: row for row in evaluate_08.transformer_rows(pipeline, test_set, image_tokens)}
    captions = [test_set.captions[i] for i in test_set.caption_ids[:, 0]]
    text_tokens = pipeline.tokenizer.encode(captions, pipeline.dall_e.config.text_seq_len)
    _, logits = pipeline.dall_e.logits(text_tokens, image_tokens)
    nats = -logits.log_softmax(dim=-1).gather(2, image_tokens[:, :, None]).mean().item()
    assert rows["transformer, image tokens"].value == pytest.approx(nats, abs=0.03)  # its captions are drawn at random
    bits = rows["transformer, image tokens"].value * 49 / math.log(2)
    assert rows["transformer, images"].value == pytest.approx(bits, rel=1e-4)


def test_lesson_8s_dvae_is_measured_on_the_test_images(digits):
    pipeline, judge = pipeline_08.Pipeline.load(pretrained="mnist"), Judge(DataSource("mnist_5k"), *digits)
    image_tokens = digits[1].map(pipeline.dvae.encode)
    rows = {row.name: row.value for row in evaluate_08.dvae_rows(pipeline.dvae, judge, image_tokens, 100)}
    mse = (pipeline.dvae.decode(image_tokens) - digits[1].images()).square().mean().item()
    assert rows["dVAE, MSE"] == pytest.approx(mse, rel=1e-3)
    assert rows["dVAE, PSNR"] == pytest.approx(10 * math.log10(1 / mse), rel=1e-3)
    assert rows["dVAE, codes used"] == len(image_tokens.unique()) and rows["dVAE, scorer's accuracy"] > 0.95


def test_lesson_17s_decoder_is_measured_by_ranges_of_t_and_on_each_images_own_digit(digits, monkeypatch):
    pipeline, judge = pipeline_17.Pipeline.load(pretrained="mnist"), Judge(DataSource("mnist_5k"), *digits)
    held_out = EmbeddedImages.of(pipeline.clip, digits[1].subset(slice(0, 500, 10)))
    judge.test_digits = digits_of(held_out.images)
    seen, q_sample = [], Diffusion.q_sample

    def spy(self, x_0, t, eps):
        seen.append(t)
        return q_sample(self, x_0, t, eps)

    monkeypatch.setattr(Diffusion, "q_sample", spy)
    sampling = pipeline_17.DEFAULT_SAMPLING | {"sampling_steps": 8}
    rows = evaluate_17.decoder_rows(pipeline, judge, held_out, evaluate_17.same_size, sampling)
    accuracy = {row.name: row.value for row in rows}["decoder, scorer's accuracy"]
    assert accuracy > 0.85
    for t, row in zip(seen, rows, strict=False):
        low, high = map(int, row.name.removeprefix("decoder, loss, t ").split(" to "))
        assert low <= t.min() and t.max() <= high and t.max() - t.min() > 100
    assert len(seen) == 5


def test_lesson_17s_clip_finds_captions_and_one_image_of_ten(digits):
    pipeline, test_set = pipeline_17.Pipeline.load(pretrained="mnist"), digits[1]
    to_caption, to_image = evaluate_17.clip_rows(pipeline, pipeline.clip.encode_images(test_set), test_set)
    assert to_caption.value > 0.97 and "of ten" in to_image.note.replace("10", "ten")
    of_others = pipeline.clip.encode_images(test_set).flip(0)  # the digits are in order
    to_caption, to_image = evaluate_17.clip_rows(pipeline, of_others, test_set)
    assert to_caption.value < 0.1 and to_image.value < 0.3


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
