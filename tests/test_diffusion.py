"""The noise process: schedules, conversions, steps equal to those of diffusers, inversion, guidance."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch.nn import functional as F

from lesson_17.diffusion import (
    BETAS,
    Diffusion,
    check_diffusion,
    cosine_betas,
    drop_condition,
    guided,
    linear_betas,
    timestep_encoding,
)

PREDICTIONS = {"x_0": "sample", "eps": "epsilon", "v": "v_prediction"}  # ours and the names in diffusers


@pytest.fixture(autouse=True)
def in_float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def network(x, t):
    """Smooth, and different at each t."""
    return torch.tanh(x.flip(-1) * 0.7 + t[:, None] / 300)


def test_schedules_are_those_of_diffusers():
    for ours, theirs in ((linear_betas(1000), "linear"), (cosine_betas(1000), "squaredcos_cap_v2")):
        torch.testing.assert_close(ours.float(), DDPMScheduler(1000, beta_schedule=theirs).betas.float())


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_schedule_goes_from_clean_to_noise(schedule):
    diffusion = Diffusion(1000, schedule)
    assert (
        diffusion.sqrt_alphas_cumprod.shape == (1001,)
        and diffusion.sqrt_alphas_cumprod[0] == 1
        and diffusion.sqrt_one_minus_alphas_cumprod[0] == 0
    )
    assert (diffusion.sqrt_alphas_cumprod.diff() < 0).all() and diffusion.sqrt_alphas_cumprod[-1] < 0.01
    torch.testing.assert_close(
        diffusion.sqrt_alphas_cumprod**2 + diffusion.sqrt_one_minus_alphas_cumprod**2, torch.ones(1001)
    )
    torch.set_default_dtype(torch.float32)
    kept = Diffusion(1000, schedule)
    assert kept.sqrt_one_minus_alphas_cumprod.dtype == torch.float32
    torch.testing.assert_close(
        kept.sqrt_one_minus_alphas_cumprod.double(), diffusion.sqrt_one_minus_alphas_cumprod, rtol=1e-7, atol=0
    )


def test_q_sample_is_the_chain_of_single_steps():
    betas, diffusion = cosine_betas(20), Diffusion(20)
    mean, variance = torch.ones(()), torch.zeros(())
    for t, beta in enumerate(betas, start=1):
        mean, variance = (1 - beta).sqrt() * mean, (1 - beta) * variance + beta
        torch.testing.assert_close(diffusion.sqrt_alphas_cumprod[t], mean)
        torch.testing.assert_close(diffusion.sqrt_one_minus_alphas_cumprod[t] ** 2, variance)


@pytest.mark.parametrize("t,s", [(500, 499), (500, 300), (1, 0), (1000, 700)])
def test_a_step_with_all_of_the_fresh_noise_draws_from_the_posterior(t, s):
    diffusion = Diffusion(1000, prediction="x_0")
    x_0, x_t = torch.randn(2, 1), torch.randn(2, 1)

    def step(randn):
        x_s, _ = diffusion.step(lambda *_: x_0, x_t, torch.tensor(t), torch.tensor(s), 1.0, randn, math.inf)
        return x_s

    mean, deviation = step(torch.zeros), step(torch.ones) - step(torch.zeros)
    if s == 0:
        torch.testing.assert_close(mean, x_0)
        assert not deviation.any()
        return
    # q(x_s | x_0) times q(x_t | x_s), two Gaussians in x_s: precisions add, means are weighted by them.
    alpha = (diffusion.sqrt_alphas_cumprod[t] / diffusion.sqrt_alphas_cumprod[s]) ** 2
    precisions = 1 / diffusion.sqrt_one_minus_alphas_cumprod[s] ** 2, alpha / (1 - alpha)
    expected = (precisions[0] * diffusion.sqrt_alphas_cumprod[s] * x_0 + precisions[1] * x_t / alpha.sqrt()) / sum(
        precisions
    )
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(deviation**2, (1 / sum(precisions)).expand(2, 1))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_predictions_convert_there_and_back(prediction):
    diffusion = Diffusion(1000, prediction=prediction)
    x_0, eps, t = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([1, 10, 500, 990])
    x_t = diffusion.q_sample(x_0, t, eps)
    found = diffusion.x_0_and_eps(diffusion.target(x_0, t, eps), x_t, t)
    torch.testing.assert_close(found, (x_0, eps), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("x_0_range", [math.inf, 0.5])
def test_ddim_steps_are_those_of_diffusers(prediction, eta, x_0_range):
    clips = x_0_range < math.inf
    theirs = DDIMScheduler(
        1000,
        prediction_type=PREDICTIONS[prediction],
        clip_sample=clips,
        clip_sample_range=x_0_range,
        timestep_spacing="trailing",
    )
    diffusion = Diffusion(1000, prediction=prediction)
    theirs.alphas_cumprod, theirs.final_alpha_cumprod = diffusion.sqrt_alphas_cumprod[1:] ** 2, torch.ones(())
    theirs.set_timesteps(20)
    x_T, noise = torch.randn(3, 5), torch.randn(20, 3, 5)

    expected = x_T
    for i, t in enumerate(theirs.timesteps):
        predicted = network(expected, (t + 1).expand(3))  # their t = 0 is the paper's, and our, t = 1
        expected = theirs.step(
            predicted, t, expected, eta=eta, variance_noise=noise[i], use_clipped_model_output=clips
        ).prev_sample
    supply = iter(noise)
    ours = diffusion.sample(network, x_T, 20, eta=eta, randn=lambda shape: next(supply), x_0_range=x_0_range)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("x_0_range", [math.inf, 0.5])
def test_ddpm_steps_are_those_of_diffusers(prediction, x_0_range):
    theirs = DDPMScheduler(
        50,
        prediction_type=PREDICTIONS[prediction],
        clip_sample=x_0_range < math.inf,
        clip_sample_range=x_0_range,
        variance_type="fixed_small",
    )
    diffusion = Diffusion(50, prediction=prediction)
    theirs.betas = cosine_betas(50)
    theirs.alphas, theirs.alphas_cumprod = 1 - theirs.betas, diffusion.sqrt_alphas_cumprod[1:] ** 2
    theirs.set_timesteps(50)
    x_T, seen = torch.randn(3, 5), []

    def randn(shape):
        seen.append(torch.randn(shape))
        return seen[-1]

    ours = diffusion.sample(network, x_T, 50, eta=1.0, randn=randn, x_0_range=x_0_range)
    expected = x_T
    for t in theirs.timesteps:
        generator = torch.Generator()
        step = theirs.step(network(expected, (t + 1).expand(3)), t, expected, generator=generator.manual_seed(0))
        # The scheduler draws its own noise: take it out, and put ours in.
        drawn = torch.randn(3, 5, generator=generator.manual_seed(0))
        deviation = theirs._get_variance(t).clamp(min=1e-20).sqrt() if t > 0 else 0.0
        expected = step.prev_sample - deviation * drawn
        if t > 0:
            expected = expected + deviation * seen[49 - t]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", BETAS)
def test_all_of_the_fresh_noise_in_all_steps_leaves_no_nan(schedule):
    """Next to t = 0 nearly all of the noise at s is fresh, and what is left of it rounds to less than 0."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        diffusion = Diffusion(1000, schedule, "v")
        assert diffusion.sample(network, torch.randn(3, 5), 1000, eta=1.0, x_0_range=1.0).isfinite().all()
    finally:
        torch.set_default_dtype(default)


def gaussian_network(diffusion, mean, std):
    """What a perfect network predicts for data of N(mean, std^2): the posterior mean of x_0."""

    def predict(x, t):
        signal, noise = diffusion.at(t, x)
        return mean + signal * std**2 / (signal**2 * std**2 + noise**2) * (x - signal * mean)

    return predict


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_perfect_network_samples_its_data(eta):
    diffusion = Diffusion(1000, prediction="x_0")
    x = diffusion.sample(gaussian_network(diffusion, 2.0, 0.5), torch.randn(20_000, 1), 200, eta=eta)
    assert x.mean() == pytest.approx(2.0, abs=0.02) and x.std() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_is_algorithm_1(prediction):
    """Over all timesteps but 0, against a target that is computed by hand."""
    diffusion, x_0, seen = Diffusion(50, prediction=prediction), torch.randn(4000, 2), []

    def network(x_t, t, condition):
        seen.append((x_t, t, condition))
        return torch.zeros_like(x_t)

    loss = diffusion.loss(network, x_0, "told")
    (x_t, t, condition), (a, b) = seen[0], (diffusion.sqrt_alphas_cumprod, diffusion.sqrt_one_minus_alphas_cumprod)
    assert condition == "told" and set(t.tolist()) == set(range(1, 51))
    a_t, b_t = a[t][:, None], b[t][:, None]
    eps = (x_t - a_t * x_0) / b_t
    assert eps.mean().abs() < 0.05 and eps.std() == pytest.approx(1, abs=0.05)
    target = {"x_0": x_0, "eps": eps, "v": a_t * eps - b_t * x_0}[prediction]
    torch.testing.assert_close(loss, target.square().mean())
    diffusion.loss(network, x_0, "told", t=torch.full((4000,), 7))
    assert (seen[1][1] == 7).all()


def test_noisy_timesteps_are_logit_normal():
    for num_timesteps in (1, 3, 1000):
        t = Diffusion(num_timesteps).noisy_timesteps(100_000)
        assert set(t.tolist()) <= set(range(1, num_timesteps + 1))
    logits = torch.logit((t - 0.5) / 1000)  # of the middles of the bins
    assert logits.mean() == pytest.approx(0.5, abs=0.02) and logits.std() == pytest.approx(1.2, abs=0.02)
    assert (t > 500).float().mean() == pytest.approx(0.6615, abs=0.01)  # a normal above -0.5 / 1.2


def test_x_0_is_kept_in_its_range():
    diffusion = Diffusion(1000, prediction="x_0")
    x = diffusion.sample(lambda x, t: 3 * torch.ones_like(x), torch.randn(4, 2), 10, x_0_range=1.0)
    torch.testing.assert_close(x, torch.ones(4, 2))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_of_a_perfect_network_is_the_least_there_is_and_of_none_is_the_targets_variance(prediction):
    diffusion, x_0 = Diffusion(1000, prediction=prediction), torch.randn(100_000, 1)
    t, eps = torch.randint(1, 1001, (100_000,)), torch.randn(100_000, 1)  # DDPM, algorithm 1
    x_t, target = diffusion.q_sample(x_0, t, eps), diffusion.target(x_0, t, eps)
    assert F.mse_loss(torch.zeros_like(target), target) == pytest.approx(1.0, abs=0.02)
    # Data and noise have unit variance: the best guess is the target's projection on x_t, to which v is orthogonal.
    signal, noise = diffusion.at(t, x_0)
    perfect, unexplained = {
        "x_0": (signal * x_t, noise**2),
        "eps": (noise * x_t, signal**2),
        "v": (torch.zeros_like(x_t), torch.ones(())),
    }[prediction]
    assert F.mse_loss(perfect, target) == pytest.approx(unexplained.mean().item(), abs=0.02)


@pytest.mark.parametrize(
    "num_timesteps,schedule,prediction",
    [(0, "cosine", "v"), (-1, "cosine", "v"), (math.nan, "cosine", "v"), (10, "none", "v"), (10, "cosine", "none")],
)
def test_impossible_noise_processes_are_refused(num_timesteps, schedule, prediction):
    with pytest.raises(ValueError):
        check_diffusion(num_timesteps, schedule, prediction)


def test_guidance_0_and_1_are_the_model_itself_at_one_call():
    calls = []

    def model(x, t, conditional):
        calls.append(conditional)
        return x + (3.0 if conditional else 1.0)

    x, t = torch.randn(2, 3), torch.ones(2)
    for scale, expected, number in ((1, x + 3, [True]), (0, x + 1, [False]), (2.0, x + 5, [False, True])):
        calls.clear()
        torch.testing.assert_close(guided(model, scale)(x, t), expected)
        assert calls == number


def test_conditions_are_dropped_to_the_null():
    condition, null = torch.ones(10_000, 2, 3), torch.zeros(2, 3)
    assert torch.equal(drop_condition(condition, null, 0.0), condition)
    assert torch.equal(drop_condition(condition, null, 1.0), torch.zeros_like(condition))
    some = drop_condition(condition, null, 0.3)
    assert some.mean() == pytest.approx(0.7, abs=0.02) and set(some.sum(dim=(1, 2)).tolist()) == {0.0, 6.0}


def test_timesteps_have_encodings_of_their_own():
    encodings = timestep_encoding(torch.arange(1, 1001), 32)
    assert encodings.shape == (1000, 32) and torch.pdist(encodings).min() > 1e-3


def test_there_are_no_more_steps_than_timesteps():
    diffusion, seen = Diffusion(5, prediction="x_0"), []
    diffusion.sample(lambda x, t: seen.append(int(t[0])) or x, torch.randn(1, 2), num_steps=50)
    assert seen == [5, 4, 3, 2, 1]
