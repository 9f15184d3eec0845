"""Where images come from: LOADERS, {name: loader}, to which each file in this folder adds its own.

A data set of your own is a file here with LOADERS = {"shapes": load_shapes}, where load_shapes(source, data_dir)
returns two CaptionedImages, to train on and to test on; then --dataset shapes learns from it.
"""

import importlib
import pkgutil
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import NamedTuple

from utils.cli import ROOT, ArgumentParser, UserError, bounded, shortened
from utils.data import CaptionedImages, DataSource
from utils.datasets import mnist
from utils.machine import free_memory, say

MAX_OF_MEMORY = 0.5  # what images may take of the device's free memory
LOADERS = dict(mnist.LOADERS)
for module in pkgutil.iter_modules(__path__):
    LOADERS |= importlib.import_module(f"{__name__}.{module.name}").LOADERS


def add_data_flags(parser: ArgumentParser) -> None:
    """The fields of a DataSource, and --data_dir."""
    add, names = parser.add_argument, "|".join(name or "FOLDER" for name in LOADERS)
    add("--dataset", metavar=names, help="images to learn from (default: those of the earlier stage, or MNIST)")
    add("--data_dir", type=Path, default=ROOT / "data", help="where data are downloaded and prepared")
    add("--image_size", type=bounded(int, 1, 4096), help="images are cut to a square and resized to this (default: 28)")
    add("--image_channels", type=int, choices=[1, 3], help="gray or color (default: 1 for plain digits)")
    add("--image_column", help="of a data set's table (default: file_name or image)")
    add("--caption_column", help="of a data set's table (default: text or caption)")


def data_source(args, learned: dict | None = None) -> DataSource:
    """What the data flags say, or else what an earlier stage learned from, the "data" of its checkpoint, whose size and
    channels are kept. A folder gets its whole path. Raises UserError if another size or channels are asked for."""
    source = DataSource(*(getattr(args, f.name) for f in fields(DataSource)))
    if source.dataset not in (None, *LOADERS) and Path(source.dataset).is_dir():
        source = replace(source, dataset=str(Path(source.dataset).resolve()))
    if learned is None:
        return source
    earlier = DataSource(*(learned[f.name] for f in fields(DataSource)))
    if source.dataset not in (None, earlier.dataset):
        earlier = replace(earlier, image_column=None, caption_column=None)
    source = replace(earlier, **{name: value for name, value in asdict(source).items() if value is not None})
    if (source.image_size, source.image_channels) != (earlier.image_size, earlier.image_channels):
        size, channels = earlier.image_size, earlier.image_channels
        learned_images = f"The earlier stage learned images of {size}x{size} pixels in {channels} channels"
        raise UserError(f"{learned_images}, and so must this; leave out --image_size and --image_channels.")
    return source


class LoadedImages(NamedTuple):
    train_set: CaptionedImages
    test_set: CaptionedImages
    source: DataSource  # with its gaps filled in


def load_images(source: DataSource, data_dir: Path, device) -> LoadedImages:
    """Training and test images, in the device's memory if they fit. Raises UserError if they cannot be had or read."""
    source = replace(source, dataset=source.dataset or mnist.mnist_or_5k(data_dir))
    meant = source.dataset.lower().replace("-", "_")
    if meant != source.dataset and meant in LOADERS and not Path(source.dataset).exists():
        raise UserError(f"There is no data set {shortened(source.dataset)}; did you mean {meant}?")
    loader = LOADERS.get(source.dataset, LOADERS.get(None))
    if loader is None:
        raise UserError(f"There is no data set {shortened(source.dataset)}, but {', '.join(LOADERS)}.")
    splits = loader(source, data_dir)
    needed = sum(images.pixels.numel() for images in splits)
    if needed <= MAX_OF_MEMORY * free_memory(device):
        splits = [replace(images, pixels=images.pixels.to(device, copy=True)) for images in splits]
    else:
        say(f"The images take {needed / 2**30:.1f} GiB, so they stay in {data_dir}.")
    train_set, test_set = (replace(images, caption_ids=images.caption_ids.to(device)) for images in splits)
    _, channels, _, size = train_set.pixels.shape
    if (size, channels) != (source.image_size or size, source.image_channels or channels):
        raise UserError(f"{source.dataset} has images of {size}x{size} pixels in {channels} channels, and no others.")
    return LoadedImages(train_set, test_set, replace(source, image_size=size, image_channels=channels))
