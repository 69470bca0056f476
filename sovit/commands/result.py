"""What a command hands back, and how it is laid out for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

EXIT_INTERRUPTED: Final = 130


@dataclass(frozen=True)
class Result:
    """What a command found: `data` for `--json`, `text` (a string or anything rich can print) for people."""

    data: Any
    text: Any
    exit_code: int = 0


def aligned(title: str, rows: Sequence[tuple[str, Any]]) -> str:
    """A title and, below it, names and values in two columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows)])


def cell(value: object, style: str = "") -> Any:
    """A table cell that shows every character as it is, brackets included, and loses none."""
    from rich.text import Text

    # What a terminal would act upon is shown as a question mark.
    shown = "".join(character if character.isprintable() else "?" for character in str(value))
    return Text(shown, style=style, overflow="fold")
