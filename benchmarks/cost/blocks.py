"""What a report is made of, whatever form it is written in: headings, tables, plots, notes and paragraphs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what it says, something small below it (an interval), and where it links to."""

    text: str
    small: str = ""
    url: str = ""


@dataclass(frozen=True)
class Table:
    """A table; `columns` are titles, and whether numbers stand below."""

    caption: str
    columns: tuple[tuple[str, bool], ...]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Heading:
    """Level 2 or 3."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Plots:
    """Plots side by side, as SVG, with the names of their series, a caption, and how they are read.

    Markdown has only the caption.
    """

    names: str
    svgs: tuple[str, ...]
    caption: str
    reading: str


@dataclass(frozen=True)
class Notes:
    """A list of sentences."""

    notes: tuple[str, ...]


Block = Heading | Table | Plots | Notes | str

TITLE: Final = "What an image costs"
# In a text: an address, or code between backticks.
PIECES: Final = re.compile(r"(https?://[^\s)]*[^\s).,;:]|`[^`]*`)")
