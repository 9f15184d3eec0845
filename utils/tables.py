"""CSV files: metrics and lists of samples."""

import csv
import io
import os
from pathlib import Path


def write_rows(path: Path, rows: list[dict], append: bool = False) -> None:
    """Rows as a CSV file with a header of all their names, or appended to those that it has. A program that is killed
    meanwhile loses none of these."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if append and path.exists():
        with open(path, "r+", newline="", encoding="utf-8") as file:
            header = next(csv.reader(file), [])
            if set(names) <= set(header):
                file.seek(0, os.SEEK_END)
                return csv.DictWriter(file, header).writerows(rows)
        rows = [*read_rows(path), *rows]
        names = list(dict.fromkeys([*header, *names]))
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        if names:
            writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, without a last line that was cut off; none if there is no such file."""
    text = path.read_text(encoding="utf-8-sig") if path.exists() else ""
    return list(csv.DictReader(io.StringIO(text.rpartition("\n")[0], newline="")))


def read_numbers(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV file of numbers; NaN where one is missing."""
    return [{name: float(value or "nan") for name, value in row.items()} for row in read_rows(path)]


def drop_rows_after(path: Path, step: int) -> None:
    """Take the rows of later steps out of a log; a run that was stopped wrote them after its last checkpoint."""
    write_rows(path, [row for row in read_rows(path) if int(row["step"]) <= step])
