"""Images and their captions, which all models of both lessons learn from; utils/datasets loads them.

N images, C channels, H height, W width, B images of a batch, M captions, K captions of an image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class CaptionedImages:
    """Images and their captions, which training draws by index."""

    pixels: Tensor  # (N, C, H, W) uint8 in 0..255, on the device, or a memory map where it does not fit
    captions: list[str]  # the M distinct captions
    caption_ids: Tensor  # (N, K) int64, on the device: each image's valid captions; -1 fills up shorter rows
    closed: bool = False  # whether the captions are all that a model may be asked for

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
        """A random valid caption of each image at `index`, (B,) in 0 .. M - 1."""
        ids = self.caption_ids[index]
        which = torch.rand(len(ids), device=ids.device) * (ids >= 0).sum(dim=1)
        return ids.gather(1, which.long()[:, None]).squeeze(1)

    def index_of(self, caption: str) -> Tensor:
        """The indices of the images that a caption is valid for, (B,)."""
        number = self.captions.index(caption) if caption in self.captions else len(self.captions)
        return torch.where((self.caption_ids == number).any(dim=1))[0]

    def subset(self, index) -> "CaptionedImages":
        """Some of the images, a slice or an index (B,), with those of the captions that are valid for them."""
        ids = self.caption_ids[index]
        used = ids[ids >= 0].unique()
        renumbered = torch.full((len(self.captions) + 1,), -1, device=self.device)
        renumbered[used] = torch.arange(len(used), device=self.device)
        index = index.to(self.pixels.device) if isinstance(index, Tensor) else index
        captions = [self.captions[i] for i in used]
        return CaptionedImages(self.pixels[index], captions, renumbered[ids], self.closed)

    def of_different_captions(self, number: int) -> "CaptionedImages":
        """The first images, at most `number`, of different first captions, in the order of the captions."""
        first = self.caption_ids[:, 0].tolist()
        index = {caption: i for i, caption in reversed(list(enumerate(first)))}
        chosen = sorted(sorted(index.values())[:number], key=lambda i: first[i])
        return self.subset(torch.tensor(chosen, device=self.device))

    def map(self, function, batch_size: int = 500) -> Tensor:
        """function(images (B, C, H, W) in [0, 1]) -> (B, ...) of all images, in chunks of batch_size: (N, ...)."""
        return map_in_chunks(lambda index: function(self.images(index)), torch.arange(len(self)), batch_size=batch_size)


def map_in_chunks(function, *batches, batch_size: int = 500) -> Tensor:
    """function(*chunks) -> (B, ...) of all rows of `batches`, (N, ...) or lists, in chunks of batch_size: (N, ...)."""
    starts = range(0, len(batches[0]), batch_size)
    return torch.cat([function(*(rows[i : i + batch_size] for rows in batches)) for i in starts])


@dataclass
class DataSource:
    """Which images a model learns from; its checkpoint carries this, and the later stages go on with it."""

    dataset: str | None = None  # see utils/datasets; None: MNIST where it can be had
    image_size: int | None = None  # H; None: the data set's own, 28 for most
    image_channels: int | None = None  # C; None: the data set's own
    image_column: str | None = None  # of a table
    caption_column: str | None = None
