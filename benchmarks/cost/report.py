"""What an image costs: measured rows joined with prices and published accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from benchmarks.cost.accuracy import Accuracies, Source
from benchmarks.cost.naming import once, series_of_rows
from benchmarks.cost.pareto import Front, front_of
from benchmarks.cost.prices import Price
from benchmarks.cost.pricing import Claim, Machine, claims_of, price_machines
from benchmarks.latency.result import Measured

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, kw_only=True)
class Report:
    """All of it. `flaws` are reasons not to publish it."""

    flaws: list[str]
    files: list[Measured]
    machines: list[Machine]
    claims: list[Claim]
    fronts: list[Front]
    sources: dict[str, Source]


def build(files: Sequence[Measured], prices: Sequence[Price], accuracies: Accuracies) -> Report:
    """Join rows, prices and accuracies. Raises `ConfigError` where they do not fit together."""
    machines = price_machines(files, prices)
    fronts = [front_of(machine, metric, accuracies) for machine in machines for metric in accuracies.metrics]
    return Report(
        flaws=[f"{one.file}: {flaw}" for one in files for flaw in one.flaws],
        files=list(files),
        machines=machines,
        claims=[claim for machine in machines for claim in claims_of(machine, accuracies)],
        fronts=[one for one in fronts if one.standings],
        sources=accuracies.sources,
    )


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain data."""
    data = asdict(report)
    for file in data["files"]:
        del file["rows"]  # they stand in the lines of their machines
    for claim, plain in zip(report.claims, data["claims"], strict=True):
        plain["row"] = claim.row._asdict()
    return {"benchmark": "cost", "schema_version": SCHEMA_VERSION, **data}


def series_of_report(report: Report) -> list[str]:
    """The series of all its machines: one look in all plots of a page."""
    return series_of_rows([[line.row for line in machine.lines] for machine in report.machines])


def used_sources(report: Report) -> list[str]:
    """The sources whose numbers stand in it, in the order in which they are counted."""
    return once(standing.accuracy.source for one in report.fronts for standing in one.standings)


def number_of(source: str, report: Report) -> int:
    """The number by which a source is cited."""
    return used_sources(report).index(source) + 1
