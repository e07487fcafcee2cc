"""How tables are written: CSV, Markdown, LaTeX, and one LaTeX macro a number."""

from __future__ import annotations

import csv
import io
import re

from braintum.reporting.results import Results
from braintum.reporting.tables import PER_CLASS, Cell, MeanSD, Table, text


def to_csv(table: Table) -> str:
    """Full precision; a mean and its SD are two columns."""
    split = [any(isinstance(row[j], MeanSD) for row in table.rows) for j in range(len(table.columns))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        name for column, two in zip(table.columns, split, strict=True)
        for name in ((f"{column}_mean", f"{column}_sd") if two else (column,))
    )  # fmt: skip
    for row in table.rows:
        cells: list[Cell] = []
        for cell, two in zip(row, split, strict=True):
            if isinstance(cell, MeanSD):
                cells += [cell.mean, cell.sd]
            else:
                cells += [cell, None] if two else [cell]
        writer.writerow(cells)
    return out.getvalue()


def to_markdown(table: Table) -> str:
    lines = [
        "| " + " | ".join(table.heading(column) for column in table.columns) + " |",
        "|" + "|".join("---" if j == 0 else "---:" for j in range(len(table.columns))) + "|",
    ]
    for i in range(len(table.rows)):
        cells = [table.words(i, j).replace("|", "\\|") for j in range(len(table.columns))]
        lines.append("| " + " | ".join(f"**{c}**" if (i, j) in table.best else c for j, c in enumerate(cells)) + " |")
    return "\n".join(lines) + "\n"


def to_latex(table: Table) -> str:
    """A tabular for booktabs."""
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", r"\toprule"]
    lines += [" & ".join(_latex(table.heading(column)) for column in table.columns) + r" \\", r"\midrule"]
    for i in range(len(table.rows)):
        cells = [_latex(table.words(i, j)) for j in range(len(table.columns))]
        marked = [rf"\textbf{{{cell}}}" if (i, j) in table.best else cell for j, cell in enumerate(cells)]
        lines.append(" & ".join(marked) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def macros(results: Results) -> str:
    r"""One macro a number, such as `\btJointUnetDiceMean`; units are left to the text around them.

    Raises ValueError if two numbers would get one name.
    """
    numbers: dict[str, str] = {}

    def add(value: float | None, column: str, *words: str) -> None:
        if value is None:
            return
        name = "bt" + "".join(_camel(word) for word in words)
        if name in numbers:
            raise ValueError(f"macros.tex: two numbers would be called \\{name}; rename a class or an architecture")
        numbers[name] = text(float(value), column)

    for entry in results.entries:
        summary = entry.summary
        for metric, found in summary["over_folds"].items():
            add(found["mean"], metric, entry.name, metric, "mean")
            add(found["sd"], metric, entry.name, metric, "sd")
        for fold, values in summary["folds"].items():
            for metric, value in values.items():
                add(value, metric, entry.name, "fold", fold, metric)
        for name, values in summary["classes"].items():
            for metric in PER_CLASS:
                add(values[metric], metric, entry.name, "class", name, metric)
    lines = [rf"\newcommand{{\{name}}}{{{value}}}" for name, value in numbers.items()]
    return "\n".join(lines) + "\n"


def _camel(word: str) -> str:
    """`joint_unet` as JointUnet, `hd95` as HdNineFive: a macro's name has letters only."""
    digits = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
    spelled = re.sub(r"\d", lambda match: f" {digits[int(match.group())]} ", word)
    return "".join(part[0].upper() + part[1:] for part in re.findall(r"[A-Za-z]+", spelled))


def _latex(words: str) -> str:
    for plain, escaped in (("\\", r"\textbackslash "), ("&", r"\&"), ("%", r"\%"), ("_", r"\_"), ("#", r"\#"),
                           ("$", r"\$"), ("±", r"$\pm$"), ("–", "--"), ("−", "$-$"), ("<", "$<$")):  # fmt: skip
        words = words.replace(plain, escaped)
    return words
