"""Show a run in TensorBoard: writes what it reads into the run's folder, from metrics.csv, held_out_metrics.csv and the sample
grids, of a run that is finished or, with --follow, still going on. Needs pip install tensorboard; then tensorboard --logdir
output shows it.
"""

import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import ArgumentParser, UserError, bounded, start
from utils.tables import read_numbers

TABLES = {"training": "metrics.csv", "held_out": "held_out_metrics.csv"}


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("folder", type=Path, help="the run's, such as output/dall_e")
    parser.add_argument("--follow", action="store_true", help="go on writing until Ctrl-C")
    parser.add_argument("--seconds", type=bounded(float, 0.1, 3600), default=5, help="between looks at the folder")
    args = parser.parse_args()
    if not (args.folder / "metrics.csv").exists() and not args.follow:
        raise UserError(f"There is no metrics.csv in {args.folder}; give the folder that a training writes to.")
    board = Board(args.folder)
    board.write_what_is_new()
    print(f"What TensorBoard reads is in {board.writer.log_dir}", flush=True)
    while args.follow:
        time.sleep(args.seconds)
        board.write_what_is_new()


class Board:
    """The event files of a run in FOLDER/tensorboard, which are written anew. Raises UserError if TensorBoard is not
    installed."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise UserError("This needs TensorBoard: pip install tensorboard.") from error
        self.folder = folder
        for file in (folder / "tensorboard").glob("events.out.tfevents.*"):
            file.unlink()
        self.writer = SummaryWriter(str(folder / "tensorboard"))
        self.last_step = dict.fromkeys([*TABLES, "samples"], 0)

    def write_what_is_new(self) -> None:
        """All metrics and sample grids of the steps since the last look; all of them again if the run has begun anew."""
        tables = {kind: read_numbers(self.folder / file) for kind, file in TABLES.items()}
        if any(rows and rows[-1]["step"] < self.last_step[kind] for kind, rows in tables.items()):
            self.last_step = dict.fromkeys(self.last_step, 0)
        for kind, rows in tables.items():
            for row in rows:
                step = int(row.pop("step"))
                if step > self.last_step[kind]:
                    for name, value in row.items():
                        self.writer.add_scalar(f"{kind}/{name}", value, step)
                    self.last_step[kind] = step
        grids = {
            int(found[1]): file
            for file in self.folder.glob("sample-*.png")
            if (found := re.fullmatch(r"sample-(\d+)\.png", file.name))
        }
        for step in sorted(step for step in grids if step > self.last_step["samples"]):
            if not self.show(grids[step], step):
                break  # it is still being written
            self.last_step["samples"] = step
        self.writer.flush()

    def show(self, file: Path, step: int) -> bool:
        """A sample grid; whether it could be read."""
        import numpy as np
        from PIL import Image

        try:
            with Image.open(file) as image:
                pixels = np.asarray(image.convert("RGB"))
        except OSError:
            return False
        self.writer.add_image("samples", pixels, step, dataformats="HWC")
        return True


if __name__ == "__main__":
    start(main)
