"""CLIP: the same function as transformers', a loss that knows synonyms, and captions encoded once or anew."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_clip import END_ID, their_model
from torch.nn import functional as F
from transformers import CLIPModel

from lesson_17 import frozen_clip
from lesson_17.clip import CLIP, CLIP_PRESETS, CLIPConfig, contrastive_loss, valid_pairs
from lesson_17.frozen_clip import FrozenCLIP, tokenize
from lesson_17.train_clip import distort
from utils.bpe import PAD_ID, Tokenizer

CONFIG = CLIPConfig(
    image_size=32,
    image_channels=3,
    patch_size=8,
    image_width=32,
    image_layers=2,
    image_heads=4,
    text_vocab_size=30,
    text_seq_len=16,
    text_width=16,
    text_layers=2,
    text_heads=2,
    embed_dim=8,
)


def copy_weights(theirs: CLIPModel, ours: CLIP) -> None:
    state = theirs.state_dict()

    def blocks(prefix):
        parts = {"norm_1": "layer_norm1", "norm_2": "layer_norm2", "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2"}
        parts["attention.to_out"] = "self_attn.out_proj"
        for layer in range(2):
            their = f"{prefix}.encoder.layers.{layer}"
            for kind in ("weight", "bias"):
                for mine, name in parts.items():
                    yield f"blocks.{layer}.{mine}.{kind}", state[f"{their}.{name}.{kind}"]
                qkv = [state[f"{their}.self_attn.{which}_proj.{kind}"] for which in "qkv"]
                yield f"blocks.{layer}.attention.to_qkv.{kind}", torch.cat(qkv)

    vision, text = "vision_model", "text_model"
    image_encoder = {
        "embed_patches.weight": state[f"{vision}.embeddings.patch_embedding.weight"],
        "class_token": state[f"{vision}.embeddings.class_embedding"],
        "positions": state[f"{vision}.embeddings.position_embedding.weight"],
        "norm_before.weight": state[f"{vision}.pre_layrnorm.weight"],
        "norm_before.bias": state[f"{vision}.pre_layrnorm.bias"],
        "norm_after.weight": state[f"{vision}.post_layernorm.weight"],
        "norm_after.bias": state[f"{vision}.post_layernorm.bias"],
        "projection.weight": state["visual_projection.weight"],
        **dict(blocks(vision)),
    }
    text_encoder = {
        "embed_token.weight": state[f"{text}.embeddings.token_embedding.weight"],
        "positions": state[f"{text}.embeddings.position_embedding.weight"],
        "norm.weight": state[f"{text}.final_layer_norm.weight"],
        "norm.bias": state[f"{text}.final_layer_norm.bias"],
        "projection.weight": state["text_projection.weight"],
        **dict(blocks(text)),
    }
    ours.image_encoder.load_state_dict(image_encoder)
    ours.text_encoder.load_state_dict(text_encoder)
    ours.logit_scale.data = state["logit_scale"].view(1)


def captions(*rows):
    return torch.tensor([row + [END_ID] * (16 - len(row)) for row in rows])


def test_it_is_the_function_that_transformers_computes():
    theirs, ours = their_model(), CLIP(CONFIG)
    copy_weights(theirs, ours)
    images, tokens = torch.rand(4, 3, 32, 32), captions([3], [4, 5], [7, 8, 9, 10, 11], [20, 3])
    with torch.no_grad():
        expected = theirs(input_ids=tokens, pixel_values=2 * images - 1)
        image_embed, (text_embed, encodings) = ours.encode_image(images), ours.encode_text(tokens)
        logits = ours.logits_per_image(image_embed, text_embed)
    torch.testing.assert_close(image_embed, expected.image_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(text_embed, expected.text_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encodings, expected.text_model_output.last_hidden_state, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, expected.logits_per_image, rtol=1e-4, atol=1e-4)


def test_what_stands_after_the_end_of_a_caption_does_not_matter():
    model = CLIP(CONFIG).eval()
    text_embed, _ = model.encode_text(captions([5, 6, END_ID, 9, 9, 9], [5, 6, END_ID, END_ID, 2, 3]))
    torch.testing.assert_close(text_embed[0], text_embed[1])


def test_the_end_of_a_caption_is_where_the_tokenizers_padding_starts():
    model = CLIP(CONFIG).eval()
    other = CLIP(CLIPConfig(**{**vars(CONFIG), "pad_id": 4})).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.text_encoder.embed_token.weight[[0, 4]] = model.text_encoder.embed_token.weight[[4, 0]]
    tokens = captions([5, 6], [7])
    swapped = torch.where(tokens == 0, 4, tokens)
    torch.testing.assert_close(other.encode_text(swapped), model.encode_text(tokens))


def test_with_one_right_caption_each_it_is_the_papers_loss():
    logits = torch.randn(5, 5)
    loss, floor = contrastive_loss(logits, torch.eye(5).bool())
    expected = (F.cross_entropy(logits, torch.arange(5)) + F.cross_entropy(logits.T, torch.arange(5))) / 2
    torch.testing.assert_close(loss, expected)
    assert floor == 0


def test_synonyms_are_right_and_the_floor_is_reached():
    meanings = torch.tensor([0, 0, 0, 1, 2, 2])
    holds = meanings[:, None] == meanings
    perfect = 100 * holds.float()
    loss, floor = contrastive_loss(perfect, holds)
    torch.testing.assert_close(loss, floor)
    torch.testing.assert_close(floor, torch.tensor((3 * math.log(3) + 2 * math.log(2)) / 6))
    worse = perfect.clone()
    worse[0, 1] = 0  # a synonym that is taken for wrong
    assert contrastive_loss(worse, holds)[0] > floor + 1


def test_the_order_of_the_batch_does_not_matter():
    logits, meanings, order = torch.randn(6, 6), torch.tensor([0, 1, 1, 2, 0, 3]), torch.randperm(6)
    holds = meanings[:, None] == meanings
    shuffled = contrastive_loss(logits[order][:, order], holds[order][:, order])
    torch.testing.assert_close(shuffled, contrastive_loss(logits, holds))


def test_a_caption_that_says_less_holds_for_more_images():
    """Images: a thick red seven, a thin red seven, a blue one. Captions: "thick red seven", "red seven", "blue one"."""
    holds = valid_pairs(torch.tensor([0, 1, 2]), torch.tensor([[0, 1], [1, 5], [2, -1]]))
    assert holds.tolist() == [[True, True, False], [False, True, False], [False, False, True]]
    logits = torch.randn(3, 3)
    by_image, by_caption = logits.log_softmax(dim=1), logits.log_softmax(dim=0)
    image_loss = -(by_image[0, :2].mean() + by_image[1, 1] + by_image[2, 2]) / 3
    caption_loss = -(by_caption[0, 0] + by_caption[:2, 1].mean() + by_caption[2, 2]) / 3
    loss, floor = contrastive_loss(logits, holds)
    torch.testing.assert_close(loss, (image_loss + caption_loss) / 2)
    torch.testing.assert_close(floor, torch.tensor(2 * math.log(2) / 6))


def test_the_logits_scale_starts_where_the_papers_does_and_is_limited_to_100_with_a_gradient():
    torch.manual_seed(0)
    model, batch = (
        CLIP(CONFIG),
        (torch.rand(3, 3, 32, 32), captions([3], [4], [5]), torch.arange(3), torch.arange(3)[:, None]),
    )
    model.clip_logit_scale()
    torch.testing.assert_close(model(*batch)[1]["logit_scale"].detach(), torch.tensor(1 / 0.07))
    model.logit_scale.data.fill_(10.0)
    model.clip_logit_scale()
    loss, metrics = model(*batch)
    torch.testing.assert_close(metrics["logit_scale"].detach(), torch.tensor(100.0))
    loss.backward()
    image_embed, (text_embed, _) = model.encode_image(batch[0]), model.encode_text(batch[1])
    cosines, at_limit = (image_embed @ text_embed.T).detach(), torch.tensor(math.log(100), requires_grad=True)
    contrastive_loss(at_limit.exp() * cosines, torch.eye(3).bool())[0].backward()
    assert at_limit.grad != 0
    torch.testing.assert_close(model.logit_scale.grad.squeeze(), at_limit.grad, rtol=1e-3, atol=1e-4)


def test_logits_keep_float32s_precision_under_autocast():
    torch.manual_seed(0)
    model = CLIP(CONFIG)
    model.logit_scale.data.fill_(math.log(100))
    image_embed, text_embed = F.normalize(torch.randn(2, 64, 8), dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.logits_per_image(image_embed, text_embed)
    exact = 100 * image_embed.double() @ text_embed.double().T
    assert logits.dtype == torch.float32 and (logits - exact).abs().max() < 1e-3


def test_it_learns_to_tell_a_few_images_apart():
    torch.manual_seed(0)
    model = CLIP(CONFIG)
    images, tokens = torch.rand(4, 3, 32, 32), captions([3], [4], [5], [6])
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(40):
        loss, metrics = model(images, tokens, torch.arange(4), torch.arange(4)[:, None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < metrics["floor"] + 0.05


@pytest.mark.parametrize(
    "wrong",
    [dict(patch_size=5), dict(image_heads=5), dict(text_heads=3), dict(pad_id=-1), dict(text_vocab_size=20, pad_id=20)],
)
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(ValueError):
        CLIPConfig(**wrong)


@pytest.mark.parametrize("name", [name for name in vars(CONFIG) if name != "pad_id"])
@pytest.mark.parametrize("size", [0, -1])
def test_sizes_out_of_range_are_refused(name, size):
    with pytest.raises(ValueError):
        CLIPConfig(**{name: size})


def test_images_are_distorted_a_little_and_each_in_its_own_way(monkeypatch):
    torch.manual_seed(0)
    images = torch.zeros(200, 1, 28, 28)
    images[..., 8:20, 12:16] = 1.0  # an upright bar
    x = distort(images)
    assert x.min() >= 0 and x.max() <= 1 and len(x.flatten(1).unique(dim=0)) == 200
    places = torch.arange(28.0) - 13.5
    mass = x.sum(dim=(1, 2, 3))
    across, down = (x.sum(dim=(1, dim)) @ places / mass for dim in (2, 3))
    for shift in (across, down):  # up to 0.15 half sides, as often to either side
        assert 1.5 < shift.abs().max() < 2.8 and shift.mean().abs() < 0.3
    size = (mass / images[0].sum()).sqrt()
    assert 0.84 < size.min() < 0.9 and 1.1 < size.max() < 1.2
    x = x[:, 0]
    slant = torch.stack([(row @ places / row.sum(dim=-1).clamp(min=1e-6))[[10, 17]].diff()[0] / 7 for row in x]).atan()
    assert 0.1 < slant.max() < 0.2 and -0.2 < slant.min() < -0.1
    monkeypatch.setattr("lesson_17.train_clip.DISTORTION", 0.0)
    torch.testing.assert_close(distort(images), images, atol=1e-5, rtol=0)


def test_what_is_beyond_the_edge_looks_like_the_edge():
    torch.testing.assert_close(distort(torch.full((8, 3, 28, 28), 0.7)), torch.full((8, 3, 28, 28), 0.7))


def test_paper_preset_has_the_size_of_vit_h():
    with torch.device("meta"):
        model = CLIP(CLIP_PRESETS["paper"])
    # ViT-H has 632 million (arXiv 2010.11929, table 1); the text encoder adds 24 blocks of width 1,024.
    assert sum(p.numel() for p in model.image_encoder.parameters()) / 1e6 == pytest.approx(632, rel=0.01)


def test_images_of_another_size_are_resized_and_gray_ones_repeated():
    model, images = CLIP(CONFIG), torch.rand(2, 1, 28, 28)
    resized = F.interpolate(images, size=(32, 32), mode="bicubic", antialias=True).clamp(0, 1).repeat(1, 3, 1, 1)
    torch.testing.assert_close(model.encode_image(images), model.encode_image(resized))


def test_captions_are_encoded_alike_whether_they_fit_into_the_memory_or_not(monkeypatch):
    torch.manual_seed(0)
    texts = ["a red seven", "blue 4", "七"]
    clip = FrozenCLIP(CLIP(replace(CONFIG, text_vocab_size=300)), Tokenizer.train(texts, 300), {}, None)
    table = frozen_clip.EncodedCaptions(clip, texts, "cpu")
    monkeypatch.setattr(frozen_clip, "free_memory", lambda device: 0)
    anew = frozen_clip.EncodedCaptions(clip, texts, "cpu")
    assert table.encoded is not None and anew.encoded is None
    index = torch.tensor([2, 0, 2])
    for found, expected in zip(anew[index], table[index]):
        torch.testing.assert_close(found, expected)
    assert table[index][0].shape == (3, CONFIG.embed_dim)


def test_a_caption_that_is_too_long_is_cut_before_its_end():
    tokenizer = Tokenizer.train(["one two three"], 257)
    tokens = tokenize(tokenizer, ["one two three", "one"], 6)
    assert tokens[0].tolist() == [*tokenizer.ids("one two three")[:5], PAD_ID]
    assert tokens[1].tolist() == [*tokenizer.ids("one"), PAD_ID, PAD_ID]
