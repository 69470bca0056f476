"""`sovit bench latency`."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.conditions import conditions
from benchmarks.latency import Row, measure, resolve
from sovit.cli import Result
from sovit.config import parse_image_size
from sovit.cores import available_cores
from sovit.errors import ConfigError
from sovit.jsonio import write_json

QUICK_ROUNDS: Final = 10


def latency(arguments: argparse.Namespace) -> Result:
    """Measure artifacts and variants side by side."""
    if min(arguments.batch) < 1:
        raise ConfigError(f"--batch {min(arguments.batch)} must be at least 1.")
    if arguments.rounds < 1:
        raise ConfigError(f"--rounds {arguments.rounds} must be at least 1.")
    image_size = parse_image_size(arguments.image_size or "224")
    rounds = QUICK_ROUNDS if arguments.quick else arguments.rounds
    threads = arguments.threads or available_cores()
    console = Console(stderr=True)
    before = conditions()
    with tempfile.TemporaryDirectory(prefix="sovit-bench-") as scratch:
        artifacts = []
        for target in arguments.targets:
            with console.status(f"loading {escape(target)}"):
                artifacts.append((target, resolve(target, image_size, 0, Path(scratch))))
        rows = measure(
            artifacts, arguments.batch, rounds=rounds, runtime=arguments.runtime, threads=threads, console=console
        )
    data = {
        "benchmark": "latency",
        "quick": arguments.quick,
        "threads": threads,
        "conditions": before,
        "rows": [asdict(row) for row in rows],
    }
    if arguments.out:
        write_json(arguments.out, data)
    note = f"{'quick run, ' if arguments.quick else ''}{threads} threads, {before['processor']}"
    return Result(data, _table(rows, note))


def _table(rows: list[Row], note: str) -> Table:
    table = Table("model", "runtime", "batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "GFLOPs", "time", caption=note)
    table.columns[0].overflow = "fold"
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            escape(row.target),
            f"{row.runtime} {row.precision}",
            str(row.batch),
            f"{row.p50_ms:.2f}",
            f"{row.p90_ms:.2f}",
            f"{row.p99_ms:.2f}",
            f"{row.images_per_second:,.0f}",
            f"{row.gflops_per_image:,.3f}",
            f"{row.ratio:.2f}x",
        )
    return table
