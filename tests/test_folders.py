"""A user's own images, as they are found in the wild: what can be read is read as it looks, what cannot is named."""

import json
import sys
import types
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


def small(tmp_path, text=None, name="metadata.csv", images=("0.png", "1.png", "2.png", "3.png", "4.png", "5.png")):
    """Six images of different grays, and what a user might have written beside them."""
    for i, image in enumerate(images):
        put(tmp_path / "mine" / image, (20 * i, 20 * i, 20 * i))
    if text is not None:
        (tmp_path / "mine" / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return tmp_path / "mine"


def captions_of(folder, tmp_path):
    """The captions of the images 0 to 5, in order."""
    train_set, test_set, _ = load(folder, tmp_path)
    found = said(train_set) | said(test_set)
    return [found.get(20 * i) for i in range(6)]


ROWS = "".join(f"{i}.png,gray {i}\n" for i in range(1, 6))


@pytest.mark.parametrize(
    "first, caption",
    [
        ("0.png,a red, round ball", "a red, round ball"),  # no quotes, and one thing that it can mean
        ('0.png, "a red ball, nice"', "a red ball, nice"),
        ('0.png,"a red ball, nice",', "a red ball, nice"),
        ('0.png,a 5" pipe', 'a 5" pipe'),
        ('0.png,"he said ""hi"", twice"', 'he said "hi", twice'),
    ],
)
def test_commas_and_quotes_in_a_table_are_read_as_they_are_meant(tmp_path, first, caption):
    folder = small(tmp_path, f"file_name,text\n{first}\n{ROWS}")
    assert captions_of(folder, tmp_path) == [[caption], *[[f"gray {i}"] for i in range(1, 6)]]


def test_a_quote_that_is_open_is_refused_with_its_line(tmp_path):
    first = small(tmp_path / "first", 'file_name,text\n0.png,"a gray\n1.png,gray\n')
    with pytest.raises(UserError, match="cannot be read from line 2 on"):
        load(first, tmp_path)
    for i, last in enumerate(("", '4.png,"a gray"\n')):  # with nothing that closes it, or with what only seems to
        folder = small(tmp_path / f"{i}", f'file_name,text\n0.png,gray\n1.png,"a gray\n2.png,gray\n{last}')
        with pytest.raises(UserError, match="cannot be read from line 3 on: a caption in quotes ends with its quote"):
            load(folder, tmp_path)


def test_a_line_that_may_mean_two_things_is_left_out_and_named(tmp_path, capsys):
    folder = small(tmp_path, f'file_name,text\n0.png,"red, round",ball\n{ROWS}')
    assert captions_of(folder, tmp_path)[0] is None
    assert "1 lines have more columns than the first, and are left out" in capsys.readouterr().out


@pytest.mark.parametrize("delimiter", [";", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_tables_of_spreadsheets_are_read(tmp_path, delimiter, ending):
    lines = ["\ufefffile_name,text", *(f"{i}.png,gray {i}" for i in range(6))]
    folder = small(tmp_path, ending.join(lines).replace(",", delimiter))
    assert captions_of(folder, tmp_path) == [[f"gray {i}"] for i in range(6)]


@pytest.mark.parametrize(
    "name",
    ["pictures\\{}.png", "pictures/{}.PNG", "pictures/{}", "{}.png", "mine/pictures/{}.png", "./pictures/{}.png"],
)
def test_names_that_can_mean_one_image_only_mean_it(tmp_path, name):
    rows = "".join(f"{name.format(i)},gray {i}\n" for i in range(6))
    folder = small(tmp_path, "file_name,text\n" + rows, images=[f"pictures/{i}.png" for i in range(6)])
    assert captions_of(folder, tmp_path) == [[f"gray {i}"] for i in range(6)]


def test_letters_of_names_have_one_spelling(tmp_path):
    rows = "".join(f"caf\u00e9 {i}.png,gray {i}\n" for i in range(6))
    folder = small(tmp_path, "file_name,text\n" + rows, images=[f"cafe\u0301 {i}.png" for i in range(6)])
    assert captions_of(folder, tmp_path) == [[f"gray {i}"] for i in range(6)]


def test_a_folder_whose_name_is_not_utf_8_is_read(tmp_path):
    named = small(tmp_path, "file_name,text\n" + "".join(f"{i}.png,gray {i}\n" for i in range(6)))
    folder = named.rename(named.with_name("caf\udce9"))
    assert captions_of(folder, tmp_path) == [[f"gray {i}"] for i in range(6)]


def test_names_that_can_mean_several_images_or_others_mean_none(tmp_path):
    images = [f"{split}/{i}.png" for split in ("train", "test") for i in range(3)]
    for i, name in enumerate(("{}.png", "valid/{}.png")):
        rows = "".join(f"{name.format(i)},gray {i}\n" for i in range(3))
        folder = small(tmp_path / f"{i}", "file_name,text\n" + rows, images=images)
        looked_for, there = name.format(0), "test/0.png"
        with pytest.raises(UserError, match=rf"they are of '{looked_for}' and '.*', and the images are '{there}' and "):
            load(folder, tmp_path)


def test_numbers_are_names_and_captions_too(tmp_path):
    lines = [json.dumps({"file_name": i, "text": 7 + i}) for i in range(6)]
    folder = small(tmp_path, "\n".join(lines), "metadata.jsonl")
    assert captions_of(folder, tmp_path) == [[f"{7 + i}"] for i in range(6)]


def test_only_ends_of_lines_end_a_line_and_half_an_emoji_is_a_question_mark(tmp_path):
    texts = ["a\u2028b", "a\x85b", "a\x0cb", "half \ud83d", "\N{GRINNING FACE}", "e"]
    lines = [json.dumps({"file_name": f"{i}.png", "text": text}) for i, text in enumerate(texts)]
    lines[0] = '{"file_name": "0.png", "text": "a\u2028b"}'  # not escaped
    folder = small(tmp_path, "\r\n".join(lines), "metadata.jsonl")
    (folder / "5.txt").write_text("one\u2028two\rthree\n", newline="")
    found = captions_of(folder, tmp_path)
    assert found[:5] == [["a b"], ["a b"], ["a b"], ["half ?"], ["\N{GRINNING FACE}"]]
    assert sorted(found[5]) == ["e", "one two", "three"]


@pytest.mark.parametrize("name", ["test", "validation", "VAL"])
def test_a_split_one_level_down_is_one_too(tmp_path, name):
    folder = small(tmp_path, images=[f"data/{'train' if i < 4 else name}/{i}.png" for i in range(6)])
    for path in folder.rglob("*.png"):
        path.with_suffix(".txt").write_text(path.stem)
    train_set, test_set, _ = load(folder, tmp_path)
    assert train_set.captions == ["0", "1", "2", "3"] and test_set.captions == ["4", "5"]


def test_where_all_is_called_test_some_is_trained_on(tmp_path):
    folder = small(tmp_path, images=[f"test/{i}.png" for i in range(6)])
    for path in folder.rglob("*.png"):
        path.with_suffix(".txt").write_text(path.stem)
    train_set, test_set, _ = load(folder, tmp_path)
    assert len(train_set) == 5 and len(test_set) == 1


def test_changed_images_are_decoded_anew_and_old_ones_forgotten(folder, tmp_path):
    load(folder, tmp_path)
    put(folder / "07.png", (255, 255, 255))
    train_set, test_set, _ = load(folder, tmp_path)
    found = said(train_set) | said(test_set)
    assert found[255] == ["gray number 7"] and 70 not in found
    assert len([path for path in (tmp_path / "data/decoded").iterdir() if path.is_dir()]) == 1
    again = load(folder, tmp_path)
    assert torch.equal(again[1].pixels, test_set.pixels)  # the same images are kept for the test


def test_each_distinct_caption_has_a_number_of_its_own():
    images = utils.datasets.own_images.with_captions(torch.zeros(3, 1, 1, 1), [["a", "B"], ["b"], ["B", "a"]])
    assert images.captions == ["a", "B", "b"] and images.caption_ids.tolist() == [[0, 1], [2, -1], [1, 0]]


def test_images_become_smaller_by_averaging(tmp_path):
    image = Image.new("L", (64, 64))
    image.putdata([255 * ((x + y) % 2) for y in range(64) for x in range(64)])
    image.save(tmp_path / "board.png")
    pixels = torch.frombuffer(bytearray(to_pixels(tmp_path / "board.png", 16, 1)), dtype=torch.uint8).float()
    assert (pixels - 127.5).abs().max() < 20


@pytest.mark.parametrize(
    "name, advice",
    [
        ("MNIST", "did you mean mnist"),
        ("Colored-MNIST", "did you mean colored_mnist"),
        ("no/such/folder", "There is no folder"),
        ("../nothing", "There is no folder"),
        ("my_imgaes", "There is no folder 'my_imgaes' here"),
        ("empty", "has no images"),
        ("table.csv", "is a file"),
    ],
)
def test_a_wrong_name_gets_the_right_advice(tmp_path, monkeypatch, name, advice):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("file_name,text\n")
    (tmp_path / "datasets").mkdir()  # which is no library
    monkeypatch.syspath_prepend(tmp_path)
    for library in [module for module in sys.modules if module.partition(".")[0] == "datasets"]:
        monkeypatch.delitem(sys.modules, library)
    monkeypatch.setitem(sys.modules, "datasets", types.ModuleType("datasets"))
    with pytest.raises(UserError, match=advice):
        load(Path(name), tmp_path)


def test_few_images_are_held_in_memory_while_they_are_decoded(folder, tmp_path, monkeypatch):
    waiting, most = set(), []

    def records(*arguments):
        for i in range(40):
            waiting.add(i)
            most.append(len(waiting))
            yield utils.datasets.own_images.Record(f"{i}", folder / "00.png", ["a"], False)

    def pixels(*arguments):
        waiting.pop()
        return bytes(28 * 28 * 3)

    monkeypatch.setattr(utils.datasets.own_images, "AT_A_TIME", 8)
    monkeypatch.setattr(utils.datasets.own_images, "to_pixels", pixels)
    source = DataSource("many", 28, 3)
    utils.datasets.own_images.decode_all(records(), source, utils.datasets.own_images.Problems(), tmp_path / "out")
    assert max(most) <= 8


@pytest.mark.parametrize("number", [0, 1])
def test_a_folder_of_too_few_images_is_refused(tmp_path, number):
    folder = tmp_path / "few"
    folder.mkdir()
    for i in range(number):
        put(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("one")
    with pytest.raises(UserError, match="2 are the least" if number else "has no images; their names end in"):
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


def test_the_test_splits_of_a_table_are_not_trained_on(tmp_path):
    picture = (put(tmp_path / "one.png")).read_bytes()
    rows = [{"image": {"bytes": picture}, "caption": "a"}, {"image": {"bytes": picture}, "caption": None}]
    table, problems = {"train": rows, "Test": rows, "validation": rows}, utils.datasets.own_images.Problems()
    records = list(utils.datasets.own_images.records_of_table(table, lambda value: [value], problems))
    assert [(record.name, record.is_test) for record in records] == [
        ("train:0", False),
        ("Test:0", True),
        ("validation:0", True),
    ]
    assert len(problems.found["images have no caption, and are left out"]) == 3


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
    assert "'unheard'" in result.stdout and "'of'" in result.stdout and "cat" not in result.stdout
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


def test_a_run_does_not_go_on_with_images_that_were_changed_meanwhile(folder, tmp_path):
    data = ("--dataset", folder, "--data_dir", tmp_path / "data", "--output_dir", tmp_path / "out")
    dvae = ("lesson_08/train_dvae.py", *TINY, "--hidden_dim", 8, "--codebook_size", 16, *data)
    succeeds(*dvae, "--num_training_steps", 1)
    put(folder / "07.png", (255, 255, 255))
    result = script(*dvae, "--num_training_steps", 2, "--resume")
    assert result.returncode == 2 and "was trained otherwise: contents of the data" in result.stderr


@pytest.mark.parametrize("alike", [True, False])
def test_two_images_and_images_all_alike_are_learned_from(tmp_path, alike):
    folder = small(tmp_path, images=[f"{i}.png" for i in range(6 if alike else 2)])
    for path in folder.glob("*.png"):
        put(path) if alike else None
        path.with_suffix(".txt").write_text("one")
    data = ("--dataset", folder, "--data_dir", tmp_path / "data", "--output_dir", tmp_path / "out")
    tiny = ("--image_width", 16, "--image_layers", 1, "--embed_dim", 8, "--num_layers", 1, "--dim", 16, "--width", 8)
    few = (*TINY, "--head_dim", 8, "--num_training_steps", 3)
    succeeds("lesson_17/train_mnist.py", *few, *tiny, *data)


def test_a_batch_may_be_larger_than_the_folder(folder, tmp_path):
    big = ("lesson_08/train_dvae.py", *TINY, "--dataset", folder, "--batch_size", 50, "--output_dir", tmp_path / "out")
    succeeds(*big, "--num_training_steps", 2, "--hidden_dim", 8, "--data_dir", tmp_path / "data")
