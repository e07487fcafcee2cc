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
from braintum.data.audit import Audit, Pair, Slice
from braintum.data.table import read_images
from braintum.reporting.canvas import MUTED, draw

PAIR_COLUMNS = (
    "parted", "same", "copy", "correlation", "two_labels",
    *(f"{side}_{field}" for side in ("first", "second") for field in Slice._fields),
)  # fmt: skip
FINDING_COLUMNS = ("kind", "dataset", "slice_id", "detail")
SHOWN = 12
"""Pairs in the picture."""


def write_audit(audit: Audit, out: str, urls: dict[str, str]) -> dict[str, Any]:
    """Writes pairs and findings (.csv and .parquet), pairs.png and audit.json to the folder `out`; returns the last.

    `urls`: where each dataset lies, for the pictures.
    """
    pairs = [_row(pair) for pair in audit.pairs]
    findings = [finding._asdict() for finding in audit.findings]
    for name, rows, columns in (("pairs", pairs, PAIR_COLUMNS), ("findings", findings, FINDING_COLUMNS)):
        storage.write_rows(storage.join(out, f"{name}.parquet"), rows, columns)
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        storage.write_bytes(storage.join(out, f"{name}.csv"), text.getvalue().encode())
    storage.remove(storage.join(out, "pairs.png"))
    if audit.pairs:
        storage.write_bytes(storage.join(out, "pairs.png"), _picture(audit.pairs[:SHOWN], urls))
    summary = {
        "slices": audit.num_slices,
        "pairs": dict(Counter(pair.parted for pair in audit.pairs)),
        "copies": sum(pair.copy for pair in audit.pairs),
        "same_picture": sum(pair.same for pair in audit.pairs),
        "two_labels": sum(pair.two_labels for pair in audit.pairs),
        "findings": dict(Counter(finding.kind for finding in audit.findings)),
        "out": out,
    }
    storage.write_json(storage.join(out, "audit.json"), summary)
    return summary


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
