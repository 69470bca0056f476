"""The README's headline: what an image costs in each shape, from one result and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from benchmarks.cost.accuracy import Accuracies
from benchmarks.cost.blocks import Cell, Heading, Table
from benchmarks.cost.claim_section import claim_blocks
from benchmarks.cost.markdown import table_of
from benchmarks.cost.naming import in_words, percent
from benchmarks.cost.pricing import AGAINST, claims_of, machine_hours, paired_share, price_machines
from benchmarks.latency.result import Measured, Row
from benchmarks.words import number, pixels, plural
from sovit.config import variant_config
from sovit.cost import cost
from sovit.errors import ConfigError

_METRIC: Final = "probe"


def headline(measured: Measured, accuracies: Accuracies) -> str:
    """The claim in words and by pairings, and one line for each shape.

    Raises `ConfigError` for a result that is not to be published, or whose rows do not stand in one table.
    """
    if measured.flaws:
        raise ConfigError(f"{measured.file} is not to be published: {'; '.join(measured.flaws)}.")
    machines = price_machines([measured], [])
    if len(machines) > 1 or len({(row.image_size, row.batch, row.threads) for row in measured.rows}) > 1:
        raise ConfigError(f"{measured.file} has rows of several machines, image sizes or batches: no single table.")
    claim = [block for block in claim_blocks(claims_of(machines[0], accuracies)) if not isinstance(block, Heading)]
    shown = [table_of(block) if isinstance(block, Table) else str(block) for block in claim]
    return "\n\n".join([*shown, table_of(_table(measured, accuracies)), _below(measured)])


def _table(measured: Measured, accuracies: Accuracies) -> Table:
    precisions = list(dict.fromkeys(row.precision for row in measured.rows))
    best = {precision: {row.variant: row for row in _fastest(measured.rows, precision)} for precision in precisions}
    shapes = sorted({(row.flops_per_image, row.variant, row.image_size) for row in measured.rows})
    rows = []
    for flops, variant, image_size in shapes:
        parameters = cost(variant_config(variant, image_size=image_size)).parameters
        cells = [Cell(variant), Cell(f"{parameters / 1e6:,.0f}"), Cell(number(flops / 1e9))]
        for precision in precisions:
            row, against = best[precision].get(variant), best[precision].get(AGAINST)
            cells += [
                Cell("") if row is None else in_words(row.p50_ms),
                Cell("") if row is None else Cell(f"{number(row.p90_ms.value)}, {number(row.p99_ms.value)}"),
                Cell("") if row is None else Cell(number(machine_hours(row.images_per_second).value)),
                Cell("") if row is None or against is None else Cell(number(_share(row, against))),
            ]
        published = accuracies.of(variant, image_size, _METRIC)
        rows.append([*cells, Cell(percent(published.value) if published else "")])
    columns = [("model", False), ("M parameters", True), ("GFLOPs", True)]
    for precision in precisions:
        columns += [
            (f"{precision}: p50 ms", True),
            ("p90, p99 ms", True),
            ("machine-hours", True),
            (f"of {AGAINST}", True),
        ]
    return Table(_caption(measured), (*columns, ("top-1, %", True)), rows)


def _share(row: Row, against: Row) -> float:
    """As the claim above the table is told, so that one pair has one share."""
    paired = paired_share(row, against)
    return paired.value if paired else against.images_per_second.value / row.images_per_second.value


def _fastest(rows: Sequence[Row], precision: str) -> list[Row]:
    """The row of each model in its fastest runtime."""
    ordered = sorted((row for row in rows if row.precision == precision), key=lambda row: row.images_per_second.value)
    return list({row.variant: row for row in ordered}.values())


def _caption(measured: Measured) -> str:
    rows, settings = measured.rows, measured.settings
    runtimes = " or ".join(sorted({row.runtime for row in rows}))
    counts = [row.runs for row in rows]
    return (
        f"One image at a time at {pixels(rows[0].image_size)} on {plural(measured.conditions.cores, 'core')} of "
        f"{measured.conditions.processor}, {plural(settings.threads, 'thread')}, in the faster of {runtimes}; "
        f"{min(counts):,} to {max(counts):,} runs of each in {plural(settings.processes, 'fresh process')}, in "
        "brackets the 95 % interval. Machine-hours are for a million images, at the mean time. Weights are random, "
        f"which costs the same; of {AGAINST} is the share of what that costs, the median of the passes; top-1 is "
        "published for ImageNet-1k with a linear probe, in full precision. A p99 of fewer than a hundred runs "
        "is little more than the slowest."
    )


def _below(measured: Measured) -> str:
    missing = "".join(f" Not measured, or not in every process: {failed}" for failed in measured.failed)
    restless = "".join(f" Read with care: {caution}." for caution in measured.restless)
    return (
        f"Measured {measured.conditions.time[:10]}: [{measured.file}](benchmarks/results/{measured.file}) has every "
        f"runtime, memory, load times, cosines and conditions.{missing}{restless}"
    )
