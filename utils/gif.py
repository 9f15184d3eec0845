"""Make one animation of a run's sample grids: python utils/gif.py output/dall_e"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import ArgumentParser, UserError, bounded, start
from utils.plots import save_gif


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


if __name__ == "__main__":
    start(main)
