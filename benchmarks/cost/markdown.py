"""A report as Markdown, without its plots."""

from __future__ import annotations

import re
from typing import Final

from benchmarks.cost.blocks import PIECES, TITLE, Heading, Notes, Plots, Table
from benchmarks.cost.document import document
from benchmarks.cost.report import Report

# What Markdown would read as more than itself.
_SPECIAL: Final = re.compile(r"([\\`*_\[\]<>])")


def to_markdown(report: Report) -> str:
    """The report without its plots."""
    parts = [f"# {TITLE}", *[f"> **Read with care.** {_plain(flaw)}." for flaw in report.flaws]]
    for block in document(report):
        match block:
            case Heading(text, level):
                parts.append(f"{'#' * level} {_plain(text)}")
            case Plots(_, _, caption, _):
                parts.append(_plain(caption))
            case Notes(notes):
                parts.append("\n".join(f"- {_plain(note)}" for note in notes))
            case Table():
                parts.append(table_of(block))
            case str():
                parts.append(_plain(block))
    return "\n\n".join(filter(None, parts)) + "\n"


def table_of(table: Table) -> str:
    """A table below its caption."""
    lines = [
        [_plain(title) for title, _ in table.columns],
        ["---:" if numeric else "---" for _, numeric in table.columns],
        *([_plain(cell.text + (f" ({cell.small})" if cell.small else "")) for cell in row] for row in table.rows),
    ]
    return "\n".join([_plain(table.caption), "", *(f"| {' | '.join(line)} |" for line in lines)])


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, but for addresses and code."""
    pieces = PIECES.split(" ".join(text.split()))
    shown = [piece if index % 2 else _SPECIAL.sub(r"\\\1", piece) for index, piece in enumerate(pieces)]
    return "".join(shown).replace("|", "\\|")
