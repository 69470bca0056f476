"""`sovit bench latency`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.conditions import conditions
from benchmarks.latency import SCHEMA_VERSION, Plan, Row, cases, measure, to_json
from sovit.cli import EXIT_INTERRUPTED, Result
from sovit.config import parse_image_size
from sovit.cores import available_cores
from sovit.errors import ConfigError
from sovit.jsonio import write_json
from sovit.progress import progress

QUICK_ROUNDS: Final = 10


def latency(arguments: argparse.Namespace) -> Result:
    """Measure artifacts and variants."""
    for name in ("rounds", "processes"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name} {getattr(arguments, name)} must be at least 1.")
    if min(arguments.batch) < 1:
        raise ConfigError(f"--batch {min(arguments.batch)} must be at least 1.")
    plan = Plan(
        batches=tuple(dict.fromkeys(arguments.batch)),
        rounds=QUICK_ROUNDS if arguments.quick else arguments.rounds,
        processes=1 if arguments.quick else arguments.processes,
        threads=arguments.threads or available_cores(),
    )
    console = Console(stderr=True)
    before = conditions()
    with tempfile.TemporaryDirectory(prefix="sovit-bench-") as scratch:
        found = cases(
            arguments.targets,
            image_sizes=[parse_image_size(size) for size in arguments.image_size],
            precisions=arguments.precision,
            runtimes=arguments.runtime,
            images=arguments.images,
            scratch=Path(scratch),
            tell=lambda text: console.print(text, highlight=False),
        )
        with progress("measuring", len(found) * plan.processes) as advance:
            rows, complete = measure(found, plan, advance)
    data = {
        "benchmark": "latency",
        "schema_version": SCHEMA_VERSION,
        "quick": arguments.quick,
        "complete": complete,
        "conditions": before,
        "settings": {
            "batch": list(plan.batches),
            "rounds": plan.rounds,
            "processes": plan.processes,
            "threads": plan.threads,
        },
        "rows": to_json(rows),
    }
    if arguments.out:
        write_json(arguments.out, data)
    marks = ["quick run, not to be published"] * arguments.quick + ["interrupted"] * (not complete)
    note = ", ".join(
        [
            *marks,
            f"{plan.threads} threads",
            f"{plan.processes} process{'es' * (plan.processes > 1)}",
            before["processor"],
        ]
    )
    return Result(data, _table(rows, note), 0 if complete else EXIT_INTERRUPTED)


def _table(rows: list[Row], note: str) -> Table:
    table = Table("model", "runtime", "batch", "p50 ms", "95 %", "p99 ms", "images/s", "MB", caption=note)
    table.columns[0].overflow = "fold"
    for column in table.columns[2:]:
        column.justify, column.no_wrap = "right", True
    for row in rows:
        table.add_row(
            escape(row.variant),
            f"{row.runtime} {row.precision}",
            str(row.batch),
            f"{row.p50_ms.value:.2f}",
            f"{row.p50_ms.low:.2f} to {row.p50_ms.high:.2f}",
            f"{row.p99_ms.value:.2f}",
            f"{row.images_per_second.value:,.2f}",
            f"{row.peak_memory_bytes / 1e6:,.0f}",
        )
    return table
