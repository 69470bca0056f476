"""How a report names what it shows: models, series, costs, prices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from benchmarks.cost.blocks import Cell
from benchmarks.cost.pareto import Front
from benchmarks.cost.prices import Price
from benchmarks.cost.pricing import Line, Machine
from benchmarks.intervals import Estimate
from benchmarks.latency.exports import QUANTISED
from benchmarks.latency.result import Row
from benchmarks.words import TO, number, pixels, plural, with_interval

T = TypeVar("T")


def lines_of(machine: Machine, one: Front) -> list[Line]:
    """The lines that stand on a front."""
    return [machine.lines[standing.line] for standing in one.standings]


def model_name(row: Row, machine: Machine) -> str:
    """A row's model, with the image size where rows of several were measured."""
    sizes = {line.row.image_size for line in machine.lines}
    return row.variant if len(sizes) == 1 else f"{row.variant} {pixels(row.image_size)}"


def series_of_rows(rows: Sequence[Sequence[Row]]) -> list[str]:
    """Runtime and precision, and batch and threads where these differ on a machine; `rows` are by machine."""
    batches = any(len({row.batch for row in one}) > 1 for one in rows)
    threads = any(len({row.threads for row in one}) > 1 for one in rows)
    keys = {(row.runtime, row.precision, row.batch * batches, row.threads * threads) for one in rows for row in one}
    return [_series_name(*key) for key in sorted(keys)]


def series_of(row: Row, series: Sequence[str]) -> str:
    """Which of a report's series a row belongs to."""
    names = [
        _series_name(row.runtime, row.precision, batch, threads)
        for batch in (0, row.batch)
        for threads in (0, row.threads)
    ]
    return next(name for name in names if name in series)


def _series_name(runtime: str, precision: str, batch: int, threads: int) -> str:
    """0 for a batch or a number of threads that need not be said."""
    parts = [f"{runtime} {precision}", *[f"batch {batch}"] * bool(batch), *[plural(threads, "thread")] * bool(threads)]
    return ", ".join(parts)


def quantised(row: Row) -> bool:
    """Whether the published accuracy, which is of full-precision weights, may not be all its own."""
    return row.precision in QUANTISED


def cost_of(line: Line) -> Estimate:
    """What plots show: US dollars at the lower end of the price, or machine-hours where there is none."""
    return line.usd_at_low or line.machine_hours


def cost_unit(machine: Machine) -> str:
    """The unit of `cost_of`."""
    if machine.price is None:
        return "machine-hours for a million images"
    return f"USD for a million images at {money(machine.price.usd_per_hour.low)} an hour"


def dearer(machine: Machine) -> str:
    """What a caption adds where the price is a range."""
    if machine.price is None or machine.price.usd_per_hour.low == machine.price.usd_per_hour.high:
        return ""
    high = machine.price.usd_per_hour.high
    return f" At {money(high)} an hour everything costs {number(high / machine.price.usd_per_hour.low)} times as much."


def price_in_words(price: Price) -> str:
    """A price with its terms, source and date."""
    low, high = price.usd_per_hour.low, price.usd_per_hour.high
    amount = money(low) if low == high else f"{money(low)} to {money(high)}"
    terms = f", {price.terms}" if price.terms else ""
    details = ", ".join(part for part in (price.source, price.date, price.url) if part)
    return f"{amount} an hour{terms} ({details})"


def in_words(estimate: Estimate | None) -> Cell:
    """A value with its interval; nothing where there is none."""
    return Cell("") if estimate is None else Cell(*with_interval(estimate))


def spread(estimate: Estimate) -> str:
    """A value and its interval in a sentence."""
    cell = in_words(estimate)
    return f"{cell.text} ({cell.small.replace(TO, ' to ')})"


def sentence(text: str) -> str:
    """A text as a sentence."""
    return f"{text[0].upper()}{text[1:]}."


def money(amount: float) -> str:
    """US dollars."""
    return f"${amount:,.2f}" if round(amount, 2) == amount else f"${amount:g}"


def percent(value: float) -> str:
    """A percentage as it was published."""
    text = f"{value:.2f}"
    return text.removesuffix("0")


def once(items: Iterable[T]) -> list[T]:
    """Every item once, in the order of their first."""
    return list(dict.fromkeys(items))
