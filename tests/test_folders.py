"""A user's own images, as they are found in the wild: what can be read is read as it looks, what cannot is named."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from scripts import TINY, read_image, refused, script, succeeds

import utils.datasets.own_images
from utils.cli import UserError
from utils.data import DataSource
from utils.datasets import load_images
from utils.datasets.own_images import to_pixels

RED = (255, 0, 0)


def put(path, color=RED, size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    """Twenty images of different grays beside a metadata.csv."""
    folder = tmp_path / "my images"
    for i in range(20):
        put(folder / f"{i:02d}.png", (10 * i, 10 * i, 10 * i))
    rows = "".join(f"{i:02d}.png,gray number {i}\n" for i in range(20))
    (folder / "metadata.csv").write_text("file_name,text\n" + rows)
    return folder


def load(folder, tmp_path, **options):
    return load_images(DataSource(str(folder), **options), tmp_path / "data", "cpu")


def said(images):
    """{gray of an image: its captions}"""
    return {
        int(pixels.float().mean()): [images.captions[i] for i in ids if i >= 0]
        for pixels, ids in zip(images.pixels, images.caption_ids)
    }


def test_a_metadata_file_names_images_and_captions(folder, tmp_path):
    train_set, test_set, source = load(folder, tmp_path)
    assert source == DataSource(str(folder), 28, 3)
    assert train_set.pixels.shape == (19, 3, 28, 28) and len(test_set) == 1
    assert said(train_set) | said(test_set) == {10 * i: [f"gray number {i}"] for i in range(20)}
    again, _, _ = load(folder, tmp_path)
    assert torch.equal(again.pixels, train_set.pixels) and again.captions == train_set.captions


def test_lines_of_json_name_several_captions_and_any_columns(folder, tmp_path):
    (folder / "metadata.csv").unlink()
    rows = [{"picture": f"{i:02d}.png", "words": [f"gray {i}", "a gray"]} for i in range(20)]
    lines = [json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join([*lines[:5], "no json", *lines[5:]]))
    columns = {"image_column": "picture", "caption_column": "words"}
    train_set, test_set, _ = load(folder, tmp_path, **columns, image_channels=1, image_size=16)
    assert train_set.pixels.shape == (19, 1, 16, 16)
    assert (said(train_set) | said(test_set))[70] == ["gray 7", "a gray"]
    with pytest.raises(UserError, match="has no column file_name or image; it has 'picture, words'"):
        load(folder, tmp_path)


def test_text_files_beside_images_have_a_caption_a_line(tmp_path):
    folder = tmp_path / "texts"
    for i in range(4):
        put(folder / f"sub/{i}.JPG", (50 * i,) * 3)
        (folder / f"sub/{i}.txt").write_text(f"first {i}\n\n  second   {i} \n")
    train_set, test_set, _ = load(folder, tmp_path)
    assert (said(train_set) | said(test_set)) == {50 * i: [f"first {i}", f"second {i}"] for i in range(4)}


def test_a_folder_that_is_split_stays_split(tmp_path):
    for split in ("train", "test"):
        for i in range(3):
            put(tmp_path / f"own/{split}/{i}.png")
            (tmp_path / f"own/{split}/{i}.txt").write_text(f"{split} {i}")
    train_set, test_set, _ = load(tmp_path / "own", tmp_path)
    assert train_set.captions == ["train 0", "train 1", "train 2"]
    assert test_set.captions == ["test 0", "test 1", "test 2"]


def test_what_cannot_be_used_is_left_out_counted_and_named(folder, tmp_path, capsys):
    (folder / "03.png").write_bytes(b"")
    (folder / "04.png").write_bytes((folder / "05.png").read_bytes()[:60])
    put(folder / "alone.png")
    with open(folder / "metadata.csv", "a") as file:
        file.write("missing.png,nothing\n../../outside.png,no\n06.png,gray twice\n06.png,gray number 6\n")
    put(tmp_path / "outside.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "link.txt").write_text("a secret")
    (folder / "lost.txt").write_text("a caption")
    (folder / "latin.txt").write_bytes("gr\xfcn".encode("latin-1"))
    put(folder / "latin.png", (255, 255, 255))
    train_set, test_set, _ = load(folder, tmp_path)
    found = said(train_set) | said(test_set)
    assert len(train_set) + len(test_set) == 19 and not {30, 40} & found.keys()
    assert found[60] == ["gray number 6", "gray twice"] and found[255] == ["gr\N{REPLACEMENT CHARACTER}n"]
    assert "a secret" not in train_set.captions + test_set.captions
    out = capsys.readouterr().out
    for sentence in (
        "2 images cannot be read, and are left out: '03.png', '04.png'.",
        "1 images have no caption, and are left out: 'alone.png'.",
        "1 images are links out of the folder, and left out: 'link.png'.",
        "3 captions are of images that the folder does not have: ",
        "1 files are not UTF-8",
    ):
        assert sentence in out, out
    load(folder, tmp_path)
    assert "2 images cannot be read" in capsys.readouterr().out  # also of what was decoded before


@pytest.mark.parametrize("number", [0, 1])
def test_a_folder_of_too_few_images_is_refused(tmp_path, number):
    folder = tmp_path / "few"
    folder.mkdir()
    for i in range(number):
        put(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("one")
    with pytest.raises(UserError, match="2 are the least" if number else "neither a folder with captioned images"):
        load(folder, tmp_path)


def test_a_folder_without_captions_is_told_where_to_put_them(tmp_path):
    put(tmp_path / "bare/0.png")
    with pytest.raises(UserError, match="None of the 1 images .* has a caption; put them into .*metadata.csv"):
        load(tmp_path / "bare", tmp_path)


def test_images_larger_than_the_memory_stay_on_the_disk(folder, tmp_path, monkeypatch, capsys):
    whole, _, _ = load(folder, tmp_path)
    assert "stay in" not in capsys.readouterr().out
    monkeypatch.setattr(utils.datasets, "free_memory", lambda device: 1000)
    mapped, test_set, _ = load(folder, tmp_path)
    assert "stay in" in capsys.readouterr().out
    index = torch.tensor([3, 0, 3])
    assert torch.equal(mapped.images(index), whole.images(index)) and len(test_set.images()) == 1
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(tmp_path / "data/decoded") in maps.read_text()


CASES = {
    "palette": (Image.new("RGB", (8, 8), RED).convert("P"), "png", RED),
    "palette with transparency": (Image.new("P", (8, 8), 0), "gif", (255, 255, 255)),
    "transparent": (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "png", (255, 255, 255)),
    "half transparent": (Image.new("RGBA", (8, 8), (255, 0, 0, 128)), "png", (255, 127, 127)),
    "gray and alpha": (Image.new("LA", (8, 8), (0, 0)), "png", (255, 255, 255)),
    "16 bits": (Image.new("I;16", (8, 8), 32896), "png", (128, 128, 128)),
    "one bit": (Image.new("1", (8, 8), 1), "png", (255, 255, 255)),
    "CMYK": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "tiff", RED),
    "one pixel wide": (Image.new("RGB", (1, 300), RED), "png", RED),
    "20,000 pixels wide": (Image.new("RGB", (20_000, 10), RED), "png", RED),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_image_looks_as_it_should(tmp_path, case, channels):
    image, ending, color = CASES[case]
    options = {"transparency": 0} if case == "palette with transparency" else {}
    image.save(tmp_path / f"image.{ending}", **options)
    pixels = torch.frombuffer(bytearray(to_pixels(tmp_path / f"image.{ending}", 28, channels)), dtype=torch.uint8)
    expected = torch.tensor(
        color if channels == 3 else [round(sum(x * y for x, y in zip(color, (0.299, 0.587, 0.114))))]
    )
    means = pixels.view(channels, 28, 28).float().mean(dim=(1, 2))
    torch.testing.assert_close(means, expected.float(), rtol=0, atol=1.5)


def test_images_are_cut_in_the_middle_and_turned_as_their_camera_says(tmp_path):
    image = Image.new("RGB", (90, 30))
    for i, color in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        image.paste(color, (30 * i, 0, 30 * (i + 1), 30))
    image.save(tmp_path / "wide.png")
    pixels = torch.frombuffer(bytearray(to_pixels(tmp_path / "wide.png", 10, 3)), dtype=torch.uint8).view(3, 10, 10)
    assert pixels[1].float().mean() > 250 and pixels[0].float().mean() < 5  # green

    top = Image.new("RGB", (20, 20))
    top.paste((255, 255, 255), (0, 0, 20, 10))
    exif = top.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    top.save(tmp_path / "turned.png", exif=exif)
    pixels = torch.frombuffer(bytearray(to_pixels(tmp_path / "turned.png", 20, 1)), dtype=torch.uint8).view(20, 20)
    assert pixels[:, 11:].min() > 250 and pixels[:, :9].max() < 5


def test_a_data_set_of_the_datasets_library(tmp_path, monkeypatch):
    """As one from the hub, but on this disk: images and the names of their classes, some without."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "text": datasets.Value("string"),
        }
    )
    images = [Image.new("RGB", (9, 9), (20 * i, 0, 0)) for i in range(6)]
    texts = ["a", "b", None, "d", "e", ""]
    rows = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 3, "text": texts}, features=features)
    (tmp_path / "table").mkdir()
    rows.to_parquet(tmp_path / "table/train.parquet")
    train_set, test_set, _ = load(tmp_path / "table", tmp_path)
    assert sorted(train_set.captions + test_set.captions) == ["a", "b", "d", "e"]
    train_set, test_set, _ = load(tmp_path / "table", tmp_path, caption_column="label")
    assert len(train_set) + len(test_set) == 6 and set(train_set.captions) == {"cat", "dog"}
    with pytest.raises(UserError, match="has no column nothing; it has 'image, label, text'"):
        load(tmp_path / "table", tmp_path, caption_column="nothing")


CAPTIONS = ["a \U0001f600 cat", "七つの猫", "l\N{LATIN SMALL LETTER E WITH ACUTE}opard", "word " * 2000]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Both lessons, trained on a folder with captions in several scripts."""
    folder = tmp_path_factory.mktemp("own")
    for i in range(24):
        put(folder / f"images/{i}.png", (10 * i, 0, 0))
        (folder / f"images/{i}.txt").write_text(CAPTIONS[i % 4] + (f" {i}" if i % 4 < 3 else ""), encoding="utf-8")
    data = ("--dataset", folder / "images", "--data_dir", folder / "data", "--mixed_precision", "no", "--batch_size", 8)
    few = (*data, "--preset", "small", "--num_training_steps", 2)
    tiny = ("--hidden_dim", 8, "--codebook_size", 16, "--output_dir", folder / "dvae")
    succeeds("lesson_08/train_dvae.py", *few, *tiny)
    tiny = ("--dim", 16, "--num_layers", 1, "--output_dir", folder / "dall_e")
    later = [*few[2:], "--dvae_checkpoint", folder / "dvae/dvae-2.pt"]  # which knows the data
    output = succeeds("lesson_08/train_mnist.py", *later, *tiny).stdout
    assert "captions lose what is behind their 64 tokens" in output
    clip = ("--image_width", 16, "--image_layers", 1, "--embed_dim", 8)
    others = ("--num_layers", 1, "--dim", 16, "--width", 8, "--head_dim", 8)
    succeeds("lesson_17/train_mnist.py", *few, *clip, *others, "--text_seq_len", 9, "--output_dir", folder)
    return folder


def models(trained, lesson):
    names = ("dvae", "dall_e") if lesson == "lesson_08" else ("clip", "prior", "decoder")
    return [part for name in names for part in (f"--{name}_checkpoint", trained / name / f"{name}-2.pt")]


@pytest.mark.parametrize("lesson", ["lesson_08", "lesson_17"])
def test_any_prompt_is_drawn_and_its_new_words_are_named(trained, lesson, tmp_path):
    prompts = ["a \U0001f600 cat", "../../unheard of", "x" * 10_000]
    result = succeeds(
        f"{lesson}/generate_mnist.py", *models(trained, lesson), "--prompts", *prompts, "--output_dir", tmp_path
    )
    assert "'../../unheard'" in result.stdout and "'of'" in result.stdout and "cat" not in result.stdout
    assert len(list(tmp_path.glob("0*.png"))) == 3 and read_image(tmp_path / "0000-a-cat.png").shape == (3, 28, 28)
    refused(script(f"{lesson}/generate_mnist.py", *models(trained, lesson), "--prompts", ""), "empty")


@pytest.mark.parametrize("lesson", ["lesson_08", "lesson_17"])
def test_own_images_are_evaluated_without_a_scorer(trained, lesson, tmp_path):
    data = ("--data_dir", trained / "data", "--num_samples", 1, "--output_dir", tmp_path)
    output = succeeds(f"{lesson}/evaluate_mnist.py", *models(trained, lesson), *data).stdout
    assert "nearest training image" in output and "accuracy" not in output.replace("zero-shot accuracy", "")
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".png"}


def test_own_images_are_completed_and_edited(trained, tmp_path):
    data = ("--data_dir", trained / "data", "--output_dir", tmp_path)
    succeeds("lesson_08/complete_mnist.py", *models(trained, "lesson_08"), *data, "--rows", 3)
    edit = ("lesson_17/edit_mnist.py", "interpolation", *models(trained, "lesson_17"), *data, "--sampling_steps", 5)
    refused(script(*edit, "--prompts", "no such caption", "nor this"), "No test image has the caption")
    succeeds("lesson_17/edit_mnist.py", "variations", *models(trained, "lesson_17"), *data, "--sampling_steps", 5)


def test_own_images_come_to_their_size_by_several_up_samplers(trained, tmp_path):
    data = ("--dataset", trained / "images", "--data_dir", trained / "data", "--image_size", 32, "--batch_size", 8)
    few = (*data, "--num_training_steps", 1, "--mixed_precision", "no", "--output_dir", tmp_path)
    sizes = ("--patch_size", 16, "--image_width", 16, "--embed_dim", 8, "--dim", 16, "--width", 8, "--head_dim", 8)
    succeeds("lesson_17/train_mnist.py", *few, *sizes, "--text_seq_len", 9, "--decoder_image_size", 8)
    refused(script("lesson_17/train_decoder.py", *few, "--decoder_image_size", 64), "larger than the images")
    of_decoder = few[4:]  # the images that the decoder learned from, without naming them
    for size in (16, 32):
        succeeds("lesson_17/train_upsampler.py", *of_decoder, "--width", 8, "--upsampled_size", size)
    refused(script("lesson_17/train_upsampler.py", *of_decoder, "--upsampled_size", 64), "larger than the images'")
    drawn = tmp_path / "drawn"
    succeeds("lesson_17/generate_mnist.py", "--models", tmp_path, "--prompts", "a cat", "--output_dir", drawn)
    assert read_image(drawn / "0000-a-cat.png").shape == (3, 8, 8)
    succeeds("lesson_17/upsample_mnist.py", drawn, "--models", tmp_path, "--sampling_steps", 2)
    assert read_image(drawn / "upsampled/0000-a-cat.png").shape == (3, 32, 32)


def test_a_run_does_not_go_on_with_captions_that_were_changed_meanwhile(folder, tmp_path):
    data = ("--dataset", folder, "--data_dir", tmp_path / "data", "--output_dir", tmp_path / "out")
    dvae = ("lesson_08/train_dvae.py", *TINY, "--hidden_dim", 8, "--codebook_size", 16, *data)
    succeeds(*dvae, "--num_training_steps", 1)
    table = folder / "metadata.csv"
    before = table.read_text()
    table.write_text(before.replace("gray number 7", "white number 7"))
    result = script(*dvae, "--num_training_steps", 2, "--resume")
    said = result.stderr.splitlines()[-1]
    assert result.returncode == 2 and "was trained otherwise: examples of the data" in said, result.stderr
    table.write_text(before)
    assert "Resuming from" in succeeds(*dvae, "--num_training_steps", 2, "--resume").stdout


def test_a_batch_may_be_larger_than_the_folder(folder, tmp_path):
    big = ("lesson_08/train_dvae.py", *TINY, "--dataset", folder, "--batch_size", 50, "--output_dir", tmp_path / "out")
    succeeds(*big, "--num_training_steps", 2, "--hidden_dim", 8, "--data_dir", tmp_path / "data")
