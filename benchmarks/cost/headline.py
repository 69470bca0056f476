"""The README's headline: what an image costs in each shape, from one result and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from benchmarks.cost.accuracy import Accuracies
from benchmarks.cost.blocks import Cell, Heading, Table
from benchmarks.cost.claim_section import claim_blocks
from benchmarks.cost.markdown import table_of
from benchmarks.cost.naming import in_words, percent
from benchmarks.cost.pricing import AGAINST, claims_of, machine_hours, price_machines
from benchmarks.intervals import ratio
from benchmarks.latency.result import Measured, Row
from benchmarks.words import number, pixels, plural
from sovit.config import variant_config
from sovit.cost import cost
from sovit.errors import ConfigError

_METRIC: Final = "probe"


def headline(measured: Measured, claimed: Measured, accuracies: Accuracies) -> str:
    """The claim in words and by pairings, from `claimed`, and one line for each shape, from `measured`.

    Raises `ConfigError` for results that are not to be published.
    """
    for one in (measured, claimed):
        if one.flaws:
            raise ConfigError(f"{one.file} is not to be published: {'; '.join(one.flaws)}.")
    (machine,) = price_machines([claimed], [])
    claim = [block for block in claim_blocks(claims_of(machine, accuracies)) if not isinstance(block, Heading)]
    shown = [table_of(block) if isinstance(block, Table) else str(block) for block in claim]
    return "\n\n".join([*shown, table_of(_table(measured, accuracies)), _below([measured, claimed])])


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
                Cell("") if row is None or against is None else Cell(number(ratio(row.p50_ms, against.p50_ms).value)),
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


def _fastest(rows: Sequence[Row], precision: str) -> list[Row]:
    """The row of each model in its fastest runtime."""
    ordered = sorted((row for row in rows if row.precision == precision), key=lambda row: -row.p50_ms.value)
    return list({row.variant: row for row in ordered}.values())


def _caption(measured: Measured) -> str:
    rows, settings = measured.rows, measured.settings
    runtimes = " or ".join(sorted({row.runtime for row in rows}))
    counts = [row.runs for row in rows]
    return (
        f"One image at a time at {pixels(rows[0].image_size)} on {plural(measured.conditions.cores, 'core')} of "
        f"{measured.conditions.processor}, {plural(settings.threads, 'thread')}, in the faster of {runtimes}; "
        f"{min(counts):,} to {max(counts):,} runs of each in {plural(settings.processes, 'fresh process')}, in "
        "brackets the 95 % interval. Machine-hours are for a million images. Weights are random, which costs the same; "
        "top-1 is published for ImageNet-1k with a linear probe, in full precision."
    )


def _below(files: Sequence[Measured]) -> str:
    links = " and ".join(f"[{one.file}](benchmarks/results/{one.file})" for one in files)
    missing = "".join(f" Not measured: {failed}" for one in files for failed in one.failed)
    return (
        f"Measured {files[0].conditions.time[:10]}: {links} have every runtime, memory, load times, cosines and "
        f"conditions.{missing}"
    )
