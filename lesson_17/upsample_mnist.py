"""Enlarge drawn images with trained up-samplers: those of a folder with their samples.csv, such as a decoder of small images
drew. Each up-sampler doubles them, for as long as there is one. Writes them and a grid to FOLDER/upsampled."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from lesson_17.diffusion_upsampler import Upsampler, UpsamplerConfig, upsample
from torch import Tensor
from utils.checkpoints import find_checkpoint, load_checkpoint, load_model, models_folder
from utils.cli import ArgumentParser, UserError, bounded, new_folder, shortened, start
from utils.data import map_in_chunks
from utils.drawn_images import read_images
from utils.machine import Threads, get_device
from utils.plots import save_grid
from utils.samples import SeededNoise, write_images

COLUMNS = 10  # of the grid


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("folder", type=Path, help="of images and their samples.csv, such as output/dall_e_2_samples")
    parser.add_argument(
        "--models", metavar="MODELS", help="holds the models, each in a folder of its own (default: output)"
    )
    parser.add_argument("--sampling_steps", type=bounded(int, 1, 1000), default=20, help="of each up-sampler")
    parser.add_argument("--output_dir", type=new_folder, help="where the images go (default: FOLDER/upsampled)")
    args = parser.parse_args()
    images, rows = read_images(args.folder)
    if len({image.shape for image in images}) > 1:
        raise UserError(f"The images in {args.folder} have different sizes or channels.")
    images = torch.stack(images).to(get_device())
    if images.shape[2] != images.shape[3]:
        raise UserError(f"The images in {args.folder} are {images.shape[3]}x{images.shape[2]} pixels, and no squares.")
    upsamplers = load_upsamplers(images.shape[-1], images.shape[1], models_folder(args.models))
    Threads().choose()
    seeds = [seed_of(row, i) for i, row in enumerate(rows)]
    images = upsample_all(upsamplers, images, seeds, args.sampling_steps)
    prompts, folder = [row["prompt"] for row in rows], args.output_dir or args.folder / "upsampled"
    write_images(images, prompts, seeds, folder)
    save_grid(images, folder / "grid.png", min(COLUMNS, len(images)), prompts)
    print(
        f"{len(images)} images of {images.shape[-1]}x{images.shape[-1]} pixels, samples.csv and grid.png are in {folder}"
    )


def seed_of(row: dict[str, str], index: int) -> int:
    """The seed in a row of samples.csv, or the row's index where there is none. Raises UserError if it is no number."""
    seed = row.get("seed") or str(index)
    if not seed.isdecimal() or len(seed) > 18:
        raise UserError(
            f"The seed {shortened(seed)} of {row['file']} in samples.csv is no whole number of at most 18 digits."
        )
    return int(seed)


def load_upsamplers(size: int, channels: int, models: Path) -> list[Upsampler]:
    """The newest up-samplers of the folder `models` for images of `size` pixels, then for those of twice the size, and
    so on. Raises UserError if there is none, or it learned images of other channels."""
    upsamplers = []
    while file := find_checkpoint(None, f"upsampler_{2 * size}", models):
        upsampler = load_model(load_checkpoint(file, f"upsampler_{2 * size}"), Upsampler, UpsamplerConfig)
        if upsampler.config.image_channels != channels:
            found = upsampler.config.image_channels
            raise UserError(f"{file} enlarges images of {found} channels, and these have {channels}.")
        upsamplers.append(upsampler.to(get_device(), memory_format=torch.channels_last))
        size = 2 * size
    if not upsamplers:
        raise UserError(
            f"There is no up-sampler for images of {size}x{size} pixels in {models}; train one with python "
            f"lesson_17/train_upsampler.py --upsampled_size {2 * size}."
        )
    return upsamplers


def upsample_all(upsamplers: list[Upsampler], images: Tensor, seeds: list[int], num_steps: int) -> Tensor:
    """Images (B, C, S, S) in [0, 1] through all up-samplers, (B, C, H, H), each a function of its image and its seed."""

    def chunk(images: Tensor, seeds: list[int]) -> Tensor:
        randn = SeededNoise(seeds).randn
        for upsampler in upsamplers:
            c = upsampler.config
            x_T = randn((len(images), c.image_channels, c.image_size, c.image_size)).to(images)
            images = upsample(upsampler, images, x_T, num_steps)
        return images

    return map_in_chunks(chunk, images, seeds, batch_size=100)


if __name__ == "__main__":
    start(main)
