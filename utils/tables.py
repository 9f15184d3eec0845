"""CSV files: metrics, learning curves, lists of samples."""

import csv
import io
import os
from pathlib import Path


def write_rows(path: Path, rows: list[dict], append: bool = False) -> None:
    """Rows as a CSV file, below a header of all their names; with `append`, behind the rows that it has."""
    if append and rows and path.exists() and path.read_text(encoding="utf-8").startswith(",".join(rows[0]) + "\r\n"):
        with open(path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, list(rows[0])).writerows(rows)
    elif rows or not append:
        rows = [*read_rows(path), *rows] if append else rows
        names = list(dict.fromkeys(name for row in rows for name in row))
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            if names:
                writer.writeheader()
            writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none if there is no such file. A last line that was cut off is left out."""
    if not path.exists():
        return []
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8").rpartition("\n")[0], newline="")))


def read_numbers(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV file of numbers; NaN where one is missing."""
    return [{name: float(value or "nan") for name, value in row.items()} for row in read_rows(path)]


def drop_rows_after(path: Path, step: int) -> None:
    """Take out of a log the rows of later steps, which a run that was stopped wrote after its last checkpoint."""
    write_rows(path.with_name(f".{path.name}.tmp"), [row for row in read_rows(path) if int(row["step"]) <= step])
    os.replace(path.with_name(f".{path.name}.tmp"), path)
