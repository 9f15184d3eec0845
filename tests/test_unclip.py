"""The prior and the decoder: what they are told, what they are not, and that they learn."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lesson_17.diffusion_decoder import DECODER_PRESETS, Decoder, DecoderConfig, decode_image_embed, from_x_0, to_x_0
from lesson_17.diffusion_prior import PRIOR_PRESETS, DiffusionPrior, PriorConfig, draw_image_embed
from lesson_17.unet import Attention, ResBlock

CLIP_SIZES = {"clip_embed_dim": 8, "clip_text_width": 12, "clip_text_seq_len": 3}
PRIOR = PriorConfig(**CLIP_SIZES, dim=32, num_layers=2)
DECODER = DecoderConfig(**CLIP_SIZES, image_size=32, image_channels=3, width=8, width_multipliers=(1, 2, 2), head_dim=8)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def randomized(model):
    for parameter in model.parameters():  # the decoder's output starts as zero, which would hide everything
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def conditions(batch=4):
    return F.normalize(torch.randn(batch, 8), dim=-1), torch.randn(batch, 3, 12)


def training_loss(model, x_0, *conditions):
    return model.diffusion.loss(model, x_0, *conditions)


def test_the_prior_reads_all_it_is_told():
    prior = randomized(DiffusionPrior(PRIOR))
    (text_embed, encodings), x_t, t = conditions(), torch.randn(4, 8), torch.tensor([1, 50, 500, 1000])
    out = prior(x_t, t, text_embed, encodings)
    assert out.shape == (4, 8)
    for changed in (
        prior(x_t + 1, t, text_embed, encodings),
        prior(x_t, t - 1, text_embed, encodings),
        prior(x_t, t, -text_embed, encodings),
        prior(x_t, t, text_embed, -encodings),
    ):
        assert (changed - out).abs().max() > 1e-4


def test_the_priors_positions_see_none_that_come_after_them():
    prior, seen = randomized(DiffusionPrior(PRIOR)), []
    prior.blocks[-1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    (text_embed, encodings), x_t, t = conditions(), torch.randn(4, 8), torch.tensor([1, 50, 500, 999])
    changed_encodings = [encodings.clone() for _ in range(3)]
    for position, changed in enumerate(changed_encodings):
        changed[:, position] += 1
    prior(x_t, t, text_embed, encodings)
    for changed in changed_encodings:
        prior(x_t, t, text_embed, changed)
    prior(x_t, t, -text_embed, encodings)
    prior(x_t, t + 1, text_embed, encodings)
    prior(x_t + 1, t, text_embed, encodings)
    out, *others = seen  # in the order of the sequence; the query comes last
    for position, other in enumerate(others):
        differs = (other != out).any(dim=-1)  # (4, 3 + 4)
        assert not differs[:, :position].any() and differs[:, position:].all()


def test_the_prior_answers_where_its_query_stands():
    prior, x_t, t = randomized(DiffusionPrior(PRIOR)), torch.randn(4, 8), torch.tensor([1, 50, 500, 1000])
    given = conditions()
    before = prior(x_t, t, *given)
    with torch.no_grad():
        prior.query.add_(torch.randn_like(prior.query))
    assert (prior(x_t, t, *given) - before).abs().min() > 0


def test_the_prior_without_its_caption_is_the_one_that_training_dropped_to():
    prior = randomized(DiffusionPrior(PriorConfig(**{**vars(PRIOR), "caption_dropout": 1.0})))
    x_t, t = torch.randn(4, 8), torch.full((4,), 300)
    null = prior(x_t, t, *conditions(), conditional=False)
    torch.testing.assert_close(null, prior(x_t, t, *conditions(), conditional=False))
    torch.testing.assert_close(null, prior.train()(x_t, t, *conditions()))


def test_the_priors_scale_gives_unit_variance_and_comes_back():
    prior, image_embed = (
        DiffusionPrior(PRIOR),
        F.normalize(torch.randn(500, 8) * torch.rand(8) + torch.randn(8), dim=-1),
    )
    prior.fit_scale(image_embed)
    scaled = prior.scale(image_embed)
    torch.testing.assert_close(scaled.std(dim=0), torch.ones(8))
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(prior.unscale(scaled), image_embed)
    assert "embed_std" in prior.state_dict()


def test_of_two_draws_the_one_nearer_to_the_caption_is_kept():
    prior, (text_embed, encodings) = randomized(DiffusionPrior(PRIOR)), conditions(16)
    noise = torch.randn(2, 16, 8)
    supply = iter(noise)
    kept = draw_image_embed(prior, text_embed, encodings, num_steps=4, randn=lambda shape: next(supply))

    def network(x, t):
        return prior(x, t, text_embed, encodings)

    both = torch.stack([prior.unscale(prior.diffusion.sample(network, x_T, 4)) for x_T in noise])
    products = (both * text_embed).sum(dim=-1)
    torch.testing.assert_close((kept * text_embed).sum(dim=-1), products.max(dim=0).values)
    torch.testing.assert_close(kept.norm(dim=-1), torch.ones(16))


def test_the_prior_learns_which_embedding_belongs_to_which_caption():
    prior, (text_embed, encodings) = DiffusionPrior(PRIOR), conditions(4)
    image_embed = F.normalize(torch.randn(4, 8), dim=-1)
    prior.fit_scale(image_embed)
    x_0, optimizer = prior.scale(image_embed).repeat(16, 1), torch.optim.AdamW(prior.parameters(), 3e-3)
    for _ in range(200):
        loss = training_loss(prior, x_0, text_embed.repeat(16, 1), encodings.repeat(16, 1, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = draw_image_embed(prior.eval(), text_embed, encodings)
    assert (drawn @ image_embed.T).argmax(dim=1).tolist() == [0, 1, 2, 3]


def test_the_decoder_starts_from_nothing():
    out = Decoder(DECODER)(torch.randn(2, 3, 32, 32), torch.tensor([1, 1000]), *conditions(2))
    assert out.shape == (2, 3, 32, 32) and (out == 0).all()


def test_the_decoder_reads_all_it_is_told():
    decoder = randomized(Decoder(DECODER))
    (image_embed, encodings), x_t, t = conditions(2), torch.randn(2, 3, 32, 32), torch.tensor([50, 700])
    out = decoder(x_t, t, image_embed, encodings)
    for changed in (
        decoder(x_t + 1, t, image_embed, encodings),
        decoder(x_t, t + 10, image_embed, encodings),
        decoder(x_t, t, -image_embed, encodings),
        decoder(x_t, t, image_embed, -encodings),
        decoder(x_t, t, image_embed),
    ):
        assert (changed - out).abs().max() > 1e-4


def test_the_decoders_nulls_are_those_that_training_drops_to():
    always = DecoderConfig(**{**vars(DECODER), "image_dropout": 1.0, "caption_dropout": 1.0})
    decoder, x_t, t = randomized(Decoder(always)), torch.randn(2, 3, 32, 32), torch.tensor([50, 700])
    null = decoder(x_t, t, *conditions(2), conditional=False)
    torch.testing.assert_close(null, decoder.train()(x_t, t, *conditions(2)))
    without_captions = {"image_dropout": 0.0, "caption_dropout": 1.0, "image_noise": 0.0}
    no_caption = Decoder(DecoderConfig(**{**vars(DECODER), **without_captions}))
    image_embed, encodings = conditions(2)
    no_caption.load_state_dict(decoder.state_dict())
    torch.testing.assert_close(
        no_caption.train()(x_t, t, image_embed, encodings), no_caption.eval()(x_t, t, image_embed, None)
    )


def test_the_image_embedding_is_in_the_time_embedding_and_in_four_tokens():
    decoder, (image_embed, encodings) = randomized(Decoder(DECODER)), conditions(2)
    t = torch.tensor([50, 700])
    time, context = decoder.condition(t, image_embed, encodings, conditional=True)
    other_time, other_context = decoder.condition(t, -image_embed, encodings, conditional=True)
    assert context.shape == (2, 4 + 3, 4 * DECODER.width)
    assert (time != other_time).any() and (context[:, :4] != other_context[:, :4]).any()
    assert torch.equal(context[:, 4:], other_context[:, 4:])


def test_the_captions_last_position_is_in_the_time_embedding_and_all_are_in_the_context():
    decoder, (image_embed, encodings) = randomized(Decoder(DECODER)), conditions(2)
    t = torch.tensor([50, 700])
    time, context = decoder.condition(t, image_embed, encodings, conditional=True)
    for position in range(3):
        changed = encodings.clone()
        changed[:, position] += 1
        other_time, other_context = decoder.condition(t, image_embed, changed, conditional=True)
        assert torch.equal(time, other_time) == (position < 2)
        assert [(context[:, i] != other_context[:, i]).any() for i in range(4, 7)] == [i == position for i in range(3)]
    null_time, _ = decoder.condition(t, image_embed, None, conditional=True)
    of_null, _ = decoder.condition(t, image_embed, decoder.null_caption.expand(2, -1, -1), conditional=True)
    assert (null_time - time).abs().max() > 1e-4 and torch.equal(null_time, of_null)


def test_training_turns_image_embeddings_by_noise_of_the_given_length():
    """Noise of length s, which is nearly orthogonal to the embedding, leaves a cosine of 1 / sqrt(1 + s^2)."""
    sizes = {"clip_embed_dim": 1024, "image_dropout": 0.0, "image_noise": 0.75}
    decoder, seen = Decoder(DecoderConfig(**{**vars(DECODER), **sizes})), []
    decoder.image_to_time.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    image_embed = F.normalize(torch.randn(200, 1024), dim=-1)
    encodings, t = torch.randn(200, 3, DECODER.clip_text_width), torch.full((200,), 50)
    for training in (True, False):
        decoder.train(training).condition(t, image_embed, encodings, conditional=True)
    noised, kept = (F.normalize(read, dim=-1) for read in seen)
    cosines = F.cosine_similarity(noised, image_embed)
    assert cosines.mean() == pytest.approx(1 / math.sqrt(1 + 0.75**2), abs=0.01) and cosines.std() > 0.005
    torch.testing.assert_close(seen[0].norm(dim=-1), torch.full((200,), 32.0))
    torch.testing.assert_close(kept, image_embed)


def test_the_decoder_reads_image_embeddings_whose_components_are_about_1():
    decoder, (image_embed, encodings), seen = Decoder(DECODER).eval(), conditions(2), []
    for layer in (decoder.image_to_time, decoder.image_to_tokens):
        layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    decoder.condition(torch.tensor([50, 700]), image_embed, encodings, conditional=True)
    for read in seen:
        torch.testing.assert_close(F.normalize(read, dim=-1), image_embed)
        torch.testing.assert_close(read.square().mean(dim=-1), torch.ones(2))
    assert len(seen) == 2


def test_the_time_embedding_scales_and_shifts_what_is_normalized():
    block, x = ResBlock(4, 4, dim=8), torch.randn(2, 4, 5, 5)
    torch.nn.init.normal_(block.conv_2.weight)
    torch.nn.init.zeros_(block.to_scale_and_shift.weight)
    scale, shift = torch.tensor([0.5, -1, 2, 0]), torch.tensor([0, 1, -0.5, 3])
    block.to_scale_and_shift.bias.data = torch.cat([scale, shift])
    h = F.group_norm(block.conv_1(F.silu(F.group_norm(x, 1))), 1)
    h = F.silu(h * (1 + scale.view(4, 1, 1)) + shift.view(4, 1, 1))
    torch.testing.assert_close(block(x, torch.randn(2, 8)), x + F.conv2d(h, block.conv_2.weight, padding=1))


def test_attention_to_positions_and_context_is_the_function_that_torch_computes():
    ours, theirs = Attention(32, dim=32, head_dim=8), nn.MultiheadAttention(32, 4, batch_first=True)
    randomized(ours)
    # Torch's has one projection for all keys and values, so ours reads the context as it does the positions.
    ours.context_to_kv.weight.data = ours.to_qkv.weight.data[32:]
    ours.context_to_kv.bias.data = ours.to_qkv.bias.data[32:]
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.to_qkv.weight.data, ours.to_qkv.bias.data
    theirs.out_proj.load_state_dict(ours.to_out.state_dict())
    x, context = torch.randn(2, 32, 3, 4), torch.randn(2, 5, 32)
    positions = ours.norm(x).flatten(2).transpose(1, 2)
    read = torch.cat([positions, context], dim=1)
    expected, _ = theirs(positions, read, read)
    torch.testing.assert_close(ours(x, context), x + expected.transpose(1, 2).view_as(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "size,channels,multipliers",
    [(28, 1, (1, 2, 2)), (32, 3, (1, 2, 2, 2)), (16, 1, (1,)), (14, 1, (1, 2, 2)), (1, 1, (1, 2))],
)
def test_levels_follow_the_image(size, channels, multipliers):
    c = DecoderConfig(
        **{**vars(DECODER), "image_size": size, "image_channels": channels, "width_multipliers": multipliers}
    )
    x_t = torch.randn(2, channels, size, size)
    assert Decoder(c)(x_t, torch.tensor([1, 2]), *conditions(2)).shape == x_t.shape


@pytest.mark.parametrize(
    "config,wrong", [(DecoderConfig, {"width": 12}), (DecoderConfig, {"head_dim": 48}), (PriorConfig, {"num_heads": 3})]
)
def test_sizes_that_do_not_divide_are_refused(config, wrong):
    with pytest.raises(ValueError, match="divide"):
        config(**wrong)


SIZES = {
    PriorConfig: "clip_embed_dim clip_text_width clip_text_seq_len dim num_layers num_heads num_timesteps",
    DecoderConfig: "image_size image_channels clip_embed_dim clip_text_width clip_text_seq_len width num_blocks "
    "num_attention_levels head_dim num_timesteps",
}


@pytest.mark.parametrize("config,name", [(config, name) for config, names in SIZES.items() for name in names.split()])
def test_sizes_out_of_range_are_refused(config, name):
    for size in (0, -2):
        with pytest.raises(ValueError):
            config(**{name: size})


@pytest.mark.parametrize(
    "config,name",
    [(PriorConfig, "caption_dropout")]
    + [(DecoderConfig, name) for name in ("caption_dropout", "image_dropout", "image_noise")],
)
def test_fractions_out_of_range_are_refused(config, name):
    for fraction in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError):
            config(**{name: fraction})


@pytest.mark.parametrize("wrong", [dict(width_multipliers=()), dict(num_attention_levels=4), dict(schedule="none")])
def test_impossible_decoders_are_refused(wrong):
    with pytest.raises(ValueError):
        DecoderConfig(**wrong)


def test_the_decoder_learns_which_image_belongs_to_which_embedding():
    decoder, (image_embed, encodings) = Decoder(DecoderConfig(**{**vars(DECODER), "image_size": 16})), conditions(2)
    images = torch.zeros(2, 3, 16, 16)
    images[0, :, 4:12, 4:12] = 1
    images[1, :, :, 6:10] = 1
    x_0, optimizer = to_x_0(images).repeat(8, 1, 1, 1), torch.optim.AdamW(decoder.parameters(), 1e-2)
    for _ in range(100):
        loss = training_loss(decoder, x_0, image_embed.repeat(8, 1), encodings.repeat(8, 1, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = decode_image_embed(decoder.eval(), image_embed, encodings, torch.randn(2, 3, 16, 16), num_steps=10)
    assert drawn.min() >= 0 and drawn.max() <= 1
    assert (drawn - images).square().mean() < 0.04 < (drawn - images.flip(0)).square().mean()


def test_images_come_back_from_the_decoders_range():
    images = torch.rand(2, 3, 4, 4)
    assert to_x_0(images).min() < 0
    torch.testing.assert_close(from_x_0(to_x_0(images)), images)


def test_paper_presets_have_the_papers_sizes():
    with torch.device("meta"):
        prior, decoder = DiffusionPrior(PRIOR_PRESETS["paper"]), Decoder(DECODER_PRESETS["paper"])
    billions = [sum(p.numel() for p in model.parameters()) / 1e9 for model in (prior, decoder)]
    assert billions[0] == pytest.approx(1.0, abs=0.25)  # "1 billion", appendix C
    # 3.5 billion in the paper, of which 1.2 are a text transformer; our U-Net has one block less where levels meet.
    assert billions[1] == pytest.approx(2.3, abs=0.6)
