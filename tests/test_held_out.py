"""Every held-out number that a training writes is that of the test images, with their own captions and embeddings,
computed here from the checkpoint in another way."""

import csv
import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scripts import TINY, succeeds
from stages import STAGES, folder_of

from lesson_08.dall_e import DallE, DallEConfig
from lesson_08.dvae import DiscreteVAE, DVAEConfig
from lesson_17 import train_prior
from lesson_17.clip import CLIP, CLIPConfig
from lesson_17.diffusion import Diffusion
from lesson_17.frozen_clip import EmbeddedImages, FrozenCLIP, zero_shot_accuracy
from utils.bpe import Tokenizer
from utils.checkpoints import load_checkpoint, load_model
from utils.data import CaptionedImages

STEPS, BATCH = 2, 4
# Of train and test images; the captions of the test images are some of the others, in another order, and a new one.
CAPTIONS = {"train": ["aa", "bb", "cc", "dd", "ee"] * 3, "test": ["dd", "bb", "ee", "ff", "dd", "bb"]}


@pytest.fixture(scope="module")
def test_images():
    """Six images of noise that one number decides."""
    return (torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 255).byte().float() / 255


def write(folder, test_images, captions):
    """Own images in train/ and test/ of a folder; captions: {which: the caption or captions of each image}."""
    noise = torch.rand(15, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    for which, images in {"train": noise, "test": test_images}.items():
        (folder / which).mkdir(parents=True)
        rows = [{"file_name": f"{i}.png", "text": text} for i, text in enumerate(captions[which])]
        (folder / which / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for i, image in enumerate(images):
            Image.fromarray((image[0] * 255).round().byte().numpy()).save(folder / which / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory, test_images):
    return write(tmp_path_factory.mktemp("own") / "images", test_images, CAPTIONS)


def train(name, dataset, folder, *flags):
    """A training of two steps; its last checkpoint, and its last row of held-out metrics."""
    settings = ["--image_channels", 1, "--num_training_steps", STEPS, "--ema_decay", 0.5, "--learning_rate", 0.05]
    tiny = [*TINY, "--batch_size", BATCH, "--dataset", dataset, "--data_dir", folder / "data"]
    succeeds(*STAGES[name], *tiny, *settings, *flags, "--output_dir", folder_of_output(name, folder))
    path = folder_of(name, folder_of_output(name, folder))
    with open(path / "held_out_metrics.csv") as file:
        *_, measured = csv.DictReader(file)
    assert measured.pop("step") == str(STEPS)
    return load_checkpoint(path / f"{name}-{STEPS}.pt", name), {key: float(value) for key, value in measured.items()}


def folder_of_output(name, folder):
    return folder / "output" if "lesson_17" in STAGES[name][0] else folder / "output" / name


def test_the_dvae(own, test_images, tmp_path):
    checkpoint, measured = train("dvae", own, tmp_path)
    dvae = load_model(checkpoint, DiscreteVAE, DVAEConfig)
    tokens = dvae.encode(test_images)
    assert measured["mse"] == pytest.approx(F.mse_loss(dvae.decode(tokens), test_images).item(), rel=1e-4)
    assert measured["codes_used"] == len(tokens.unique())
    shares = torch.tensor([(tokens == code).float().mean() for code in tokens.unique()])
    assert measured["perplexity"] == pytest.approx((-(shares * shares.log()).sum()).exp().item(), rel=1e-4)


def test_dall_e(own, test_images, tmp_path):
    dvae = load_model(train("dvae", own, tmp_path)[0], DiscreteVAE, DVAEConfig)
    # Without merges a caption has one cut, so that nothing about it is random.
    checkpoint, measured = train("dall_e", own, tmp_path, "--text_vocab_size", 257)
    dall_e, tokenizer = load_model(checkpoint, DallE, DallEConfig), Tokenizer.from_json(checkpoint["tokenizer"])
    text_tokens = tokenizer.encode(CAPTIONS["test"], dall_e.config.text_seq_len)
    image_tokens = dvae.encode(test_images)
    text_logits, image_logits = dall_e.logits(text_tokens, image_tokens)

    def nats(logits, tokens):
        return -logits.log_softmax(dim=-1).gather(2, tokens[:, :, None]).mean().item()

    assert measured["text_loss"] == pytest.approx(nats(text_logits, dall_e.text_ids(text_tokens)), rel=1e-4)
    assert measured["image_loss"] == pytest.approx(nats(image_logits, image_tokens), rel=1e-4)


def test_clip(test_images, tmp_path):
    # Each image has two captions, and either is right.
    names = sorted(set(CAPTIONS["train"]))
    several = {"train": [names[i % 5 :: 2] + ["all"] for i in range(15)], "test": [["ee", "bb"], ["bb", "cc"]] * 3}
    checkpoint, measured = train("clip", write(tmp_path / "several", test_images, several), tmp_path)
    clip, tokenizer = load_model(checkpoint, CLIP, CLIPConfig), Tokenizer.from_json(checkpoint["tokenizer"])
    texts = ["bb", "cc", "ee"]  # those of the test images alone
    tokens = F.pad(tokenizer.encode(texts, clip.config.text_seq_len - 1), (0, 1))
    nearest = (clip.encode_image(test_images) @ clip.encode_text(tokens)[0].T).argmax(dim=1).tolist()
    right = [texts[i] in captions for i, captions in zip(nearest, several["test"])]
    assert measured["zero_shot_accuracy"] == pytest.approx(sum(right) / 6, abs=1e-3)


def test_any_of_an_images_captions_is_right_and_no_other():
    images = CaptionedImages(torch.zeros(4, 1, 1, 1), ["a", "b", "c"], torch.tensor([[0, 1], [1, 2], [2, -1], [0, -1]]))
    text_embed = torch.eye(3)
    assert (
        zero_shot_accuracy(text_embed[[1, 2, 2, 2]], text_embed, images) == 0.75
    )  # its second, its second, its own, none


@pytest.fixture
def measured_losses(monkeypatch):
    """What Diffusion.loss was given and what it gave when a model was evaluated: x_0, the conditions, the loss."""
    calls, loss = [], Diffusion.loss

    def spy(self, network, x_0, *conditions, **options):
        result = loss(self, network, x_0, *conditions, **options)
        if not network.training:
            calls.append((x_0, conditions, result.item()))
        return result

    monkeypatch.setattr(Diffusion, "loss", spy)
    return calls


def together(calls):
    """The parts of a batch as one: x_0, the conditions, the mean loss."""
    x_0 = torch.cat([x_0 for x_0, _, _ in calls])
    conditions = [torch.cat(parts) for parts in zip(*[conditions for _, conditions, _ in calls])]
    return x_0, conditions, sum(len(x_0) * loss for x_0, _, loss in calls) / len(x_0)


def test_the_decoder(own, test_images, tmp_path, measured_losses):
    train("clip", own, tmp_path, "--text_vocab_size", 257)
    clip = FrozenCLIP.load(models=tmp_path / "output")
    _, measured = train("decoder", own, tmp_path)
    x_0, (image_embed, text_encodings), loss = together(measured_losses)
    torch.testing.assert_close(x_0, 2 * test_images - 1)
    torch.testing.assert_close(image_embed, clip.model.encode_image(test_images), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(text_encodings, clip.encode_prompts(CAPTIONS["test"], "cpu")[1], rtol=1e-3, atol=1e-5)
    assert measured["held_out_loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.skipif("upsampler_28" not in STAGES, reason="the up-sampler is a room that can be missing")
def test_the_upsampler(own, test_images, tmp_path, measured_losses):
    _, measured = train("upsampler_28", own, tmp_path)
    x_0, (small,), loss = together(measured_losses)
    torch.testing.assert_close(x_0, 2 * test_images - 1)
    clean = F.avg_pool2d(test_images, 2)
    assert 0.01 < (small - clean).std() < clean.std() < 1.2 * small.std() + 0.1  # blurred and noised, and still these
    assert torch.corrcoef(torch.stack([small.flatten(), clean.flatten()]))[0, 1] > 0.7
    assert measured["held_out_loss"] == pytest.approx(loss, rel=1e-4)


def test_the_prior_is_measured_with_its_own_captions_and_images(monkeypatch):
    """Four captions, two of them of the same images; what is drawn of each is decided here."""
    torch.manual_seed(0)
    captions = ["3", "three", "4", "5"]
    ids = torch.tensor([[0, 1], [2, -1], [3, -1], [0, 1], [2, -1]])
    pixels = (torch.arange(5) * 50).view(5, 1, 1, 1).byte()
    text_embed, image_embed = F.normalize(torch.randn(4, 8), dim=-1), F.normalize(torch.randn(5, 8), dim=-1)

    class Encoded:
        def __getitem__(self, index):
            return text_embed[index], text_embed[index, None]

    # Caption 0 is drawn as caption 1, which is as right; 2 as 0, which is wrong; 3 as itself.
    drawn_as = {0: text_embed[1], 2: F.normalize(text_embed[0] + 0.1 * image_embed[1], dim=-1), 3: text_embed[3]}
    shown = torch.tensor([2, 0, 3])

    def draw(prior, text, encodings):
        own = [int((text_embed == row).all(dim=1).nonzero()) for row in text]
        return torch.stack([drawn_as[i] for i in own])

    monkeypatch.setattr(train_prior, "draw_image_embed", draw)
    held_out = EmbeddedImages(CaptionedImages(pixels, captions, ids), image_embed, Encoded())
    nearest, measured = train_prior.evaluate(None, shown, held_out, batch_size=7)

    valid = {0: [0, 3], 2: [1, 4], 3: [2]}  # the images of each caption
    assert measured["own_caption_nearest"] == pytest.approx(2 / 3)
    to_caption = [drawn_as[i] @ text_embed[i] for i in valid]
    assert measured["cosine_to_caption"] == pytest.approx((sum(to_caption) / 3).item(), rel=1e-4)
    to_images = [sum(drawn_as[i] @ image_embed[j] for j in images) / len(images) for i, images in valid.items()]
    assert measured["cosine_to_images"] == pytest.approx((sum(to_images) / 3).item(), rel=1e-4)
    pairs = [sum(image_embed[j] @ image_embed[k] for j in own for k in own) / len(own) ** 2 for own in valid.values()]
    assert measured["cosine_of_images"] == pytest.approx((sum(pairs) / 3).item(), rel=1e-4)
    expected = [50 * int((image_embed @ drawn_as[int(i)]).argmax()) for i in shown]
    assert (nearest.flatten() * 255).round().int().tolist() == expected
