"""A user's own captioned images: a folder, or a data set on the Hugging Face hub, decoded once.

A folder has its captions in a metadata.csv or metadata.jsonl (file_name, text), the convention of the hub's imagefolder, or
in a text file beside each image, x.txt for x.png, a caption a line. Images in a folder train/ and test/ (or validation/)
are split as they say; otherwise 5% are kept for the test. Folders are read here and not by the datasets library, as that
leaves out a row without its image, and an image without its row, without a word.

C channels, H image height and width.
"""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock
from torch import Tensor

from utils.cli import UserError, shortened
from utils.data import CaptionedImages, DataSource
from utils.machine import progress_bar, say

IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
TEST_NAMES = {"test", "validation", "valid", "val"}
TEST_FRACTION = 0.05
IMAGE_COLUMNS = ("file_name", "image")  # of a table, the first there is
CAPTION_COLUMNS = ("text", "caption", "captions")
TABLE_ENDINGS = {".parquet", ".arrow", ".csv", ".json", ".jsonl", ".zip", ".tar"}  # which the datasets library reads
MOST_CAPTIONS = 32  # of an image; the others are left out
AT_A_TIME = 64  # images that are held in memory while they are decoded


class Record(NamedTuple):
    """An image as it was found."""

    name: str
    content: Path | bytes
    captions: list[str]
    is_test: bool


class Problems:
    """What is wrong with some of the data: counted, and the first of each kind named."""

    def __init__(self):
        self.found = defaultdict(list)

    def add(self, kind: str, name: str) -> None:
        self.found[kind].append(name)

    def lines(self) -> list[str]:
        return [
            f"{len(names)} {kind}: {', '.join(map(shortened, names[:3]))}{', ...' * (len(names) > 3)}"
            for kind, names in self.found.items()
        ]


def load_own(source: DataSource, data_dir: Path) -> list[CaptionedImages]:
    """Training and test images of a folder or of the hub. They are decoded on first use into a folder of their own in
    `data_dir`, and read from there as they are looked at. Raises UserError if there are none, or fewer than two that
    can be read."""
    source = replace(source, image_size=source.image_size or 28, image_channels=source.image_channels or 3)
    problems, folder = Problems(), Path(source.dataset)
    if folder.is_dir() and (records := records_of_folder(folder, source, problems)):
        files = [record.content.stat() for record in records]
        seen = [(*record, file.st_size, file.st_mtime_ns) for record, file in zip(records, files)]
    else:
        table, captions_of = table_of(source)
        seen = sorted((name, rows._fingerprint) for name, rows in table.items())
        records = records_of_table(table, captions_of, problems)
    name = f"{printable(folder.resolve().name[:40])}-{short_hash([asdict(source), str(folder.resolve())])}"
    decoded = data_dir / "decoded" / f"{name}-{short_hash(seen)}"
    decoded.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(decoded.with_name(f"{name}.lock")):  # other processes wait for the first
        if not decoded.exists():
            decode_all(records, source, problems, decoded)
        for older in decoded.parent.iterdir():  # of the same data, before they were changed
            if older.name.startswith(f"{name}-") and older != decoded:
                shutil.rmtree(older, ignore_errors=True)
        return read_decoded(decoded, source)


def short_hash(facts) -> str:
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:10]


def printable(text: str) -> str:
    """Text with a question mark for what is no letter: half an emoji, or a byte that is not UTF-8."""
    return text.encode(errors="replace").decode()


LOADERS = {None: load_own}  # of all names that no other loader has


def records_of_folder(folder: Path, source: DataSource, problems: Problems) -> list[Record]:
    """The captioned images of a folder and the folders in it, in the order of their names; none if it has no images."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    images = [path for path in files if path.suffix.lower() in IMAGE_ENDINGS]
    inside, captions, image_named = folder.resolve(), defaultdict(list), finder(folder, images)
    for path in files:
        if path.name in ("metadata.csv", "metadata.jsonl"):
            for file_name, texts in rows_of_metadata(path, source, problems):
                captions[image_named(path.parent, file_name)] += texts
    beside = defaultdict(list)
    for path in images:
        beside[path.with_suffix("")].append(path)
    for path in files:
        if path.suffix.lower() == ".txt":
            for image in beside.get(path.with_suffix("")) or [path.with_suffix(".png")]:
                captions[image] += read_text(path, problems).split("\n")

    records, names = [], {path.relative_to(folder).as_posix(): path for path in images}
    for name, path in names.items():
        texts = cleaned(captions.get(path, []))
        if not path.resolve().is_relative_to(inside):
            problems.add("images are links out of the folder, and left out", name)
        elif not texts:
            problems.add("images have no caption, and are left out", name)
        else:
            is_test = any(part.lower() in TEST_NAMES for part in Path(name).parts[:-1])
            records.append(Record(printable(name), path, texts, is_test))
    missing = sorted(os.path.relpath(path, folder) for path in captions.keys() - set(images))
    for name in missing:
        problems.add("captions are of images that the folder does not have", name)
    if images and not records:
        how = f"put them into {folder / 'metadata.csv'}, with the columns file_name and text, or into a text file beside each"
        if missing:
            looked_for, there = (" and ".join(map(shortened, some[:2])) for some in (missing, list(names)))
            how = f"they are of {looked_for}, and the images are {there}"
        raise UserError(f"None of the {len(images)} images in {folder} has a caption; {how}.")
    return records


def plain(name: str) -> str:
    """A file's name in small letters, each letter in one spelling: a Mac writes \u00e9 as two."""
    return unicodedata.normalize("NFC", name).lower()


def finder(folder: Path, images: list[Path]) -> Callable[[Path, str], Path]:
    """What finds the image that a metadata file means: of that very name, or else the only one that it can mean if letters are
    small or large, \\ is /, its ending or the folders in front of it are left out, or `folder` itself stands in front."""
    ends = defaultdict(set)
    for path in images:
        parts = plain(path.relative_to(folder).as_posix()).split("/")
        for i in range(len(parts)):
            end = "/".join(parts[i:])
            ends[end].add(path)
            ends[end.rpartition(".")[0]].add(path)
    there = set(images)

    def image_named(beside: Path, name: str) -> Path:
        exact = Path(os.path.normpath(beside / name))
        if exact in there:
            return exact
        meant = plain(name.replace("\\", "/")).removeprefix("./").removeprefix(f"{plain(folder.resolve().name)}/")
        in_reach = {path for path in ends.get(meant, ()) if path.is_relative_to(beside)}
        return in_reach.pop() if len(in_reach) == 1 else exact

    return image_named


def rows_of_metadata(path: Path, source: DataSource, problems: Problems) -> Iterable[tuple[str, list[str]]]:
    """File names and captions of a metadata.csv or metadata.jsonl. Raises UserError if its columns are not there."""
    text = read_text(path, problems)
    if path.suffix == ".csv":
        rows = rows_of_csv(text, path, problems)
    else:
        rows = []
        for number, line in enumerate(text.split("\n"), 1):
            try:
                rows += [json.loads(line)] if line.strip() else []
            except ValueError:
                problems.add("lines cannot be read", f"{path.name}:{number}")
        rows = [row for row in rows if isinstance(row, dict)]
    columns = list(rows[0]) if rows else []
    image_column = column_of(columns, source.image_column, IMAGE_COLUMNS, path)
    caption_column = column_of(columns, source.caption_column, CAPTION_COLUMNS, path)
    for row in rows:
        name, texts = row.get(image_column), row.get(caption_column)
        if name or name == 0:
            yield str(name), texts if isinstance(texts, list) else [texts]


def rows_of_csv(text: str, path: Path, problems: Problems) -> list[dict[str, str]]:
    """The rows of a table. What stands behind the last column is taken for a caption with commas that has no quotes, if that
    column has no quotes either. Raises UserError for a quote that is not closed."""
    csv.field_size_limit(2**31 - 1)
    text = text.replace("\0", "")
    delimiter = max(",;\t", key=text.partition("\n")[0].count)  # of equally many the comma
    text = re.sub(rf'^([^"\n]*{delimiter}) +"', r'\1"', text, flags=re.MULTILINE)  # a blank before a quote
    reader, rows, line = csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True), [], 1
    try:
        line += len(reader.fieldnames or ()) > 0  # the header is read
        for row in reader:
            last, further = reader.fieldnames[-1], [cell for cell in row.pop(None, []) if cell.strip()]
            if further and delimiter in row[last]:
                kind = "lines have more columns than the first, and are left out; a caption with commas needs quotes"
                problems.add(kind, f"{path.name}:{line}")
            else:
                rows.append({**row, last: delimiter.join([row[last] or "", *further])})
            line = reader.line_num + 1
    except csv.Error as error:
        how = 'a caption in quotes ends with its quote, and a " in it is written as ""'
        raise UserError(f"{path} cannot be read from line {line} on: {how}.") from error
    return rows


def column_of(columns: list[str], given: str | None, usual: tuple[str, ...], where) -> str:
    """The column that was asked for, or the first of the usual ones."""
    for name in (given,) if given else usual:
        if name in columns:
            return name
    raise UserError(
        f"{where} has no column {given or ' or '.join(usual)}; it has {shortened(', '.join(map(str, columns)) or 'none')}. "
        f"--image_column and --caption_column say which to take."
    )


def read_text(path: Path, problems: Problems) -> str:
    """The text of a file, whose lines end in \\n whatever system wrote them."""
    content = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        problems.add(
            "files are not UTF-8, and are read with question marks for some letters; save them as UTF-8", path.name
        )
        return content.decode("utf-8", errors="replace")


def cleaned(captions: list) -> list[str]:
    """Captions without needless blanks, each once, the empty ones left out."""
    texts = (" ".join(printable(f"{text}").split()) for text in captions if isinstance(text, (str, int, float)))
    return list(dict.fromkeys(text for text in texts if text))[:MOST_CAPTIONS]


def table_of(source: DataSource):
    """A data set as the datasets library loads it, {split: rows (name, image, caption)}, and what turns the caption of a
    row into texts."""
    path, name = Path(source.dataset), shortened(source.dataset)
    if path.is_file():
        raise UserError(f"{name} is a file; give the folder that holds the images.")
    if path.is_dir() and not any(file.suffix.lower() in TABLE_ENDINGS for file in path.rglob("*")):
        raise UserError(f"{name} has no images; their names end in {', '.join(sorted(IMAGE_ENDINGS))}.")
    if not path.exists() and (path.is_absolute() or path.parts[:1] == ("..",) or len(path.parts) > 2):  # no hub's name
        raise UserError(f"There is no folder {name}.")
    try:
        from datasets import Image, disable_progress_bars, load_dataset
    except ImportError as error:
        here = "" if path.exists() else f"There is no folder {name} here. "
        raise UserError(f"{here}Tables and data sets on the hub need another package: pip install datasets.") from error
    disable_progress_bars()
    try:
        splits = load_dataset(source.dataset)
    except Exception as error:  # of many kinds: no such name, no network, a broken file
        reason = shortened(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
        raise UserError(f"{name} is neither a folder here nor a data set that can be loaded ({reason}).") from error
    features = next(iter(splits.values())).features
    of_images = tuple(name for name, feature in features.items() if isinstance(feature, Image))
    image_column = column_of(list(features), source.image_column, of_images or IMAGE_COLUMNS, source.dataset)
    caption_column = column_of(list(features), source.caption_column, CAPTION_COLUMNS, source.dataset)
    if image_column not in of_images:
        raise UserError(f"The column {image_column} of {source.dataset} has no images; --image_column says which has.")
    names = getattr(features[caption_column], "names", None)  # of classes, which are captions too

    def captions_of(value) -> list:
        return value if isinstance(value, list) else [names[value] if names and isinstance(value, int) else value]

    raw = Image(decode=False)
    columns = {image_column: "image", caption_column: "caption"}
    return {
        name: rows.select_columns(list(columns)).rename_columns(columns).cast_column("image", raw)
        for name, rows in splits.items()
    }, captions_of


def records_of_table(table, captions_of, problems: Problems) -> Iterable[Record]:
    """The captioned images of the splits of a data set."""
    for split, rows in table.items():
        for i, row in enumerate(rows):
            texts, image = cleaned(captions_of(row["caption"])), row["image"] or {}
            if texts:
                yield Record(
                    f"{split}:{i}",
                    image.get("bytes") or Path(image.get("path") or ""),
                    texts,
                    split.lower() in TEST_NAMES,
                )
            else:
                problems.add("images have no caption, and are left out", f"{split}:{i}")


def decode_all(records: Iterable[Record], source: DataSource, problems: Problems, folder: Path) -> None:
    """Decode the images into one file of bytes, training images first, with their captions beside it."""
    temporary = folder.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    captions, is_test = [], []

    def decode(record: Record):
        try:
            return record, to_pixels(record.content, source.image_size, source.image_channels)
        except Exception:  # whatever a broken image provokes
            return record, None

    def decoded(threads: ThreadPoolExecutor):
        remaining = iter(records)
        while some := list(islice(remaining, AT_A_TIME)):
            yield from threads.map(decode, some)

    with ThreadPoolExecutor() as threads, open(temporary / "pixels", "wb") as file:
        for record, pixels in progress_bar(decoded(threads), desc="decoding", unit=" images"):
            if pixels is None:
                problems.add("images cannot be read, and are left out", record.name)
                continue
            file.write(pixels)
            captions.append(record.captions)
            is_test.append(record.is_test)
    if len(captions) < 2:
        shutil.rmtree(temporary)
        found = "; ".join(problems.lines())
        raise UserError(
            f"{source.dataset} has {len(captions)} captioned images that can be read, and 2 are the least, one to train and one "
            f"to test on.{' ' * bool(found)}{found}"
        )
    if not any(is_test) or all(is_test):
        order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(0)).tolist()
        chosen = set(order[: max(1, round(TEST_FRACTION * len(captions)))])
        is_test = [i in chosen for i in range(len(captions))]
    order = sorted(range(len(captions)), key=lambda i: (is_test[i], i))
    pixels = memory_map(temporary / "pixels", len(captions), source)
    with open(temporary / "in_order", "wb") as file:
        for i in order:
            file.write(pixels[i].numpy().tobytes())
    del pixels
    os.replace(temporary / "in_order", temporary / "pixels")
    about = {
        "captions": [captions[i] for i in order],
        "num_train": is_test.count(False),
        "problems": problems.lines(),
    }
    (temporary / "captions.json").write_text(json.dumps(about))
    os.replace(temporary, folder)


def to_pixels(content: Path | bytes, size: int, channels: int) -> bytes:
    """An image file as uint8 in 0..255, (C, H, H): turned as its camera says, on white where it is transparent, its middle
    square resized."""
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd tags and large sizes
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits, of which Pillow would keep the darkest 8
                image = image.convert("I").point(lambda value: value / 257).convert("L")
            if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB").convert("RGB" if channels == 3 else "L")
            image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    planes = image.split()
    return b"".join(plane.tobytes() for plane in planes)


def memory_map(path: Path, number: int, source: DataSource) -> Tensor:
    """The images of a file of bytes, (N, C, H, H) uint8, read where they are looked at."""
    shape = (number, source.image_channels, source.image_size, source.image_size)
    return torch.from_file(str(path), size=torch.Size(shape).numel(), dtype=torch.uint8).view(shape)


def read_decoded(folder: Path, source: DataSource) -> list[CaptionedImages]:
    """What decode_all has written."""
    about = json.loads((folder / "captions.json").read_text())
    captions, number = about["captions"], about["num_train"]
    for line in about["problems"]:
        say(f"Of {source.dataset}, {line}.")
    pixels = memory_map(folder / "pixels", len(captions), source)
    say(f"{source.dataset} has {number:,} images to train on and {len(captions) - number:,} to test on.")
    return [with_captions(pixels[part], captions[part]) for part in (slice(number), slice(number, None))]


def with_captions(pixels: Tensor, captions: list[list[str]]) -> CaptionedImages:
    """Images (N, C, H, H) and the captions of each."""
    places = {}
    for texts in captions:
        for text in texts:
            places.setdefault(text, len(places))
    ids = torch.full((len(captions), max(map(len, captions))), -1)
    for row, texts in zip(ids, captions):
        row[: len(texts)] = torch.tensor([places[text] for text in texts])
    return CaptionedImages(pixels, list(places), ids)
