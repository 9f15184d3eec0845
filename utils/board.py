"""A run's metrics and sample grids for TensorBoard, which shows them in a browser while the run goes on."""

from pathlib import Path

from utils.cli import UserError


class Board:
    """The event files of a run in its folder; what an earlier run wrote of the steps after `step` is hidden.

    Raises UserError if TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise UserError("--tensorboard needs TensorBoard: pip install tensorboard.") from error
        self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def log(self, kind: str, rows: list[dict]) -> None:
        """Metrics of a kind, "training" or "held_out": a row for each "step"."""
        for row in rows:
            for name, value in row.items():
                if name != "step":
                    self.writer.add_scalar(f"{kind}/{name}", value, row["step"])

    def show(self, file: Path, step: int) -> None:
        """A sample grid."""
        import numpy as np
        from PIL import Image

        with Image.open(file) as image:
            self.writer.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()
