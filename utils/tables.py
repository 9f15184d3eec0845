"""CSV files: metrics, learning curves, lists of samples."""

import csv
from pathlib import Path


def write_rows(path: Path, rows: list[dict], append: bool = False) -> None:
    """Rows of the same names as a CSV file, below a header; with `append`, behind the rows that it has."""
    with open(path, "a" if append else "w", newline="") as file:
        if rows:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            if file.tell() == 0:
                writer.writeheader()
            writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV file of numbers; none if there is no such file. A last line that was cut off is left out."""
    if not path.exists():
        return []
    whole_lines = path.read_text().rpartition("\n")[0].splitlines()
    return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(whole_lines)]
