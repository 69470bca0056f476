"""Who serves the same ONNX file fastest, and what an engine reaches without a server: one interleaved run.

    python -m benchmarks.peers Ti/16 --images PHOTOGRAPHS --out benchmarks/results/peers-ti16.json
    python -m benchmarks.peers runs/digits/artifact --images PHOTOGRAPHS -- --lanes 2

A variant is exported with random weights first, in fp32; an artifact is served as it is, and PyTorch stays out. The
smallest variants show what a server costs, larger ones what is left of the difference beside a real model.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from benchmarks.arguments import parse, parser_of, run
from benchmarks.conditions import conditions
from benchmarks.intervals import Estimate, ranks
from benchmarks.latency.exports import artifact_of, checkpoint_of
from benchmarks.load.loops import jpeg_files
from benchmarks.peers.race import BATCHES, CONCURRENCIES, ENGINES, FLOORS, PEERS, Contest, Turn, race
from benchmarks.words import places, with_interval
from sovit.config import parse_image_size
from sovit.errors import ConfigError
from sovit.jsonio import write_json
from sovit.machine import package_version

SCHEMA_VERSION: Final = 1
# The same engine in the same way as the peers have it: one ONNX Runtime thread on each of two cores.
OUR_OPTIONS: Final = ("--runtime", "onnxruntime", "--threads", "1", "--lanes", "2")
_IMAGES: Final = 16  # few enough that every turn goes through all of them many times


def main() -> int:
    """Command line."""
    parser = parser_of(__doc__, seconds=4.0)
    parser.add_argument("--image-size", default="224", help="of a variant, pixels (default: %(default)s)")
    parser.epilog = f"What follows -- is passed to `sovit serve` in place of {' '.join(OUR_OPTIONS)}."
    arguments, given = parse(parser)
    if arguments.images is None:
        raise ConfigError("the peers need photographs: --images FOLDER with JPEG files.")
    found = jpeg_files(arguments.images)
    images = found[:: -(-len(found) // _IMAGES)]
    before: dict[str, Any] = conditions()
    before["peers"] = {name: package_version(name) for name in (*PEERS.values(), "uvloop", "httptools")}
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="sovit-peers-") as scratch:
        artifact, checkpoint = _target(arguments.artifact, arguments.image_size, Path(scratch))
        contest = Contest(
            artifact=artifact,
            checkpoint=checkpoint,
            images=images,
            seconds=arguments.seconds,
            options=given or OUR_OPTIONS,
        )
        turns = race(contest, arguments.rounds, partial(console.print, highlight=False, markup=False))
    if arguments.out:
        write_json(
            arguments.out,
            {
                "benchmark": "peers",
                "schema_version": SCHEMA_VERSION,
                "target": arguments.artifact.name if checkpoint is None else str(arguments.artifact),
                "conditions": before,
                "serve_options": " ".join(contest.options),
                "seconds": arguments.seconds,
                "images": [path.name for path in images],
                "turns": {name: [asdict(turn) for turn in of_name] for name, of_name in turns.items()},
            },
        )
    Console().print(Group(*tables(turns)))
    return 0


def _target(target: Path, image_size: str, scratch: Path) -> tuple[Path, Path | None]:
    if target.is_dir():
        return target, None
    size = parse_image_size(image_size)
    artifact = artifact_of(str(target), size, "fp32", None, scratch / "artifact")
    return artifact.folder, checkpoint_of(str(target), size, scratch / "checkpoint")


def tables(turns: dict[str, list[Turn]]) -> list[Any]:
    """Servers under the most clients and under one, and engines in batches and alone: the fastest first."""
    servers = [name for name in turns if name not in ENGINES and name not in FLOORS]
    engines = [name for name in turns if name in ENGINES]
    parts: list[Any] = []
    for clients in reversed(CONCURRENCIES):
        parts.append(_table(f"Servers, {clients} client{'s' * (clients > 1)}", turns, servers, clients))
    parts.append(_table(f"Empty services, {CONCURRENCIES[-1]} clients", turns, list(FLOORS), CONCURRENCIES[-1]))
    for batch in reversed(BATCHES):
        parts.append(_table(f"In process, batch {batch}", turns, engines, batch))
    parts.append(
        Text(
            "Medians, and what the rounds span; who overlaps shares places. Decoding is in all of them. Beyond are the "
            "CPU-ms of a request beyond decoding and inference."
        )
    )
    return parts


def spread(values: Sequence[float]) -> Estimate:
    """The median of the rounds, and what they span."""
    return Estimate(median(values), min(values), max(values))


def _table(title: str, turns: dict[str, list[Turn]], names: Sequence[str], load: int) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    taken = {name: [turn for turn in turns[name] if turn.load == load] for name in names}
    framework = any(turn.framework_cpu_ms is not None for found in taken.values() for turn in found)
    for name in ("", "server or engine"):
        table.add_column(name, no_wrap=True)
    for name in ("images/s", "rounds", "p50 ms", "p99 ms", "CPU-ms", *["beyond"] * framework, "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    rates = [spread([turn.images_per_second for turn in found]) for found in taken.values()]
    # The most images in a second come first: of their inverses the least.
    ranked = sorted(zip(ranks([rate.inverse(1) for rate in rates]), taken.items(), rates, strict=True), key=_order)
    for rank, (name, found), rate in ranked:
        beyond = [turn.framework_cpu_ms for turn in found if turn.framework_cpu_ms is not None]
        table.add_row(
            places(rank),
            name,
            *with_interval(rate),
            f"{median(turn.p50_ms for turn in found):.1f}",
            f"{median(turn.p99_ms for turn in found):.1f}",
            f"{median(turn.cpu_ms for turn in found):.2f}",
            *([f"{median(beyond):.2f}"] if beyond else []),
            f"{median(turn.memory_mb for turn in found):.0f}",
        )
    return table


def _order(entry: tuple[tuple[int, int], Any, Estimate]) -> tuple[tuple[int, int], float]:
    return entry[0], -entry[2].value


if __name__ == "__main__":
    sys.exit(run(main))
