"""A page: facts at the top, sections of words, tables and figures below, all in one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from braintum.reporting.canvas import Figure
from braintum.reporting.tables import Table


@dataclass(frozen=True)
class Section:
    """A part of the page: words, then tables, then figures."""

    id: str
    title: str
    words: list[str]
    tables: list[Table]
    figures: list[Figure]

    @property
    def empty(self) -> bool:
        return not (self.words or self.tables or self.figures)


def render(template: str, *, kind: str, title: str, facts: Mapping[str, str], sections: Sequence[Section],
           **more: Any) -> str:  # fmt: skip
    """A template that extends page.html.j2, as text; `more` is for what that template adds. All text is escaped."""
    environment = Environment(
        loader=PackageLoader("braintum.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render(
        kind=kind,
        title=title,
        facts=facts,
        sections=sections,
        svg=lambda figure: Markup(figure.svg),  # noqa: S704 - drawn here, by matplotlib, which escapes text
        **more,
    )
