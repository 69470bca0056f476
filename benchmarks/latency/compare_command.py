"""`sovit bench compare`."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from benchmarks.latency.compare import Comparison
from benchmarks.latency.compare import compare as compare_measured
from benchmarks.latency.result import read_all
from benchmarks.words import number
from sovit.commands.result import Result


def compare(arguments: argparse.Namespace) -> Result:
    """Say what changed from one result file to another, beyond noise."""
    a, b = read_all([arguments.a, arguments.b])
    found = compare_measured(a, b)
    return Result(found.to_json(), _compare_text(found))


def _compare_text(found: Comparison) -> Group:
    parts: list[Any] = []
    for difference in found.void:
        parts.append(
            Text(
                f"VOID as a statement about the code: {difference.what} is {difference.a} in {found.a} and "
                f"{difference.b} in {found.b}.",
                style="bold red",
            )
        )
    parts += [Text(f"Read with care: {caution}.", style="bold yellow") for caution in found.cautions]
    table = Table(title=f"p50 of {found.b} as a multiple of that of {found.a}")
    for name in ("row", "A ms", "B ms", "B / A", "interval", ""):
        table.add_column(name, justify="right" if name in ("A ms", "B ms", "B / A", "interval") else "left")
    styles = {"faster": "green", "slower": "red"}
    for change in found.changes:
        table.add_row(
            Text(str(change.row)),
            number(change.a_ms.value),
            number(change.b_ms.value),
            f"{change.ratio.value:.3f}",
            f"{change.ratio.low:.3f} to {change.ratio.high:.3f}",
            Text(f"{change.verdict}{f' ({change.note})' if change.note else ''}", style=styles.get(change.verdict, "")),
        )
    parts.append(table if found.changes else Text("No row is in both files.", style="bold"))
    for file, keys in ((found.a, found.only_in_a), (found.b, found.only_in_b)):
        parts += [Text(f"only in {file}: {key}") for key in keys]
    parts += [
        Text(f"{difference.what}: {difference.a} in {found.a}, {difference.b} in {found.b}")
        for difference in found.differences
        if not difference.void
    ]
    return Group(*parts)
