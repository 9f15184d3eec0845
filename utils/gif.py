"""Make one animation of a run's sample grids: python utils/gif.py output/dall_e"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch import Tensor

from utils.cli import ArgumentParser, UserError, bounded, start
from utils.plots import to_picture


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("folder", type=Path, help="the run's")
    parser.add_argument("--file", type=Path, help="the animation (default: samples.gif in that folder)")
    parser.add_argument("--milliseconds", type=bounded(int, 20, 60_000), default=500, help="for which a grid is shown")
    args = parser.parse_args()
    grids = {
        int(found[1]): file for file in args.folder.glob("*") if (found := re.fullmatch(r"sample-(\d+).png", file.name))
    }
    if not grids:
        raise UserError(f"There are no sample grids in {args.folder}; give the folder that a training wrote to.")
    file = args.file or args.folder / "samples.gif"
    save_gif([grids[step] for step in sorted(grids)], file, args.milliseconds)
    print(f"{len(grids)} grids are in {file}")


def save_gif(frames: list[Tensor | Path], path: Path, milliseconds: int, scale: int = 1) -> None:
    """Frames, images (C, H, W) in [0, 1] or files of them, enlarged, as an animation that rests on its last one."""
    from PIL import Image

    pictures = []
    for frame in frames:
        picture = Image.open(frame) if isinstance(frame, Path) else to_picture(frame)
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
        pictures.append(picture.quantize(16 if is_gray(picture) else 128))
    durations = [milliseconds] * (len(pictures) - 1) + [2500]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def is_gray(picture) -> bool:
    """Whether a PIL image has no color."""
    red, green, blue = picture.convert("RGB").split()
    return red.tobytes() == green.tobytes() == blue.tobytes()


if __name__ == "__main__":
    start(main)
