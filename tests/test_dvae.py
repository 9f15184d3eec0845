"""The discrete VAE against closed forms, and the traps that its loss has."""

import math
from unittest import mock

import pytest
import torch
from torch.nn import functional as F

from lesson_08 import dvae
from lesson_08.dvae import (
    DVAE_PRESETS,
    DiscreteVAE,
    DVAEConfig,
    codebook_use,
    kl_to_uniform,
    kl_weight_schedule,
    logit_laplace_nll,
    map_pixels,
    tau_schedule,
    unmap_pixels,
)

SMALL = dict(codebook_size=16, codebook_dim=8, hidden_dim=8)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return DiscreteVAE(DVAEConfig(**SMALL))


def test_kl_is_zero_for_uniform_logits_and_ln_k_for_certain_ones():
    assert kl_to_uniform(torch.full((2, 16, 7, 7), 3.0)).abs().max() < 1e-6
    certain = 100 * F.one_hot(torch.zeros(2, 7, 7, dtype=torch.long), 16).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(kl_to_uniform(certain), torch.full((2, 7, 7), math.log(16)))


def test_kl_agrees_with_torch_distributions():
    logits = torch.randn(2, 16, 7, 7)
    q = torch.distributions.Categorical(logits=logits.permute(0, 2, 3, 1))
    prior = torch.distributions.Categorical(logits=torch.zeros(2, 7, 7, 16))
    torch.testing.assert_close(kl_to_uniform(logits), torch.distributions.kl_divergence(q, prior))


def test_kl_does_not_change_when_the_batch_is_duplicated(model):
    images = torch.rand(4, 1, 28, 28)
    _, once = model(images, 1.0, 1.0)
    _, twice = model(images.repeat(2, 1, 1, 1), 1.0, 1.0)
    torch.testing.assert_close(once["kl"], twice["kl"])


@pytest.mark.parametrize("kl_weight", [0.0, 1.0, 3.0])
def test_loss_is_the_papers_sum_over_positions_and_pixels(model, kl_weight):
    images = torch.rand(4, 1, 28, 28)
    loss, parts = model(images, 1.0, kl_weight)
    sums = parts["nll"] * 784 + kl_weight * model.config.beta * parts["kl"] * 49
    torch.testing.assert_close(loss, sums / 784)


def test_likelihood_is_the_density_of_a_squashed_laplace_variable():
    x, mu, log_b = torch.rand(100) * 0.8 + 0.1, torch.randn(100), torch.rand(100)
    laplace = torch.distributions.Laplace(mu, log_b.exp())
    squashed = torch.distributions.TransformedDistribution(laplace, [torch.distributions.SigmoidTransform()])
    torch.testing.assert_close(logit_laplace_nll(x, mu, log_b), -squashed.log_prob(x), rtol=1e-4, atol=1e-4)


def test_the_likelihoods_scale_has_a_floor_of_one():
    x, mu = torch.rand(100) * 0.8 + 0.1, torch.randn(100)
    log_b = torch.linspace(-20, -0.1, 100).requires_grad_()
    unit = torch.distributions.TransformedDistribution(
        torch.distributions.Laplace(mu, 1.0), [torch.distributions.SigmoidTransform()]
    )
    nll = logit_laplace_nll(x, mu, log_b)
    torch.testing.assert_close(nll, -unit.log_prob(x), rtol=1e-4, atol=1e-4)
    nll.sum().backward()
    assert (log_b.grad == 0).all()  # nothing is to be won from a smaller one


def test_pixels_are_mapped_once_and_back_once(model):
    images = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(unmap_pixels(map_pixels(images)), images)
    assert map_pixels(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0.1, 0.9])
    with mock.patch.object(dvae, "map_pixels", wraps=map_pixels) as mapped:
        model(images, 1.0, 1.0)
        assert mapped.call_count == 1
    with mock.patch.object(dvae, "unmap_pixels", wraps=unmap_pixels) as unmapped:
        model.decode(model.encode(images))
        assert unmapped.call_count == 1


def test_the_annealed_tau_is_the_tau_that_is_used(model):
    assert tau_schedule(0.0) == 1.0
    assert tau_schedule(0.8) == tau_schedule(1.0) == 1 / 16
    assert tau_schedule(0.4) == pytest.approx((1 + 1 / 16) / 2)
    assert tau_schedule(0.2) == pytest.approx(1 - 15 / 16 * math.sin(math.pi / 8) ** 2)
    with mock.patch.object(dvae.F, "gumbel_softmax", wraps=F.gumbel_softmax) as relaxed:
        model(torch.rand(1, 1, 28, 28), tau_schedule(0.5), 1.0)
        assert relaxed.call_args.kwargs["tau"] == tau_schedule(0.5)


def test_the_kl_weight_falls_from_120_to_1_in_the_first_third():
    weights = [kl_weight_schedule(step / 300) for step in range(301)]
    assert weights[0] == 120 and weights[99:] == [1.0] * 202
    for step in range(99):  # half a cosine
        assert weights[step] == pytest.approx(1 + 119 * math.cos(math.pi / 2 * step / 99) ** 2, abs=1e-6)
    assert weights[95] > 1


def test_the_residual_gain_is_one_over_the_squared_number_of_blocks():
    # Eight blocks, as in the paper, whose gain is 1/64 (appendix A.1).
    model = DiscreteVAE(DVAEConfig(image_size=16, codebook_size=4, hidden_dim=4, num_downsamples=3, num_blocks=2))
    for half in (model.encoder, model.decoder):
        blocks = [block for block in half if hasattr(block, "residual")]
        assert len(blocks) == 8
        for block in blocks:
            x = torch.randn(1, block.residual[1].in_channels, 8, 8)
            torch.testing.assert_close(block(x) - block.skip(x), block.residual(x) / 64, rtol=1e-3, atol=1e-5)


def test_tokens_are_read_and_painted_row_by_row():
    torch.manual_seed(0)
    model = DiscreteVAE(DVAEConfig(image_size=64, **SMALL))  # large enough that a corner does not see the one across
    image = torch.rand(1, 1, 64, 64)
    changed = image.clone()
    changed[..., :8, -8:] = 1 - changed[..., :8, -8:].round()  # above, on the right
    places = (model.encode(image) != model.encode(changed))[0].nonzero().flatten().tolist()
    assert places and all(place // 16 < 8 and place % 16 >= 8 for place in places)
    tokens = torch.zeros(1, 256, dtype=torch.long)
    before = model.decode(tokens)
    tokens[0, 15] = 1  # the last one of the first row
    different = (model.decode(tokens) != before)[0, 0]
    assert different[:32, 32:].any() and not different[32:].any() and not different[:, :32].any()


def test_evaluation_is_deterministic_and_uses_hard_tokens(model):
    images = torch.rand(2, 1, 28, 28)
    tokens = model.encode(images)
    assert tokens.shape == (2, 49) and tokens.dtype == torch.int64
    torch.testing.assert_close(model.encode(images), tokens)
    decoded = model.decode(tokens)
    assert decoded.shape == images.shape and decoded.min() >= 0 and decoded.max() <= 1


def test_decoding_tokens_is_decoding_their_one_hot_relaxation(model):
    tokens = torch.randint(16, (2, 49))
    seen = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.decode(tokens)
    one_hot = F.one_hot(tokens.view(2, 7, 7), 16).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(seen[0], torch.einsum("bkhw,kd->bdhw", one_hot, model.codebook.weight))


def test_collapse_is_seen():
    assert codebook_use(torch.zeros(100, dtype=torch.long), 16)["perplexity"] == pytest.approx(1)
    use = codebook_use(torch.arange(16).repeat(5), 16)
    assert use["perplexity"].item() == pytest.approx(16, rel=1e-4) and use["codes_used"] == 16


def test_it_learns_color_images_of_another_size():
    torch.manual_seed(0)
    model = DiscreteVAE(DVAEConfig(image_size=32, image_channels=3, **SMALL))
    images = (torch.rand(8, 3, 2, 2) > 0.5).float().repeat_interleave(16, 2).repeat_interleave(16, 3)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    before = model(images, 1.0, 0.0)[0].item()
    for _ in range(60):
        loss, _ = model(images, 1.0, 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < before - 0.3


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiple of 4"):
        DVAEConfig(image_size=30)


@pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf])
def test_weights_out_of_range_are_refused(beta):
    with pytest.raises(ValueError):
        DVAEConfig(beta=beta)


@pytest.mark.parametrize("size", [0, -4])
@pytest.mark.parametrize(
    "name", ["image_size", "image_channels", "codebook_size", "codebook_dim", "hidden_dim", "num_blocks"]
)
def test_sizes_out_of_range_are_refused(name, size):
    with pytest.raises(ValueError):
        DVAEConfig(**{name: size})
    with pytest.raises(ValueError):
        DVAEConfig(num_downsamples=-1)


def test_paper_preset_has_the_released_models_sizes():
    with torch.device("meta"):
        model = DiscreteVAE(DVAE_PRESETS["paper"])
    assert model.config.grid_size == 32
    assert 90e6 < sum(p.numel() for p in model.parameters()) < 105e6
