"""Lay the learning curves of your run over the expected ones, those of the committed defaults. Writes to output/curves."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import run
from utils.figures import curves_script


def main() -> None:
    curves_script(__doc__, ["clip", "prior", "decoder"], Path(__file__).parent)


if __name__ == "__main__":
    run(main)
