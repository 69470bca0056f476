"""`sovit bench latency`."""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from benchmarks.conditions import conditions
from benchmarks.intervals import ranks
from benchmarks.latency.cases import Asked, cases
from benchmarks.latency.result import Conditions, Failed, Measured, Row, Settings
from benchmarks.latency.run import measure
from benchmarks.process import ended_like_ctrl_c
from benchmarks.words import number, pixels, places, plural, with_interval
from sovit.commands.result import EXIT_INTERRUPTED, Result
from sovit.config import parse_image_size
from sovit.cores import available_cores, require_threads
from sovit.errors import EXIT_FAILED, ConfigError
from sovit.jsonio import from_dict, must_be_writable, write_json
from sovit.progress import progress

QUICK_ROUNDS: Final = 10
_MOST_SECONDS: Final = 3600


def latency(arguments: argparse.Namespace) -> Result:
    """Measure artifacts and variants."""
    settings = _settings(arguments)
    must_be_writable(arguments.out)
    if arguments.keep is not None and arguments.keep.exists() and not arguments.keep.is_dir():
        raise ConfigError(f"--keep {arguments.keep} is no folder.")
    under = from_dict(Conditions, conditions(), "conditions")
    console = Console(stderr=True)

    def result(rows: list[Row], failed: list[Failed], *, complete: bool) -> Measured:
        return Measured(
            quick=arguments.quick,
            complete=complete,
            conditions=under,
            settings=settings,
            rows=tuple(rows),
            failed=(*unexported, *failed),
        )

    def keep(rows: list[Row], failed: list[Failed]) -> None:
        if arguments.out:
            with suppress(OSError):  # a full disk may have room again at the end
                write_json(arguments.out, result(rows, failed, complete=False).to_json())

    with ExitStack() as stack:
        stack.enter_context(ended_like_ctrl_c())
        folder = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sovit-bench-")))
        asked = Asked(
            image_sizes=[parse_image_size(size) for size in dict.fromkeys(arguments.image_size)],
            precisions=list(dict.fromkeys(arguments.precision)),
            images=arguments.images,
            folder=folder,
            runtimes=arguments.runtime,
        )
        targets = list(dict.fromkeys(arguments.targets))
        chosen, unexported = cases(targets, asked, lambda text: console.print(text, highlight=False, markup=False))
        with progress("measuring", len(chosen) * settings.processes) as advance:
            rows, failed, complete = measure(chosen, settings, advance, keep)
    found = result(rows, failed, complete=complete)
    if arguments.out:
        write_json(arguments.out, found.to_json())
    exit_code = EXIT_INTERRUPTED if not complete else EXIT_FAILED if found.failed else 0
    return Result(found.to_json(), _text(found), exit_code)


def _settings(arguments: argparse.Namespace) -> Settings:
    for name in ("rounds", "processes"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name} {getattr(arguments, name)} must be at least 1.")
    if min(arguments.batch) < 1:
        raise ConfigError(f"--batch {min(arguments.batch)} must be at least 1.")
    require_threads(arguments.threads)
    if not 0 <= arguments.seconds <= _MOST_SECONDS:
        raise ConfigError(f"--seconds {arguments.seconds:g} must be 0 to {_MOST_SECONDS:,}.")
    return Settings(
        batch=tuple(sorted(dict.fromkeys(arguments.batch))),
        rounds=QUICK_ROUNDS if arguments.quick else arguments.rounds,
        seconds=0 if arguments.quick else arguments.seconds,
        processes=1 if arguments.quick else arguments.processes,
        threads=arguments.threads or available_cores(),
    )


def _text(found: Measured) -> Group:
    marks = found.cautions
    note = (
        f"{plural(found.settings.threads, 'thread')}, {plural(found.settings.processes, 'process')}, "
        f"{found.conditions.gpu or found.conditions.processor}; rows whose intervals overlap are not ranked"
    )
    groups: dict[tuple[tuple[int, int], int], list[Row]] = {}
    for row in found.rows:
        groups.setdefault((row.image_size, row.batch), []).append(row)
    tables = [table_of(f"{pixels(size)}, batch {batch}", rows) for (size, batch), rows in groups.items()]
    return Group(*[Text(f"{mark[0].upper()}{mark[1:]}.", style="bold red") for mark in marks], *tables, Text(note))


def table_of(title: str, rows: list[Row]) -> Table:
    """The rows of one image size and batch, the fastest first, in two lines each: they fit 80 columns."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("place")
    table.add_column("model", overflow="fold")
    for name in ("p50 ms", "p90 ms", "p99 ms", "images/s", "of\nmatmul", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    ranked = zip(ranks([row.p50_ms for row in rows], [row.processes for row in rows]), rows, strict=True)
    for rank, row in sorted(ranked, key=lambda pair: pair[1].p50_ms.value):
        table.add_row(
            places(rank),
            Text(f"{row.variant}\n{row.runtime} {row.precision}"),
            "\n".join(with_interval(row.p50_ms)),
            number(row.p90_ms.value),
            number(row.p99_ms.value),
            number(row.images_per_second.value),
            f"{row.achieved_flops / row.matmul_flops:.2f}" if row.matmul_flops else "",
            f"{row.peak_memory_bytes / 1e6:,.0f}",
        )
    return table
