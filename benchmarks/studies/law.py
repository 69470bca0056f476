"""What the intervals of a shape law take to compute, and what they hold, on simulated tables of a law that is known.

    python -m benchmarks.studies.law --out benchmarks/results/law.json

1,000 bootstrap refits of 150 runs with three points each are timed; goal: under 10 s. Then, for tables of several
designs, in how many of so many draws of the noise the 95 % interval of an exponent s holds the true one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Final, get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.arguments import run
from benchmarks.conditions import conditions
from benchmarks.studies.law_tables import law_of, points_of, scattered, star
from sovit.errors import ConfigError
from sovit.jsonio import must_be_writable, write_json
from sovit.laws.bootstrap import bootstrap
from sovit.laws.fit import fit
from sovit.laws.form import DIMENSIONS
from sovit.laws.solvers.powers import Floats
from sovit.laws.solvers.solve import Method

_RUNS: Final = 150
_REFITS: Final = 1_000
_REPLICATES: Final = 300  # of each table whose intervals are counted
_NOISE: Final = 0.006  # between runs; half as large again within
_STARTS: Final = 16
# Tables as a sweep writes them, and of shapes drawn at random.
_DESIGNS: Final = (
    ("star", star()),
    ("star, three seeds each", np.tile(star(), (3, 1))),
    *(("drawn shapes", scattered(runs)) for runs in (40, 80, _RUNS)),
)


@dataclass(frozen=True, kw_only=True)
class Refits:
    """Seconds of 1,000 refits, each round's."""

    method: Method
    seconds: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """In which share of `tables` the 95 % interval held the true s of width, depth and mlp_dim.

    An interval that no replicate tells holds nothing.
    """

    design: str
    runs: int
    tables: int
    held: tuple[float, ...]


def refits(method: Method, rounds: int) -> Refits:
    """Time them."""
    points = points_of(law_of(), scattered(_RUNS), noise=_NOISE)
    fitted = fit(points, method=method, starts=_STARTS)
    seconds = []
    for number in range(rounds):
        began = time.perf_counter()
        bootstrap(points, fitted, replicates=_REFITS, seed=number)
        seconds.append(time.perf_counter() - began)
    return Refits(method=method, seconds=tuple(seconds))


def coverage(design: str, shapes_RK: Floats, tables: int) -> Coverage:
    """Count how often the truth is held, over draws of the noise."""
    truth = law_of()
    held = [0] * len(DIMENSIONS)
    for seed in range(tables):
        points = points_of(truth, shapes_RK, noise=_NOISE, seed=seed)
        found = bootstrap(points, fit(points, starts=_STARTS), replicates=_REPLICATES, seed=seed)
        for k, name in enumerate(DIMENSIONS):
            interval = found.interval(f"s_{name}")
            if interval.low_95 is not None and interval.high_95 is not None:
                held[k] += bool(interval.low_95 <= truth.exponents[k] <= interval.high_95)
    return Coverage(design=design, runs=len(shapes_RK), tables=tables, held=tuple(count / tables for count in held))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of timing (default: 5)")
    parser.add_argument("--tables", type=int, default=100, help="of each design (default: 100)")
    parser.add_argument("--out", type=Path, help="write the result as JSON there")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.tables) < 1:
        raise ConfigError("--rounds and --tables must be at least 1.")
    must_be_writable(arguments.out)
    before = conditions()
    times = [refits(method, arguments.rounds) for method in get_args(Method)]
    _print_times(times)
    counted = [coverage(design, shapes_RK, arguments.tables) for design, shapes_RK in _DESIGNS]
    _print_coverage(counted)
    if arguments.out:
        found = {"refits": [asdict(one) for one in times], "coverage": [asdict(one) for one in counted]}
        write_json(arguments.out, {"benchmark": "law", "conditions": before, **found})
    return 0


def _print_times(times: Sequence[Refits]) -> None:
    table = Table(f"{_REFITS:,} refits of {_RUNS} runs", "median", "least", "most")
    for one in times:
        table.add_row(
            one.method, *(f"{value:.2f} s" for value in (median(one.seconds), min(one.seconds), max(one.seconds)))
        )
    Console().print(table)


def _print_coverage(counted: Sequence[Coverage]) -> None:
    table = Table("design", "runs", "tables", *(f"95 % of s_{name} hold" for name in DIMENSIONS))
    for one in counted:
        table.add_row(one.design, f"{one.runs}", f"{one.tables}", *(f"{held:.0%}" for held in one.held))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(run(main))
