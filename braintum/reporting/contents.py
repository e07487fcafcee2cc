"""The contents of a dataset in numbers: as JSON, in a few words, and as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from braintum.data.overview import Label, Overview, Seen
from braintum.reporting.tables import Cell, Table

NO_LABEL = "no label"
UNKNOWN = "not known"


def summarise(overview: Overview) -> dict[str, Any]:
    """The numbers, as JSON. A class's `label` is null for slices without one; `tumour_pixels`: least, median, greatest
    of the slices with tumour; `age_years` so too, of those whose patient's age is known."""
    card, slices = overview.card, overview.slices
    spacing = {
        axis: _limits([mm for mm in (seen.spacing_yx_mm[i] for seen in slices) if not np.isnan(mm)])
        for i, axis in enumerate("yx")
    }
    return {
        "name": card.name,
        **_counts(slices),
        "classes": [
            {
                "label": label,
                **_counts(of_label),
                "folds": _counted(seen.fold for seen in of_label),
                "planes": _counted(seen.plane for seen in of_label),
                "sexes": _counted(seen.sex for seen in of_label),
                "age_years": _limits([seen.age_years for seen in of_label if seen.age_years is not None]),
                "tumour_pixels": _limits([seen.tumour for seen in of_label if seen.tumour]),
            }
            for label in overview.labels
            for of_label in [[seen for seen in slices if seen.label == label]]
        ],
        "pixels": [card.height, card.width],
        "channels": card.channels,
        "dtype": card.dtype,
        "spacing_mm": spacing if all(spacing.values()) else None,
        "licence": card.licence,
        "provenance": card.provenance,
        "options": card.options,
        "rejected": card.num_rejected,
        "merged_groups": len(card.merged_groups),
        "excluded": len(card.excluded),
        "shards": len(card.shards),
        "bytes": sum(shard.bytes for shard in card.shards),
        "digest": card.digest,
    }


def _counts(slices: Sequence[Seen]) -> dict[str, int | None]:
    cases = {seen.case_id for seen in slices}
    return {
        "slices": len(slices),
        "with_mask": sum(seen.tumour is not None for seen in slices),
        "with_tumour": sum(bool(seen.tumour) for seen in slices),
        "cases": None if None in cases else len(cases),
        "groups": len({seen.group for seen in slices}),
    }


def _counted(names: Iterable[str | None]) -> dict[str, int]:
    """How often each name occurs, in alphabetical order; UNKNOWN for None comes last."""
    listed = list(names)
    known = Counter(name for name in listed if name is not None)
    unknown = len(listed) - known.total()
    return dict(sorted(known.items())) | ({UNKNOWN: unknown} if unknown else {})


def _limits(values: Sequence[float]) -> list[float] | None:
    return [float(f(values)) for f in (np.min, np.median, np.max)] if values else None


def facts(summary: Mapping[str, Any]) -> dict[str, str]:
    """What a dataset is in a few words each."""
    cases = "cases not known" if summary["cases"] is None else f"{summary['cases']:,} cases"
    height, width = summary["pixels"]
    found = {
        "slices": f"{summary['slices']:,}, {cases}, {summary['groups']:,} groups",
        "masks": _share(summary["with_mask"], summary["slices"]) + ", with tumour: "
        + _share(summary["with_tumour"], summary["slices"]),
        "images": f"{height}×{width}, {summary['channels']} × {summary['dtype']}",
        "pixel": _spacing(summary["spacing_mm"]),
        "licence": summary["licence"] or UNKNOWN,
        "made from": summary["provenance"],
    }  # fmt: skip
    if summary["options"]:
        found["how"] = ", ".join(f"{name} {value}" for name, value in summary["options"].items() if value is not None)
    if summary["rejected"]:
        found["left out"] = f"{summary['rejected']:,} that could not be read or used, in rejected.csv"
    if summary["excluded"]:
        found["excluded"] = f"{summary['excluded']:,} slices are stored and not used, by the ingest or the audit"
    if summary["merged_groups"]:
        found["kept together"] = f"{summary['merged_groups']:,} groups became part of others, by the audit"
    found["stored"] = f"{summary['shards']:,} shards, {summary['bytes'] / 1e6:,.0f} MB"
    found["digest"] = summary["digest"][:16]
    return found


def _share(part: int, whole: int) -> str:
    return "all" if part == whole else "none" if not part else f"{part:,} ({100 * part / whole:.0f} %)"


def _spacing(spacing_mm: dict[str, list[float]] | None) -> str:
    if spacing_mm is None:
        return "size not known"
    sizes = [f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}" for low, _, high in spacing_mm.values()]
    return f"{sizes[0]} mm" if sizes[0] == sizes[1] else " × ".join(sizes) + " mm"


def tables(summary: Mapping[str, Any]) -> list[Table]:
    """Classes; then classes by the source's own folds, by plane and by sex, where those are known."""
    classes = summary["classes"]
    medians = {"tumour_pixels": "median tumour, px"}
    if any(of["age_years"] for of in classes):
        medians["age_years"] = "median age"
    rows: list[list[Cell]] = [
        [
            named(of["label"]), of["slices"], of["with_mask"], of["with_tumour"], of["cases"], of["groups"],
            *(None if of[name] is None else f"{of[name][1]:,.0f}" for name in medians),
        ]
        for of in classes
    ]  # fmt: skip
    total: list[Cell] = ["all", *(summary[name] for name in ("slices", "with_mask", "with_tumour", "cases", "groups"))]
    columns = ["class", "slices", "with mask", "with tumour", "cases", "groups", *medians.values()]
    found = [Table("classes", "Classes", columns, [*rows, [*total, *(None for _ in medians)]])]
    for key, title in (("folds", "The source's folds"), ("planes", "Planes"), ("sexes", "Sexes")):
        names = list(dict.fromkeys(name for of in classes for name in of[key]))
        names.sort(key=lambda name: (name == UNKNOWN, name))
        if names != [UNKNOWN]:
            by_class = [[of[key].get(name, 0) for name in names] for of in classes]
            lines = [[named(of["label"]), *counts] for of, counts in zip(classes, by_class, strict=True)]
            lines.append(["all", *(sum(column) for column in zip(*by_class, strict=True))])
            found.append(Table(key, title, ["class", *names], lines))
    return found


def named(label: Label) -> str:
    return NO_LABEL if label is None else label
