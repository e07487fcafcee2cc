"""Pictures: slices with the outline of the true and of the predicted mask.

Shapes: C channels, H W pixels, R rows.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from PIL import Image

from braintum.data.schema import CARD, DataError
from braintum.data.shards import read_card
from braintum.data.table import read_images, read_masks
from braintum.evaluation.scores import Scores, by_seed
from braintum.reporting.canvas import INK, MUTED, Figure, draw
from braintum.reporting.results import Entry, Results

TRUE, PREDICTED = "#2fd0b5", "#ffb02e"
QUANTILES = {"worst": 0.0, "10 %": 0.1, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "best": 1.0}


@dataclass(frozen=True)
class Chosen:
    """A slice to show: where it stands among all by its mean Dice over the architectures shown."""

    place: str
    slice_id: str
    label: str | None


def overlays(results: Results) -> tuple[Figure | None, str]:
    """The figure and, where there is none, why: no masks, or a dataset that is not where it was (or another one)."""
    entries = [entry for entry in results.entries if entry.predictions["dice"].null_count < len(entry.predictions)]
    chosen = _choose(entries)
    if not chosen:
        return None, "No slice has both a true and a predicted mask."
    try:
        card = read_card(results.data_url)
        if card.digest != results.data_digest:
            return None, f"{results.data_url} is not the dataset of these results: its digest in {CARD} differs."
        ids = [slice_.slice_id for slice_ in chosen]
        images, masks = read_images(results.data_url, ids), read_masks(results.data_url, ids)
    except (DataError, OSError) as error:
        return None, f"Pictures need the dataset, which could not be read: {error}"
    rows = {entry.name: {row["slice_id"]: row for row in _rows(entry, ids)} for entry in entries}

    def paint(canvas: Canvas) -> None:
        grid = canvas.subplots(1 + len(entries), len(chosen), squeeze=False)
        for j, slice_ in enumerate(chosen):
            image_HW = images[slice_.slice_id][0]
            mask_HW = masks[slice_.slice_id]
            assert mask_HW is not None  # it has a Dice
            show_slice(grid[0, j], image_HW)
            grid[0, j].set_title(f"{slice_.place}\n{slice_.label or 'no label'}", loc="center", size=8.5)
            for axes, entry in zip(grid[1:, j], entries, strict=True):
                row = rows[entry.name][slice_.slice_id]
                show_slice(axes, image_HW)
                outline(axes, mask_HW == 1, TRUE)
                outline(axes, np.asarray(Image.open(io.BytesIO(row["mask_png"]))).astype(bool), PREDICTED)
                axes.set_xlabel(_caption(row), size=7.5, color=MUTED, labelpad=2)
        for axes, name in zip(grid[:, 0], ["image", *(entry.name for entry in entries)], strict=True):
            axes.set_ylabel(name, size=9, color=INK)

    note = (
        "Slices with tumour, each predicted while held out, from the worst to the best by Dice"
        + (" (mean over the rows)" if len(entries) > 1 else "")
        + ("; the first seed's masks" if entries[0].seeds > 1 else "")
        + "; 10 %: a tenth of the slices score less. ✗: a wrong class. Outlines:"
    )
    size = (1.75 * len(chosen) + 0.3, 1.88 * (1 + len(entries)) + 0.3)
    figure = draw("overlays", "Pictures", note, size, paint)
    return replace(figure, legend={"true": TRUE, "predicted": PREDICTED}), ""


def _choose(entries: list[Entry]) -> list[Chosen]:
    """Slices at the quantiles of mean Dice, among those that every architecture scores."""
    if not entries:
        return []
    dice: dict[str, list[float]] = {}
    labels: dict[str, str | None] = {}
    for entry in entries:
        predictions = by_seed(entry.predictions)[0]
        ids = predictions["slice_id"].to_pylist()
        labels |= dict(zip(ids, predictions["label"].to_pylist(), strict=True))
        for name, value in zip(ids, Scores.of(predictions).per_slice()["dice"], strict=True):
            if not np.isnan(value):
                dice.setdefault(name, []).append(float(value))
    shared = sorted((float(np.mean(v)), name) for name, v in dice.items() if len(v) == len(entries))
    if not shared:
        return []
    at = {place: shared[round(quantile * (len(shared) - 1))][1] for place, quantile in QUANTILES.items()}
    once = {name: place for place, name in at.items()}  # few slices: one may stand at several places
    return [Chosen(place, name, labels[name]) for name, place in once.items()]


def _rows(entry: Entry, ids: list[str]) -> list[dict[str, Any]]:
    predictions = by_seed(entry.predictions)[0]
    position = {name: i for i, name in enumerate(predictions["slice_id"].to_pylist())}
    return list(predictions.take([position[name] for name in ids]).to_pylist())


def _caption(row: dict[str, Any]) -> str:
    caption = f"Dice {row['dice']:.2f}"
    if row["predicted"] is not None and row["label"] is not None:
        caption += " · " + (row["predicted"] if row["predicted"] == row["label"] else f"✗ {row['predicted']}")
    return caption


def show_slice(axes: Axes, image_HW: NDArray[Any]) -> None:
    """A slice in grey, without its brightest and darkest few pixels."""
    low, high = np.percentile(image_HW, [0.5, 99.7])
    axes.imshow(image_HW, cmap="gray", vmin=low, vmax=max(high, low + 1), interpolation="antialiased")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def outline(axes: Axes, mask_HW: NDArray[np.bool_], colour: str) -> None:
    """The border of a mask, if it has one."""
    if mask_HW.any() and not mask_HW.all():
        axes.contour(mask_HW.astype(float), levels=[0.5], colors=[colour], linewidths=1.1)
