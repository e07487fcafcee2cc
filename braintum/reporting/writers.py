"""How tables are written: CSV, Markdown, LaTeX, and one LaTeX macro a number."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable
from itertools import count

from braintum.evaluation.seeds import spread
from braintum.reporting.results import Results
from braintum.reporting.tables import LABELS, Cell, MeanSD, Table, text


def to_csv(table: Table) -> str:
    """Full precision; a mean and its SD are two columns. A warning is a column of its own."""
    split = [any(isinstance(row[j], MeanSD) for row in table.rows) for j in range(len(table.columns))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header = [
        name for column, two in zip(table.columns, split, strict=True)
        for name in ((f"{column}_mean", f"{column}_sd") if two else (column,))
    ]  # fmt: skip
    writer.writerow([*header, "warning"] if table.warning else header)
    for row in table.rows:
        cells: list[Cell] = []
        for cell, two in zip(row, split, strict=True):
            if isinstance(cell, MeanSD):
                cells += [cell.mean, cell.sd]
            else:
                cells += [cell, None] if two else [cell]
        writer.writerow([*cells, table.warning] if table.warning else cells)
    return out.getvalue()


def to_markdown(table: Table) -> str:
    lines = [
        "| " + " | ".join(_markdown(table.heading(column)) for column in table.columns) + " |",
        "|" + "|".join("---" if j == 0 else "---:" for j in range(len(table.columns))) + "|",
    ]
    for i in range(len(table.rows)):
        cells = [_markdown(table.words(i, j)) for j in range(len(table.columns))]
        lines.append("| " + " | ".join(f"**{c}**" if (i, j) in table.best else c for j, c in enumerate(cells)) + " |")
    return "\n".join([*lines, *(["", table.warning] if table.warning else [])]) + "\n"


def to_latex(table: Table) -> str:
    """A tabular for booktabs."""
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", r"\toprule"]
    lines += [" & ".join(_latex(table.heading(column)) for column in table.columns) + r" \\", r"\midrule"]
    for i in range(len(table.rows)):
        cells = [_latex(table.words(i, j)) for j in range(len(table.columns))]
        marked = [rf"\textbf{{{cell}}}" if (i, j) in table.best else cell for j, cell in enumerate(cells)]
        lines.append(" & ".join(marked) + r" \\")
    if table.warning:
        lines += [r"\midrule", rf"\multicolumn{{{len(table.columns)}}}{{l}}{{{_latex(table.warning)}}} \\"]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def macros(results: Results) -> str:
    r"""One macro a number, such as `\btJointUnetDiceMean`; units are left to the text around them.

    A comment above each fold's and class's macros says whose they are: `_spelled` may have had to number them.
    """
    lines: list[str] = []

    def add(value: float | None, metric: str, *words: str) -> None:
        if value is not None:
            lines.append(rf"\newcommand{{\bt{''.join(words)}}}{{{text(float(value), metric)}}}")

    for entry in results.entries:
        summary, architecture = entry.summary, _camel(entry.name)
        for metric, found in summary["over_folds"].items():
            add(found["mean"], metric, architecture, _camel(metric), "Mean")
            add(found["sd"], metric, architecture, _camel(metric), "Sd")
        if entry.seeds > 1:
            for metric, found in spread(entry.scores)["over_seeds"].items():
                add(found["sd"], metric, architecture, _camel(metric), "SdOverSeeds")
        for kind, groups in (("fold", summary["folds"]), ("class", summary["classes"])):
            for name, word in _spelled(groups).items():
                lines.append(" ".join(f"% {entry.name}, {kind} {name}".split()))
                for metric, value in groups[name].items():
                    if metric in LABELS:
                        add(value, metric, architecture, _camel(kind), word, _camel(metric))
    return "\n".join(lines) + "\n"


def _spelled(names: Iterable[str]) -> dict[str, str]:
    """Each name in ASCII letters, no two alike: with a number behind it (of a name without any, alone) where needed.

    No word ends in Pixel, so that a word and `accuracy` never read as another and `pixel_accuracy`.
    """
    found: dict[str, str] = {}
    for name in names:
        word = _camel(name)
        numbered = (word if n == 1 and word else word + _camel(str(n)) for n in count(1))
        found[name] = next(x for x in numbered if x not in found.values() and not x.endswith("Pixel"))
    return found


def _camel(word: str) -> str:
    """`joint_unet` as JointUnet, `hd95` as HdNineFive, `méningiome` as Meningiome; letters of no use are dropped."""
    digits = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
    plain = unicodedata.normalize("NFKD", word).encode("ascii", "ignore").decode()
    spelled = re.sub(r"\d", lambda match: f" {digits[int(match.group())]} ", plain)
    return "".join(part[0].upper() + part[1:] for part in re.findall(r"[A-Za-z]+", spelled))


_MARKDOWN = re.compile(r"[\\`*|~\[\]]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])")
"""What Markdown would read as markup; a `_` inside of a word and a `<` before a number are none."""


def _markdown(words: str) -> str:
    return _MARKDOWN.sub(r"\\\g<0>", words)


_LATEX = str.maketrans({
    **{character: f"\\{character}" for character in "&%_#${}"}, "\\": r"\textbackslash{}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "−": "$-$", "<": "$<$", ">": "$>$", "|": r"\textbar{}",
    "[": "{[}", "*": "{*}",  # at the start of a row they would belong to the \\ before
})  # fmt: skip


def _latex(words: str) -> str:
    return words.translate(_LATEX)
