"""What is left of a service when far more is asked of it than it can do.

    sovit export Ti/16 --num-classes 1000 --out runs/bench/ti16
    python -m benchmarks.studies.overload runs/bench/ti16 --images FOLDER --out benchmarks/results/overload.json

Each round first finds the peak, the rate of good answers to 16 clients in a closed loop, and then offers multiples of
it in an open loop. An answer is good when it is a 200 within the time that requests may take. Goodput should stay at
the peak however much is offered, and a refusal should come at once. The generator shares the cores with the service,
which it robs of more the more it sends.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Final

from rich.console import Console
from rich.table import Table

from benchmarks.arguments import images_of, parse, parser_of, run
from benchmarks.conditions import conditions
from benchmarks.load.loops import Load, Target, closed_loop, open_loop
from sovit.jsonio import write_json
from sovit.process import free_port, serving, sovit_serve

MULTIPLES: Final = (0.5, 1.0, 2.0, 5.0, 20.0)
CLIENTS: Final = 16
LIMIT_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Round:
    """The peak, and what came back at each multiple of it."""

    peak: float
    offered: dict[float, Load]


def measure(
    artifact: Path, images: Sequence[bytes], *, rounds: int, seconds: float, options: Sequence[str], console: Console
) -> list[Round]:
    """All rounds on one service."""
    port = free_port()
    target = Target(url=f"http://127.0.0.1:{port}", limit_ms=1000 * LIMIT_SECONDS)
    command = sovit_serve(artifact, port, "--timeout-seconds", str(LIMIT_SECONDS), *options)
    found: list[Round] = []
    with (
        tempfile.TemporaryDirectory(prefix="sovit-bench-") as folder,
        serving(command, target.url, Path(folder) / "log"),
    ):
        closed_loop(target, images, concurrency=CLIENTS, seconds=2.0)
        for number in range(rounds):
            peak = closed_loop(target, images, concurrency=CLIENTS, seconds=seconds).goodput
            offered = {
                multiple: open_loop(target, images, rate=multiple * peak, seconds=seconds, seed=number)
                for multiple in MULTIPLES
            }
            found.append(Round(peak, offered))
            shares = ", ".join(f"{multiple:g}x {load.goodput / peak:.2f}" for multiple, load in offered.items())
            console.print(f"round {number + 1}: peak {peak:.1f}/s, goodput of it: {shares}")
    return found


def _table(rounds: Sequence[Round]) -> Table:
    table = Table("offered", "goodput of peak", "p50 ms", "p99 ms", "refused", "refusal ms", "late or failed")
    for multiple in MULTIPLES:
        loads = [one.offered[multiple] for one in rounds]
        shares = [one.offered[multiple].goodput / one.peak for one in rounds]
        refused = [load.statuses.get("429", 0) / load.offered for load in loads]
        refusals = [load.reject_ms for load in loads if load.reject_ms is not None]
        failed = sum(load.failures - load.statuses.get("429", 0) for load in loads)
        table.add_row(
            f"{multiple:g}x",
            f"{median(shares):.3f} ({min(shares):.3f} to {max(shares):.3f})",
            f"{median(load.p50_ms or 0 for load in loads):.0f}",
            f"{median(load.p99_ms or 0 for load in loads):.0f}",
            f"{median(refused):.1%}",
            f"{median(refusals):.1f}" if refusals else "",
            str(failed),
        )
    return table


def main() -> int:
    """Command line."""
    arguments, options = parse(parser_of(__doc__, seconds=10.0))
    images = images_of(arguments.images)
    before = conditions()
    rounds = measure(
        arguments.artifact,
        images,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        options=options,
        console=Console(stderr=True),
    )
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        result = {"benchmark": "overload", "serve_options": " ".join(options), "conditions": before}
        write_json(arguments.out, result | {"rounds": [asdict(one) for one in rounds]})
    Console().print(_table(rounds))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
