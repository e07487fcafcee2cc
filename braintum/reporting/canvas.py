"""How figures look, and how one is drawn: as SVG (for the page) and PNG (for papers)."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure as Canvas

from braintum.reporting.results import Results

COLOURS = ("#35618f", "#c0763a", "#4f8a62", "#846a9e", "#a85c66", "#6b7480", "#9a8a3c", "#3f8f95")
INK, MUTED, FAINT = "#1f2933", "#66717d", "#dfe3e8"
FONTS = (
    "Inter", "Helvetica Neue", "Arial", "DejaVu Sans",
    "Noto Sans CJK SC", "Source Han Sans SC", "PingFang SC", "Microsoft YaHei", "WenQuanYi Zen Hei",
)  # fmt: skip
"""In this order, for each character; the last are for names of classes that the first cannot write."""
STYLE: Any = {  # Any: matplotlib's type is a literal of all its settings
    "font.family": [name for name in FONTS if name in font_manager.get_font_names()],
    "font.size": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.labelsize": 9, "axes.edgecolor": "#aeb6bf", "axes.labelcolor": MUTED, "axes.titlecolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
    "grid.color": FAINT, "grid.linewidth": 0.7, "legend.frameon": False, "legend.fontsize": 8.5,
    "lines.linewidth": 1.4, "svg.fonttype": "none", "figure.facecolor": "white",
    "legend.labelcolor": INK, "text.parse_math": False,
}  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """One figure, as text of an <svg> element and as a PNG of 150 dpi. `legend`: colours that its note ends with."""

    name: str
    title: str
    note: str
    svg: str
    png: bytes
    legend: Mapping[str, str] = field(default_factory=dict)


def draw(name: str, title: str, note: str, size: tuple[float, float], paint: Callable[[Canvas], None]) -> Figure:
    """Draws with the report's style; `size` in inches. The same input gives the same bytes."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        canvas = Canvas(figsize=size, layout="constrained")
        paint(canvas)
        svg, png = io.StringIO(), io.BytesIO()
        canvas.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        canvas.set_layout_engine("none")  # laid out once: it costs more than the drawing
        canvas.savefig(png, format="png", dpi=150, metadata={"Software": None})
    text = svg.getvalue()
    return Figure(name, title, note, text[text.index("<svg") :], png.getvalue())


def colour_of(results: Results) -> dict[str, str]:
    """A colour for each architecture, the same in every figure."""
    names = [entry.name for entry in results.entries]
    names += sorted({t.architecture for t in results.study.trials} - set(names)) if results.study else []
    return {name: _lighter(COLOURS[i % len(COLOURS)], i // len(COLOURS)) for i, name in enumerate(names)}


def _lighter(colour: str, steps: int) -> str:
    """The colours of a second round are lighter."""
    share = 0.6**steps
    red, green, blue = (share * value + 1 - share for value in to_rgb(colour))
    return to_hex((red, green, blue))


def wrapped(name: str, width: int) -> str:
    """A setting's path or a class's name in lines of about `width` characters, broken after a `.` or `_`."""
    lines = [""]
    for part in re.findall(r"[^._]*[._]?", name):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def panels(canvas: Canvas, count: int) -> list[Axes]:
    """Axes side by side."""
    return list(canvas.subplots(1, count, squeeze=False)[0])
