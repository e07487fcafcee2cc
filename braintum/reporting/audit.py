"""What an audit found, as files: tables for programs and people, and a picture of the pairs."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas

from braintum import storage
from braintum.data.audit import Audit, Finding, Pair, SameId, Slice
from braintum.data.exclusions import Exclusion, proposed
from braintum.data.table import read_images
from braintum.reporting.canvas import MUTED, draw

PAIR_COLUMNS = (
    "parted", "same", "copy", "correlation", "two_labels",
    *(f"{side}_{field}" for side in ("first", "second") for field in Slice._fields),
)  # fmt: skip
SHOWN = 12
"""Pairs in the picture."""


def write_audit(audit: Audit, out: str, urls: dict[str, str]) -> dict[str, Any]:
    """Writes pairs, same_ids, findings (.csv, .parquet), pairs.png, audit.json to the folder `out`; returns the last.

    Also exclude.csv, where slices should be left out; one that is there, which somebody may have edited, else stays.

    `urls`: where each dataset lies, for the pictures.
    """
    exclusions = proposed(audit.pairs)
    tables: dict[str, tuple[list[dict[str, Any]], tuple[str, ...]]] = {
        "pairs": ([_row(pair) for pair in audit.pairs], PAIR_COLUMNS),
        "same_ids": ([same._asdict() for same in audit.same_ids], SameId._fields),
        "findings": ([finding._asdict() for finding in audit.findings], Finding._fields),
    }
    for name, (rows, columns) in tables.items():
        storage.write_rows(storage.join(out, f"{name}.parquet"), rows, columns)
        _write_csv(storage.join(out, f"{name}.csv"), rows, columns)
    if exclusions:
        rows = [exclusion._asdict() for exclusion in exclusions]
        _write_csv(storage.join(out, "exclude.csv"), rows, Exclusion._fields)
    storage.remove(storage.join(out, "pairs.png"))
    if audit.pairs:
        storage.write_bytes(storage.join(out, "pairs.png"), _picture(audit.pairs[:SHOWN], urls))
    summary = {
        "slices": audit.num_slices,
        "pairs": dict(Counter(pair.parted for pair in audit.pairs)),
        "copies": sum(pair.copy for pair in audit.pairs),
        "same_picture": sum(pair.same for pair in audit.pairs),
        "two_labels": sum(pair.two_labels for pair in audit.pairs),
        "same_ids": dict(Counter(same.kind for same in audit.same_ids)),
        "to_exclude": len(exclusions),
        "findings": dict(Counter(finding.kind for finding in audit.findings)),
        "out": out,
    }
    storage.write_json(storage.join(out, "audit.json"), summary)
    return summary


def _write_csv(url: str, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    storage.write_bytes(url, text.getvalue().encode())


def _row(pair: Pair) -> dict[str, Any]:
    about = {name: getattr(pair, name) for name in ("parted", "same", "copy", "correlation", "two_labels")}
    sides = (("first", pair.first), ("second", pair.second))
    return about | {f"{side}_{field}": value for side, of in sides for field, value in of._asdict().items()}


def _picture(pairs: Sequence[Pair], urls: dict[str, str]) -> bytes:
    """Pairs one above the other, four side by side, as PNG."""
    wanted: dict[str, set[str]] = {}
    for pair in pairs:
        for side in (pair.first, pair.second):
            wanted.setdefault(side.dataset, set()).add(side.slice_id)
    images = {name: read_images(urls[name], sorted(ids)) for name, ids in wanted.items()}
    across = min(4, len(pairs))
    down = -(-len(pairs) // across)

    def paint(canvas: Canvas) -> None:
        grid = canvas.subplots(2 * down, across, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for at, pair in enumerate(pairs):
            row, column = divmod(at, across)
            alike = "the same picture" if pair.same else f"correlation {pair.correlation:.3f}"
            words = alike + (", two labels" if pair.two_labels else "")
            for below, side in enumerate((pair.first, pair.second)):
                axes = grid[2 * row + below, column]
                axes.imshow(np.asarray(images[side.dataset][side.slice_id][0], np.float32), cmap="gray")
                fold = f", fold {side.fold}" if side.fold else ""
                name = f"{side.dataset}: " if len(urls) > 1 else ""
                title = f"{name}{side.slice_id}{fold}, {side.label or 'no label'}"
                axes.set_title(title, loc="center", size=7, color=MUTED)
            grid[2 * row, column].set_title(
                f"{words}, parted by {pair.parted}\n{grid[2 * row, column].get_title('center')}", loc="center", size=7
            )

    return draw("pairs", "Pairs", "", (2.6 * across, 5.2 * down), paint).png
