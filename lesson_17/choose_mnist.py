"""Let CLIP choose among drawn images: the best of each prompt (DALL·E, section 2.6), of a folder of images with their
samples.csv, drawn by either lesson or by anyone. Writes them, and a grid with their cosines, to FOLDER/chosen."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from lesson_17.frozen_clip import FrozenCLIP
from torch import Tensor
from utils.checkpoints import PRETRAINED, models_folder, newest_checkpoint
from utils.cli import ROOT, ArgumentParser, UserError, new_folder, positive_int, start
from utils.data import map_in_chunks
from utils.drawn_images import read_images
from utils.machine import Threads, get_device, say
from utils.plots import save_grid
from utils.samples import MOST_COLUMNS, write_images


def main() -> None:
    args = parse_args()
    images, rows = read_images(args.folder)
    channels = max(len(image) for image in images)
    clip = load_clip(args.clip_checkpoint, args.models, args.pretrained, channels)
    Threads().choose()
    prompts = [row["prompt"] for row in rows]
    kept, cosines = choose(clip, fitted(images, clip), prompts, args.keep)
    prompts, cosines = [prompts[i] for i in kept], [f"{cosines[i]:.3f}" for i in kept]
    seeds = [rows[i].get("seed", "") for i in kept]
    images, folder = images_of_one_size([images[i] for i in kept]), args.output_dir or args.folder / "chosen"
    write_images(images, prompts, seeds, folder, cosine=cosines)
    captions = [f"{prompt} {cosine}" for prompt, cosine in zip(prompts, cosines)]
    save_grid(images, folder / "grid.png", min(args.keep, MOST_COLUMNS), captions)
    print(f"{len(kept)} of {len(rows)} images, samples.csv and grid.png are in {folder}")


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "folder", type=Path, help="of drawn images and their samples.csv, such as output/dall_e_samples"
    )
    parser.add_argument("--keep", type=positive_int, default=8, help="images of each prompt")
    parser.add_argument("--clip_checkpoint", help="(default: the newest in MODELS/clip, or the included one)")
    parser.add_argument(
        "--models", metavar="MODELS", help="holds the models, each in a folder of its own (default: output)"
    )
    parser.add_argument("--pretrained", choices=PRETRAINED, help="take the included CLIP for this data set")
    parser.add_argument("--output_dir", type=new_folder, help="where the chosen images go (default: FOLDER/chosen)")
    args = parser.parse_args()
    if args.clip_checkpoint and args.pretrained:
        raise UserError("--pretrained takes the place of --clip_checkpoint; give one of the two.")
    return args


def load_clip(clip_checkpoint: str | None, models: str | None, pretrained: str | None, channels: int) -> FrozenCLIP:
    """The CLIP that was named, or else the newest one, or the included one for gray images or color."""
    where = models_folder(models)
    if pretrained or not (clip_checkpoint or models) and newest_checkpoint(where / "clip", "clip") is None:
        data = pretrained or PRETRAINED[channels == 3]
        clip_checkpoint = str(ROOT / "lesson_17/pretrained" / data / "clip.safetensors")
        say(f"Taking the included CLIP for {data}")
    return FrozenCLIP.load(clip_checkpoint, where)


def fitted(images: list[Tensor], clip: FrozenCLIP) -> Tensor:
    """Images (C, H, W) as the CLIP takes them, (B, C, H, H). Raises UserError if they have another size or other
    channels than those that it learned from."""
    images = images_of_one_size(images)
    if clip.data is not None:
        size, channels = clip.data["image_size"], clip.data["image_channels"]
        if images.shape[1:] != (channels, size, size):
            found = "{1}x{2} pixels in {0} channels".format(*images.shape[1:])
            raise UserError(
                f"The images have {found}, and this CLIP learned from {size}x{size} in {channels}; name a CLIP of the same "
                f"images with --clip_checkpoint."
            )
    return images.to(get_device())


def images_of_one_size(images: list[Tensor]) -> Tensor:
    """Images (C, H, W) as one tensor; gray ones among colored ones get three channels. Raises UserError if sizes differ."""
    if len({image.shape[1:] for image in images}) > 1:
        raise UserError("The images have different sizes; CLIP compares images of one size.")
    channels = max(len(image) for image in images)
    return torch.stack([image.expand(channels, -1, -1) for image in images])


@torch.no_grad()
def choose(clip: FrozenCLIP, images: Tensor, prompts: list[str], keep: int) -> tuple[list[int], list[float]]:
    """Of images (B, C, H, H) in [0, 1] and their prompts, the indices of the `keep` images of each prompt whose cosine with it
    is largest, best first, the prompts in their order; and the cosines of all images."""
    distinct = list(dict.fromkeys(prompts))
    text_embed, _ = clip.encode_prompts(distinct, images.device)
    own = text_embed[[distinct.index(prompt) for prompt in prompts]]
    cosines = F.cosine_similarity(map_in_chunks(clip.model.encode_image, images), own).tolist()
    order = sorted(range(len(prompts)), key=lambda i: -cosines[i])
    return [i for prompt in distinct for i in [i for i in order if prompts[i] == prompt][:keep]], cosines


if __name__ == "__main__":
    start(main)
