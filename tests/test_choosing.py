"""CLIP chooses among drawn images: those of the largest cosine with their prompts, from either lesson or from anyone."""

import csv

import pytest
import torch
from PIL import Image
from scripts import read_image, refused, script, succeeds

from lesson_17 import choose_mnist
from lesson_17.choose_mnist import choose
from lesson_17.frozen_clip import FrozenCLIP

CHOOSE = "lesson_17/choose_mnist.py"
DRAW = {"lesson_08": (), "lesson_17": ("--sampling_steps", 3)}


def rows_of(folder):
    with open(folder / "samples.csv") as file:
        return list(csv.DictReader(file))


def test_the_best_of_each_prompt_are_kept_best_first():
    class Clip:
        """Its cosine is the image's own number."""

        class model:
            @staticmethod
            def encode_image(images):
                x = images[:, 0, 0, 0]
                return torch.stack([x, (1 - x**2).sqrt()], dim=1)

        @staticmethod
        def encode_prompts(prompts, device):
            return torch.tensor([[1.0, 0.0]]).repeat(len(prompts), 1), None

    images = torch.tensor([0.1, 0.9, 0.5, 0.3, 0.7, 0.2]).view(6, 1, 1, 1)
    kept, cosines = choose(Clip, images, ["b", "a", "b", "b", "a", "a"], 2)
    assert kept == [2, 3, 1, 4] and cosines == pytest.approx([0.1, 0.9, 0.5, 0.3, 0.7, 0.2])


@pytest.mark.parametrize("lesson", DRAW)
def test_images_of_either_lesson_are_chosen(lesson, tmp_path):
    drawn = ("--pretrained", "mnist", "--prompts", "seven", "2", "--num_samples", 5, *DRAW[lesson])
    succeeds(f"{lesson}/generate_mnist.py", *drawn, "--output_dir", tmp_path)
    succeeds(CHOOSE, tmp_path, "--keep", 2, "--pretrained", "mnist")
    rows, chosen = rows_of(tmp_path), rows_of(tmp_path / "chosen")
    clip = FrozenCLIP.load("lesson_17/pretrained/mnist/clip.safetensors")
    images = torch.stack([read_image(tmp_path / row["file"]) for row in rows]) / 255
    text_embed, _ = clip.encode_prompts([row["prompt"] for row in rows], "cpu")
    cosines = (clip.model.encode_image(images) * text_embed).sum(dim=1).tolist()
    for prompt, found in (("seven", chosen[:2]), ("2", chosen[2:])):
        best = sorted((i for i, row in enumerate(rows) if row["prompt"] == prompt), key=lambda i: -cosines[i])[:2]
        assert [row["prompt"] for row in found] == [prompt] * 2
        assert [row["seed"] for row in found] == [rows[i]["seed"] for i in best]
        assert [float(row["cosine"]) for row in found] == pytest.approx([cosines[i] for i in best], abs=1e-3)
        for row, i in zip(found, best):
            assert torch.equal(read_image(tmp_path / "chosen" / row["file"]), read_image(tmp_path / rows[i]["file"]))
    assert (tmp_path / "chosen/grid.png").exists()


def write_folder(folder, *sizes, mode="L"):
    for i, size in enumerate(sizes):
        Image.new(mode, (size, size)).save(folder / f"{i}.png")
    text = "file,prompt\n" + "".join(f"{i}.png,seven\n" for i in range(len(sizes)))
    (folder / "samples.csv").write_text(text)


def test_a_folder_of_ones_own_needs_files_and_prompts_only(tmp_path):
    write_folder(tmp_path, 28, 28)
    succeeds(CHOOSE, tmp_path, "--keep", 1, "--pretrained", "mnist", "--output_dir", tmp_path / "best")
    assert len(rows_of(tmp_path / "best")) == 1
    text = (tmp_path / "samples.csv").read_text()
    (tmp_path / "samples.csv").write_text("\ufeff" + text, encoding="utf-8")  # as Excel writes it
    succeeds(CHOOSE, tmp_path, "--keep", 1, "--pretrained", "mnist", "--output_dir", tmp_path / "again")
    assert len(rows_of(tmp_path / "again")) == 1
    (tmp_path / "samples.csv").write_text(text.strip())  # no end of the last line, as written by hand
    succeeds(CHOOSE, tmp_path, "--keep", 2, "--pretrained", "mnist", "--output_dir", tmp_path / "all")
    assert len(rows_of(tmp_path / "all")) == 2


def test_where_no_clip_is_trained_the_included_one_for_such_images_is_taken(monkeypatch, tmp_path):
    monkeypatch.setattr(choose_mnist, "models_folder", lambda models: tmp_path)
    for channels in (1, 3):
        assert choose_mnist.load_clip(None, None, None, channels).data["image_channels"] == channels


def test_help_explains_each_flag():
    assert "--keep" in succeeds(CHOOSE, "--help").stdout


def test_what_cannot_be_compared_is_refused(tmp_path):
    csv.field_size_limit(131_072)  # Python's own, which reading a folder of own images in the same process has raised
    refused(script(CHOOSE, tmp_path), "no samples.csv")
    write_folder(tmp_path, 28, 32)
    refused(script(CHOOSE, tmp_path, "--pretrained", "mnist"), "different sizes")
    write_folder(tmp_path, 32)
    refused(script(CHOOSE, tmp_path, "--pretrained", "mnist"), "learned from 28x28 in 1")
    write_folder(tmp_path, 28, mode="RGB")
    refused(script(CHOOSE, tmp_path, "--pretrained", "mnist"), "in 3 channels")
    (tmp_path / "samples.csv").write_text("file,prompt\n0.png\n")
    refused(script(CHOOSE, tmp_path, "--pretrained", "mnist"), "a row without a file or a prompt")
    (tmp_path / "samples.csv").write_bytes("file,prompt\n0.png,sieben\n".encode("utf-16"))
    refused(script(CHOOSE, tmp_path, "--pretrained", "mnist"), "UTF-8")
    rows = {"0.png,   ": "a row without", "0\0.png,7": "cannot be read", f"0.png,{'7' * 200_000}": "cannot be read"}
    for row, reason in {**rows, "absent.png,7": "cannot be read"}.items():
        (tmp_path / "samples.csv").write_text(f"file,prompt\n{row}\n")
        refused(script(CHOOSE, tmp_path, "--pretrained", "mnist"), reason)
    write_folder(tmp_path, 28)
    whole = (tmp_path / "0.png").read_bytes()
    for broken in (b"no image", whole[:40], whole[:30] + b"\0" * 40):
        (tmp_path / "0.png").write_bytes(broken)
        refused(script(CHOOSE, tmp_path, "--pretrained", "mnist"), "cannot be read")
