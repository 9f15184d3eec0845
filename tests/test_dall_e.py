"""The transformer: its masks, its loss, its cache, its sampling."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lesson_08.dall_e import (
    DALL_E_PRESETS,
    Block,
    DallE,
    DallEConfig,
    KeyValueCache,
    attention_masks,
    attention_types,
    filtered_probs,
    sample_token,
)
from lesson_08.dvae import DiscreteVAE, DVAEConfig
from utils.bpe import PAD_ID, Tokenizer
from utils.checkpoints import load_model

CONFIG = DallEConfig(
    text_vocab_size=20, image_vocab_size=32, text_seq_len=3, grid_size=4, dim=32, num_layers=4, conv_kernel_size=3
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = DallE(CONFIG)
    for parameter in model.parameters():  # larger than at the start of training, so that mistakes show
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def batch(size=2):
    return torch.randint(1, 20, (size, 3)), torch.randint(32, (size, 16))


@pytest.mark.parametrize("grid,kernel", [(4, 3), (7, 5), (5, 11)])
def test_masks_agree_with_their_definition_place_by_place(grid, kernel):
    text, radius = 3, kernel // 2
    masks = attention_masks(text, grid, kernel)
    for i in range(text + grid**2):
        for j in range(text + grid**2):
            both = i >= text and j >= text
            query, key = i - text, j - text
            # A kernel that wraps around: a step of (up, left) leads back by up rows and left places in raster order.
            kernel_places = {
                query - up * grid - left for up in range(radius + 1) for left in range(-radius, radius + 1)
            }
            expected = {
                "row": key in range(query - grid, query + 1),
                "column": key <= query and key % grid == query % grid,
                "conv": key <= query and key in kernel_places,
            }
            for name, mask in masks.items():
                assert mask[i, j] == (j <= i and (not both or expected[name])), (name, i, j)


def test_layers_have_the_papers_order():
    types = attention_types(64)
    assert types[:6] == ["row", "column", "row", "row", "row", "column"]
    assert types[-1] == "conv" and types.count("conv") == 1
    assert all((kind == "column") == ((layer - 2) % 4 == 0) for layer, kind in enumerate(types[:-1], start=1))


def test_a_block_is_the_function_that_torch_computes():
    torch.manual_seed(0)
    ours = Block(32, num_heads=4, dropout=0.0)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    theirs = nn.TransformerEncoderLayer(32, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True)
    nn.init.zeros_(theirs.self_attn.in_proj_bias)
    theirs.self_attn.in_proj_weight.data = ours.attention.to_qkv.weight.data
    theirs.self_attn.out_proj.load_state_dict(ours.attention.to_out.state_dict())
    theirs.linear1.load_state_dict(ours.mlp[0].state_dict())
    theirs.linear2.load_state_dict(ours.mlp[2].state_dict())
    theirs.norm1.load_state_dict(ours.norm_1.state_dict())
    theirs.norm2.load_state_dict(ours.norm_2.state_dict())
    x, mask = torch.randn(2, 19, 32), attention_masks(3, 4, 3)["column"]
    torch.testing.assert_close(ours(x, mask), theirs(x, ~mask), rtol=1e-4, atol=1e-4)


def test_an_image_token_is_told_its_row_and_its_column(model):
    _, image = batch()
    before = model.embed_image(image)
    with torch.no_grad():
        model.embed_row.weight[1] += 1
        model.embed_column.weight[2] += 10
    expected = torch.zeros(4, 4, 32)
    expected[1] += 1
    expected[:, 2] += 10
    for told in (model.embed_image(image) - before).view(2, 4, 4, 32):
        torch.testing.assert_close(told, expected, rtol=1e-4, atol=1e-4)


def test_a_prediction_does_not_see_its_token_or_later_ones(model):
    text, image = batch(1)
    _, logits = model.logits(text, image)
    for place in (0, 5, 15):
        changed = image.clone()
        changed[0, place] = (changed[0, place] + 1) % 32
        _, other = model.logits(text, changed)
        torch.testing.assert_close(other[:, : place + 1], logits[:, : place + 1])
        if place < 15:
            assert not torch.allclose(other[:, place + 1 :], logits[:, place + 1 :])


@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_cached_logits_equal_uncached_ones(num_layers):
    torch.manual_seed(0)
    model = DallE(DallEConfig(**{**vars(CONFIG), "num_layers": num_layers})).eval()
    text, image = batch()
    _, expected = model.logits(text, image)
    caches = [KeyValueCache() for _ in model.blocks]
    x, first, logits = model.embed_text(text), 0, []
    for place in range(16):
        logits.append(model.to_image_logits(model.transformer(x, caches, first)[:, -1]))
        first += x.shape[1]
        x = model.embed_image(image[:, place : place + 1], place=place)
    torch.testing.assert_close(torch.stack(logits, dim=1), expected, rtol=1e-4, atol=1e-5)


def test_loss_weighs_text_and_image_each_over_its_own_tokens(model):
    text, image = batch()
    loss, parts = model(text, image)
    text_logits, image_logits = model.logits(text, image)
    by_hand = -text_logits.log_softmax(-1).gather(-1, model.text_ids(text)[..., None]).mean()
    torch.testing.assert_close(parts["text_loss"], by_hand)
    torch.testing.assert_close(parts["image_loss"], F.cross_entropy(image_logits.flatten(0, 1), image.flatten()))
    torch.testing.assert_close(loss, parts["text_loss"] / 8 + parts["image_loss"] * 7 / 8)


def test_padding_is_a_token_of_its_own_at_each_position(model):
    ids = model.text_ids(torch.tensor([[5, PAD_ID, PAD_ID]]))
    assert ids.tolist() == [[5, 21, 22]]


def test_the_null_caption_is_a_caption_that_is_all_padding(model):
    after_the_caption = Tokenizer.train(["a"]).encode(["a"], 4)[0, 1:]
    assert torch.equal(model.null_caption, after_the_caption)
    assert model.text_ids(model.null_caption[None]).tolist() == [[20, 21, 22]]


def test_training_drops_to_the_null_caption_that_guidance_uses(model):
    model.config = DallEConfig(**{**vars(CONFIG), "caption_dropout": 1.0, "token_corruption": 0.0})
    text, image = batch()
    dropped, _ = model.train()(text, image)
    null, _ = model.eval()(model.null_caption.expand_as(text), image)
    torch.testing.assert_close(dropped, null)


def test_corruption_changes_what_training_reads_and_not_what_it_predicts(model):
    text, image = batch()
    model.config = DallEConfig(**{**vars(CONFIG), "caption_dropout": 0.0, "token_corruption": 1.0})
    text_logits, image_logits = model.logits(text, image.flip(0))  # of two images, each reads the other
    loss, parts = model.train()(text, image)
    torch.testing.assert_close(parts["image_loss"], F.cross_entropy(image_logits.flatten(0, 1), image.flatten()))
    model.config = DallEConfig(**{**vars(CONFIG), "caption_dropout": 0.0, "token_corruption": 0.0})
    torch.testing.assert_close(model(text, image), model.eval()(text, image))


def test_guidance_0_is_the_unconditional_model_and_1_the_conditional_one(model):
    text, _ = batch(4)
    u = torch.rand(4, 16)
    null = model.null_caption.expand_as(text)
    assert torch.equal(model.generate(text, guidance_scale=0.0, u=u), model.generate(null, u=u))
    assert torch.equal(model.generate(text, guidance_scale=1.0, u=u), model.generate(text, u=u))
    assert not torch.equal(model.generate(text, guidance_scale=3.0, u=u), model.generate(text, u=u))


def test_greedy_sampling_takes_the_likeliest_token_at_each_place(model):
    text, _ = batch()
    image = model.generate(text, temperature=0.0)
    _, logits = model.logits(text, image)
    assert torch.equal(logits.argmax(-1), image)


def test_a_loaded_model_draws_without_dropout(model):
    text, _ = batch(4)
    u = torch.rand(4, 16)
    config = {**vars(CONFIG), "dropout": 0.5, "caption_dropout": 1.0, "token_corruption": 1.0}
    checkpoint = {"name": "dall_e", "config": config, "model": model.state_dict(), "ema": None}
    loaded = load_model(checkpoint, DallE, DallEConfig)
    assert torch.equal(loaded.generate(text, u=u), model.generate(text, u=u))
    assert not torch.equal(loaded.train().generate(text, u=u), model.generate(text, u=u))


def test_completion_keeps_its_prefix(model):
    text, image = batch()
    drawn = model.generate(text, prefix=image[:, :8], u=torch.rand(2, 16))
    assert drawn.shape == (2, 16) and torch.equal(drawn[:, :8], image[:, :8])


def test_an_image_is_a_function_of_its_prompt_and_its_u(model):
    text, _ = batch(4)
    u = torch.rand(4, 16)
    together = model.generate(text, u=u)
    assert torch.equal(torch.cat([model.generate(text[:1], u=u[:1]), model.generate(text[1:], u=u[1:])]), together)


@pytest.mark.parametrize(
    "filters,kept",
    [((1.0, 0, 1.0), [0, 1, 2, 3]), ((1.0, 2, 1.0), [0, 1]), ((1.0, 0, 0.6), [0, 1]), ((1.0, 0, 0.4), [0])],
)
def test_sampled_frequencies_are_the_filtered_probabilities(filters, kept):
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    u = (torch.arange(10_000) + 0.5) / 10_000
    tokens = sample_token(probs.log().expand(10_000, 4), *filters, u)
    frequencies = torch.bincount(tokens, minlength=4) / 10_000
    expected = torch.zeros(4)
    expected[kept] = probs[kept] / probs[kept].sum()
    torch.testing.assert_close(frequencies, expected, atol=2e-3, rtol=0)


def test_filtered_probs_leave_the_others_as_they_were():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()[:, [2, 0, 3, 1]]
    probs, tokens = filtered_probs(logits, 1.0, 0, 0.7)
    assert tokens.tolist() == [[1, 3, 0, 2]]
    torch.testing.assert_close(probs, torch.tensor([[0.5, 0.3, 0, 0]]))


def test_temperature_sharpens():
    logits = torch.tensor([[1.0, 0.0]]).expand(10_000, 2)
    u = (torch.arange(10_000) + 0.5) / 10_000
    share = (sample_token(logits, 0.5, 0, 1.0, u) == 0).float().mean()
    assert share == pytest.approx(torch.sigmoid(torch.tensor(2.0)).item(), abs=1e-3)


def test_it_overfits_a_few_images():
    torch.manual_seed(0)
    model = DallE(DallEConfig(**{**vars(CONFIG), "caption_dropout": 0.0, "token_corruption": 0.0}))
    text, image = batch(4)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(150):
        loss, _ = model(text, image)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(model.eval().generate(text, temperature=0.0), image)


def test_it_trains_on_the_tokens_of_larger_images_in_color():
    torch.manual_seed(0)
    dvae = DiscreteVAE(DVAEConfig(image_size=32, image_channels=3, codebook_size=32, hidden_dim=8))
    image = dvae.encode(torch.rand(4, 3, 32, 32))
    model = DallE(DallEConfig(**{**vars(CONFIG), "grid_size": dvae.config.grid_size}))
    text, optimizer, losses = torch.randint(1, 20, (4, 3)), torch.optim.AdamW(model.parameters(), 3e-3), []
    for _ in range(10):
        loss, _ = model(text, image)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    assert dvae.decode(model.eval().generate(text)).shape == (4, 3, 32, 32)


def test_paper_preset_has_12_billion_parameters():
    with torch.device("meta"):
        model = DallE(DALL_E_PRESETS["paper"])
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(12, rel=0.04)


@pytest.mark.parametrize(
    "wrong", [dict(num_heads=3), dict(conv_kernel_size=4), dict(pad_id=-1), dict(text_vocab_size=20, pad_id=20)]
)
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(ValueError):
        DallEConfig(**wrong)


@pytest.mark.parametrize(
    "name", [name for name, value in vars(CONFIG).items() if type(value) is int and name != "pad_id"]
)
@pytest.mark.parametrize("size", [0, -1])
def test_sizes_out_of_range_are_refused(name, size):
    with pytest.raises(ValueError):
        DallEConfig(**{name: size})


@pytest.mark.parametrize("name", [name for name, value in vars(CONFIG).items() if isinstance(value, float)])
@pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan])
def test_fractions_out_of_range_are_refused(name, fraction):
    with pytest.raises(ValueError):
        DallEConfig(**{name: fraction})
