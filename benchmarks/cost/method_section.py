"""Where the numbers come from: sources, prices, method and conditions."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.cost.blocks import Block, Cell, Heading, Notes, Table
from benchmarks.cost.naming import (
    price_in_words,
)
from benchmarks.cost.pricing import IMAGES
from benchmarks.cost.report import Report, used_sources
from benchmarks.latency.result import Measured
from benchmarks.words import plural


def sources_and_method(report: Report) -> list[Block]:
    """Sources of accuracies and prices, and how the numbers were made."""
    used = used_sources(report)
    sources = [
        f"[{index + 1}] {report.sources[name].citation}: {report.sources[name].url}" for index, name in enumerate(used)
    ]
    prices = [f"{machine.name}: {price_in_words(machine.price)}." for machine in report.machines if machine.price]
    blocks: list[Block] = []
    if sources:
        blocks += [Heading("Sources of the accuracies"), Notes(tuple(sources))]
    if prices:
        blocks += [Heading("Prices"), Notes(tuple(prices))]
    return [
        *blocks,
        Heading("Method"),
        Notes(
            (
                f"USD per million images = USD per hour / 3600 / images per second x {IMAGES:,}; machine-hours are the "
                "same without the price. The interval is the measured rate's, 95 % by a bootstrap over processes and "
                "their runs; the price is taken as it is.",
                "The machine is taken to be busy all the time with this one model: an hour in which it waits costs the "
                "same and brings nothing. A processor's price is for all of its cores, however few threads a row used.",
                "Times are the runtime's call alone, on images already decoded and resized; no HTTP.",
                "Rows whose intervals overlap are not ranked. A row's places begin after all rows that are below it "
                "beyond noise, and end before all above it.",
                "A row is on a Pareto front when no other has at least its accuracy at a cost lower beyond noise, or a "
                "higher accuracy at no higher cost. Only accuracies in the same metric are compared.",
                "Accuracies are published ones, of trained weights in full precision. Costs do not depend on what the "
                "weights are, so random ones serve; what quantisation costs in accuracy is not measured here. The "
                "cosine is that of the outputs to those of fp32 PyTorch, on the weights that were measured.",
                "A share of two estimates has the interval of all quotients of their intervals, which is wider than "
                "it need be.",
            )
        ),
    ]


def conditions_table(files: Sequence[Measured]) -> Table:
    """What every file was measured under, side by side."""

    def column(one: Measured) -> list[str]:
        found = one.conditions
        return [
            found.time,
            found.processor,
            str(found.cores),
            found.gpu or "none",
            ", ".join(f"{load:g}" for load in found.load_average),
            f"{plural(one.settings.processes, 'process')} of at least {plural(one.settings.rounds, 'run')} and "
            f"{one.settings.seconds:g} s each, {plural(one.settings.threads, 'thread')}",
            found.sovit,
            found.python,
            ", ".join(f"{name} {version}" for name, version in sorted(found.packages.items())),
            "; ".join(one.cautions) or "none",
        ]

    titles = (
        "measured",
        "processor",
        "cores",
        "GPU",
        "load average before",
        "settings",
        "sovit",
        "Python",
        "packages",
        "reservations",
    )
    columns = [column(one) for one in files]
    return Table(
        "What every row was measured under.",
        (("", False), *((one.file, False) for one in files)),
        [[Cell(title), *(Cell(found[index]) for found in columns)] for index, title in enumerate(titles)],
    )
