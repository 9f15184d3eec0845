"""A pretrained CLIP as one of our checkpoints: the same embeddings as transformers', and all that follows takes it."""

import pytest
import torch
from scripts import TINY, read_image, refused, script, succeeds
from tiny_clip import MEAN, STD, save_pretrained, their_model
from torch.nn import functional as F

from lesson_17.frozen_clip import FrozenCLIP


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The folder of a pretrained one, and the checkpoint that is made of it."""
    folder = tmp_path_factory.mktemp("clip of theirs")
    save_pretrained(folder)
    succeeds("lesson_17/pretrained_clip.py", folder, "--output_dir", folder / "ours")
    return folder, folder / "ours/clip-0.pt"


def test_it_embeds_images_and_captions_as_transformers_does(pretrained):
    clip = FrozenCLIP.load(str(pretrained[1]))
    tokens = clip.tokenize(["seven", "7 seven"])
    assert tokens.tolist() == [[2] + [0] * 15, [3, 2] + [0] * 14]
    images = torch.rand(2, 1, 28, 28)
    resized = F.interpolate(images, size=(32, 32), mode="bicubic", antialias=True).clamp(0, 1).repeat(1, 3, 1, 1)
    pixels = (resized - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        expected = their_model()(input_ids=tokens, pixel_values=pixels)
        text_embed, encodings = clip.model.encode_text(tokens)
        torch.testing.assert_close(clip.model.encode_image(images), expected.image_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(text_embed, expected.text_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encodings, expected.text_model_output.last_hidden_state, rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())


def test_fewer_tokens_can_be_read_and_the_end_is_kept(pretrained, tmp_path):
    succeeds("lesson_17/pretrained_clip.py", pretrained[0], "--text_seq_len", 3, "--output_dir", tmp_path)
    clip = FrozenCLIP.load(str(tmp_path / "clip-0.pt"))
    assert clip.tokenize(["7 seven 7 seven"]).tolist() == [[3, 2, 0]]
    torch.testing.assert_close(
        clip.encode_prompts(["7 seven"], "cpu")[0],
        FrozenCLIP.load(str(pretrained[1])).encode_prompts(["7 seven"], "cpu")[0],
    )


def test_the_prior_and_the_decoder_learn_from_it_and_pictures_are_drawn(pretrained, tmp_path):
    sizes = ("--num_layers", 1, "--dim", 16, "--width", 8, "--head_dim", 8, "--num_training_steps", 1)
    clip = ("--clip_checkpoint", pretrained[1])
    succeeds("lesson_17/train_mnist.py", *TINY, *sizes, *clip, "--output_dir", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"prior", "decoder"}
    draw = ("lesson_17/generate_mnist.py", "--models", tmp_path, "--prompts", "seven", "--sampling_steps", 2)
    succeeds(*draw, *clip, "--output_dir", tmp_path / "samples")
    assert read_image(tmp_path / "samples/0000-seven.png").shape == (1, 28, 28)


def test_what_cannot_be_taken_is_refused(pretrained, tmp_path):
    refused(script("lesson_17/pretrained_clip.py", "/nowhere", "--output_dir", tmp_path), "no CLIP named /nowhere")
    other = their_model()
    other.config.text_config.hidden_act = other.config.vision_config.hidden_act = "gelu"
    save_pretrained(tmp_path / "gelu")
    other.save_pretrained(tmp_path / "gelu")
    refused(script("lesson_17/pretrained_clip.py", tmp_path / "gelu", "--output_dir", tmp_path), "other layers")
