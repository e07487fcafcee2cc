"""The page of a dataset: its counts as tables, slices to look at, and how bright, how large and where."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from braintum import storage
from braintum.data.overview import BINS, Label, Overview
from braintum.reporting.canvas import COLOURS, INK, MUTED, Figure, draw, panels
from braintum.reporting.contents import UNKNOWN, facts, named, summarise, tables
from braintum.reporting.overlays import TRUE, outline, show_slice
from braintum.reporting.page import Section, render


def write_card_page(overview: Overview, url: str, out: str) -> dict[str, Any]:
    """Writes card.html, its figures (.png) and overview.json to the folder `out`; returns the last."""
    summary = {**summarise(overview), "out": out}
    figures = [figure for figure in (_pictures(overview), _histograms(overview), _places(overview)) if figure]
    sections = [
        Section("counts", "Counts", [], tables(summary), []),
        *(Section(figure.name, figure.title, [], [], [figure]) for figure in figures),
    ]
    page = render("card.html.j2", kind="dataset", title=overview.card.name, facts=facts(summary), sections=sections,
                  url=url)  # fmt: skip
    for figure in figures:
        storage.write_bytes(storage.join(out, f"{figure.name}.png"), figure.png)
    storage.write_json(storage.join(out, "overview.json"), summary)
    storage.write_bytes(storage.join(out, "card.html"), page.encode())
    return summary


def _pictures(overview: Overview) -> Figure:
    labels = overview.labels
    across = max(len(pictures) for pictures in overview.pictures.values())

    def paint(canvas: Canvas) -> None:
        grid = canvas.subplots(len(labels), across, squeeze=False)
        for axes in grid.flat:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        for line, label in zip(grid, labels, strict=True):
            line[0].set_ylabel(named(label), size=9, color=INK)
            for axes, picture in zip(line, overview.pictures[label], strict=False):
                show_slice(axes, np.asarray(picture.image_HW, np.float32))
                if picture.tumour_HW is not None:
                    outline(axes, picture.tumour_HW, TRUE)
                about = [picture.slice.plane, picture.slice.fold and f"fold {picture.slice.fold}"]
                without = "no mask" if picture.tumour_HW is None else None
                words = ", ".join(word for word in (*about, without) if word)
                axes.set_xlabel(words, size=7, color=MUTED, labelpad=2)

    note = (
        "Slices of as many groups as there are, drawn by chance; of each group the slice with the most tumour. Outline:"
    )
    size = (1.45 * across + 0.3, 1.68 * len(labels) + 0.1)
    return replace(draw("slices", "Slices", note, size, paint), legend={"tumour": TRUE})


def _histograms(overview: Overview) -> Figure:
    labels = overview.labels
    colours = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}
    pixel_mm2 = [y * x for y, x in (seen.spacing_yx_mm for seen in overview.slices)]
    in_mm = not np.isnan(pixel_mm2).any()
    sizes: dict[Label, list[float]] = {label: [] for label in labels}
    for seen, mm2 in zip(overview.slices, pixel_mm2, strict=True):
        if seen.tumour:
            sizes[seen.label].append(seen.tumour * (mm2 if in_mm else 1))

    def brightness(axes: Axes) -> None:
        for label in labels:
            counts = overview.brightness[label]
            if counts.sum():
                axes.stairs(100 * counts / counts.sum(), np.linspace(0, 1, BINS + 1), color=colours[label],
                            label=named(label))  # fmt: skip
        axes.set(title="Brightness", xlabel="intensity, each slice from 0 to 1", ylabel="% of pixels", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.legend()

    def size(axes: Axes) -> None:
        known = [value for values in sizes.values() for value in values]
        edges = np.geomspace(min(known), max(max(known), 1.01 * min(known)), 31)
        for label, values in sizes.items():
            if values:
                axes.stairs(np.histogram(values, edges)[0], edges, color=colours[label], label=named(label))
        unit = "mm²" if in_mm else "pixels"
        axes.set(title="Tumour", xlabel=f"area on a slice, {unit}", ylabel="slices", xscale="log")
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.xaxis.set_minor_formatter("")

    def group(axes: Axes) -> None:
        axes.hist(list(Counter(seen.group for seen in overview.slices).values()), bins=30, color=COLOURS[0])
        axes.set(title="Groups", xlabel="slices of a group", ylabel="groups")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator("auto", integer=True))

    painters = [brightness, *([size] if any(sizes.values()) else []), group]

    def paint(canvas: Canvas) -> None:
        for axes, painter in zip(panels(canvas, len(painters)), painters, strict=True):
            painter(axes)

    return draw("histograms", "Histograms", "", (3.5 * len(painters), 2.9), paint)


def _places(overview: Overview) -> Figure | None:
    """Where tumours lie, for each class and plane."""
    if not overview.where:
        return None
    labels = [label for label in overview.labels if any(label == found for found, _ in overview.where)]
    planes = sorted({plane for _, plane in overview.where}, key=lambda plane: (plane is None, plane or ""))

    def paint(canvas: Canvas) -> None:
        grid = canvas.subplots(len(planes), len(labels), squeeze=False)
        for line, plane in zip(grid, planes, strict=True):
            line[0].set_ylabel(plane or ("plane " + UNKNOWN), size=8.5, color=INK)
            for axes, label in zip(line, labels, strict=True):
                count_HW = overview.where.get((label, plane))
                axes.set(xticks=[], yticks=[])
                if count_HW is None:
                    axes.spines[:].set_visible(False)
                    continue
                axes.imshow(count_HW, cmap="magma", vmin=0)
                most = count_HW.max()
                axes.set_xlabel(f"at most {most:,} slice{'s' if most > 1 else ''} in one place", size=7, color=MUTED)
        for axes, label in zip(grid[0], labels, strict=True):
            axes.set_title(named(label), loc="center", size=9)

    size = (2.1 * len(labels) + 0.3, 2.3 * len(planes) + 0.2)
    return draw("places", "Where tumours lie", "How many slices have tumour in each place.", size, paint)
