"""`sovit bench cost`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from benchmarks.cost.accuracy import read_accuracies
from benchmarks.cost.claim_section import claim_blocks
from benchmarks.cost.machine_section import price_of_machine
from benchmarks.cost.markdown import to_markdown
from benchmarks.cost.naming import in_words, model_name, series_of
from benchmarks.cost.page import to_html
from benchmarks.cost.prices import Price, parse_price, read_prices
from benchmarks.cost.pricing import Machine, machines_of
from benchmarks.cost.report import Report, build, series_of_report, to_json
from benchmarks.latency.result import read_all
from benchmarks.words import places
from sovit.commands.result import Result
from sovit.errors import ConfigError
from sovit.jsonio import must_be_writable

_FORMS: Final[dict[str, Callable[[Report], str]]] = {
    ".html": to_html,
    ".md": to_markdown,
    ".json": lambda found: json.dumps(to_json(found), indent=2, ensure_ascii=False) + "\n",
}


def cost(arguments: argparse.Namespace) -> Result:
    """Join measured latency with prices and published accuracy, print it, and write a report where one is asked for."""
    out: Path | None = arguments.out
    if out is not None and out.suffix.lower() not in _FORMS:
        raise ConfigError(f"--out {out} must end in {', '.join(_FORMS)}.")
    must_be_writable(out)
    for path in filter(None, (*arguments.results, arguments.prices)):
        if out is not None and out.exists() and path.exists() and out.samefile(path):
            raise ConfigError(f"--out {out} is one of the files that are read: name another.")
    given = [parse_price(text) for text in arguments.price]
    files = read_all(arguments.results)
    _refuse_useless(given, machines_of(files))
    prices = [*given, *(read_prices(arguments.prices) if arguments.prices else ()), *read_prices()]
    found = build(files, prices, read_accuracies())
    if out is not None:
        out.write_text(_FORMS[out.suffix.lower()](found), encoding="utf-8")
    return Result(to_json(found), _cost_text(found, out))


def _refuse_useless(given: Sequence[Price], machines: dict[str, tuple[str, ...]]) -> None:
    for index, price in enumerate(given):
        if not any(price.is_of(names) for names in machines.values()):
            known = " or ".join(f"'{name}=USD_PER_HOUR'" for name in machines)
            raise ConfigError(f"--price: nothing ran on {price.machine}; what would fit is {known}.")
        if any(price.is_of(other.names) for other in given[:index]):
            raise ConfigError(f"--price gives {price.machine} two prices.")


def _cost_text(found: Report, out: Path | None) -> Group:
    parts: list[Any] = [Text(f"Read with care: {flaw}.", style="bold red") for flaw in found.flaws]
    parts += [Text(block) for block in claim_blocks(found.claims) if isinstance(block, str)][:1]
    series = series_of_report(found)
    for machine in found.machines:
        parts += [_machine_table(machine, series), Text(price_of_machine(machine))]
    if out is not None:
        parts.append(Text(f"{out} has all of it, with intervals, fronts, sources and conditions."))
    return Group(*parts)


def _machine_table(machine: Machine, series: Sequence[str]) -> Table:
    """What fits a terminal: the cost and its interval, or at both ends of the price."""
    titles = ["hours/M"]
    if machine.price is not None:
        low, high = machine.price.usd_per_hour.low, machine.price.usd_per_hour.high
        titles = [f"USD/M at {usd:g}/h" for usd in dict.fromkeys((low, high))]
    table = Table(
        title=f"A million images (M) on {machine.name}", caption="rows whose intervals overlap are not ranked"
    )
    spread = ["interval"] if len(titles) == 1 else []
    for name in ("place", "model", "runtime", "p50 ms", *titles, *spread):
        words = name in ("model", "runtime")
        table.add_column(name, justify="left" if words else "right", min_width=13 if words else None)
    for line in machine.lines:
        row = line.row
        costs = [line.usd_at_low, line.usd_at_high] if machine.price else [line.machine_hours]
        shown = [in_words(cost) for cost in costs[: len(titles)]]
        table.add_row(
            places(line.rank),
            Text(model_name(row, machine), overflow="fold"),
            Text(series_of(row, series), overflow="fold"),
            in_words(row.p50_ms).text,
            *(cell.text for cell in shown),
            *(shown[0].small for _ in spread),
        )
    return table
