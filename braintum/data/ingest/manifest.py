"""A CSV file that lists what a dataset is made of, line by line."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Sequence
from pathlib import Path

from braintum.data.schema import DataError

Line = tuple[str, dict[str, str]]
"""How errors name a line ("manifest.csv line 7"), and its cells that are not empty."""


def read_lines(manifest: Path, known: Sequence[str], required: Sequence[str]) -> tuple[list[str], list[Line]]:
    """The columns of a CSV file with a header, and its lines.

    Raises DataError, naming file and line, for text that is not UTF-8, for a column that is not known, is there twice
    or is missing, for a line of more or fewer cells than the header has, and for no lines at all.
    """
    try:
        text = manifest.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{manifest.name}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    lines: list[Line] = []
    try:
        columns = [column.strip() for column in reader.fieldnames or []]
        reader.fieldnames = columns
        _check_columns(manifest.name, columns, known, required)
        for cells in reader:
            where = f"{manifest.name} line {reader.line_num}"
            if None in cells or None in cells.values():
                raise DataError(f"{where}: has not {len(columns)} cells as the header has; quote cells with a comma")
            lines.append((where, {column: cell.strip() for column, cell in cells.items() if cell.strip()}))
    except csv.Error as error:
        where = f"{manifest.name} line {reader.line_num + 1}"
        raise DataError(f"{where}: {error}; close a quote that was left open") from None
    if not lines:
        raise DataError(f"{manifest.name}: no slices")
    return columns, lines


def _check_columns(manifest: str, columns: list[str], known: Sequence[str], required: Sequence[str]) -> None:
    for column in columns:
        if columns.count(column) > 1:
            raise DataError(f"{manifest}: column {column!r} is there twice")
        if column not in known:
            near = difflib.get_close_matches(column.lower(), known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(f"{manifest}: unknown column {column!r}; {hint}Known: {', '.join(known)}; remove others")
    for column in required:
        if column not in columns:
            raise DataError(f"{manifest}: no column {column!r}")
