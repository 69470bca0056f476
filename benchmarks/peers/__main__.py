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
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from benchmarks.arguments import parse, parser_of, run
from benchmarks.conditions import conditions
from benchmarks.latency.exports import artifact_of, checkpoint_of
from benchmarks.load.loops import jpeg_files
from benchmarks.peers.race import BATCHES, CONCURRENCIES, FLOORS, PEERS, Contest, Taken, race
from benchmarks.peers.result import TITLES, Raced, Standing, rows_of
from benchmarks.process import ended_like_ctrl_c
from benchmarks.words import plural
from sovit.artifact import open_artifact
from sovit.commands.result import EXIT_INTERRUPTED
from sovit.config import parse_image_size
from sovit.cores import available_cores
from sovit.errors import EXIT_FAILED, ConfigError
from sovit.jsonio import write_json
from sovit.machine import package_version

# The same engine in the same way as the peers have it: one ONNX Runtime thread on each core.
OUR_OPTIONS: Final = ("--runtime", "onnxruntime", "--threads", "1", "--lanes", str(available_cores()))
_IMAGES: Final = 16  # few enough that every turn goes through all of them many times


def main() -> int:
    """Command line."""
    parser = parser_of(__doc__, seconds=4.0)
    parser.add_argument("--image-size", default="224", help="of a variant, pixels (default: %(default)s)")
    parser.epilog = f"What follows -- is passed to `sovit serve` in place of {' '.join(OUR_OPTIONS)}."
    arguments, given = parse(parser)
    if arguments.images is None:
        raise ConfigError("the peers need photographs: --images FOLDER with JPEG files.")
    files = jpeg_files(arguments.images)
    images = files[:: -(-len(files) // _IMAGES)]
    before: dict[str, Any] = conditions()
    before["peers"] = {name: package_version(name) for name in (*PEERS.values(), "uvloop", "httptools")}
    console = Console(stderr=True)
    with ended_like_ctrl_c(), tempfile.TemporaryDirectory(prefix="sovit-peers-") as scratch:
        artifact, checkpoint = _target(arguments.artifact, arguments.image_size, Path(scratch))
        contest = Contest(
            artifact=artifact,
            checkpoint=checkpoint,
            images=images,
            seconds=arguments.seconds,
            options=given or OUR_OPTIONS,
        )

        def raced(taken: Taken) -> Raced:
            return Raced(
                target=open_artifact(artifact).manifest.name,
                conditions=before,
                serve_options=" ".join(contest.options),
                seconds=arguments.seconds,
                images=[path.name for path in images],
                **vars(taken),
            )

        def keep(taken: Taken) -> None:
            if arguments.out:
                with suppress(OSError):  # a full disk may have room again at the end
                    write_json(arguments.out, raced(taken).to_json())

        found = raced(race(contest, arguments.rounds, partial(console.print, highlight=False, markup=False), keep))
    if arguments.out:
        write_json(arguments.out, found.to_json())
    Console().print(Group(*tables(found)))
    return EXIT_INTERRUPTED if not found.complete else EXIT_FAILED if found.failed else 0


def _target(target: Path, image_size: str, scratch: Path) -> tuple[Path, Path | None]:
    if target.is_dir():
        return target, None
    size = parse_image_size(image_size)
    artifact = artifact_of(str(target), size, "fp32", None, scratch / "artifact")
    return artifact.folder, checkpoint_of(str(target), size, scratch / "checkpoint")


def tables(raced: Raced) -> list[Any]:
    """Servers under the most clients and under one, empty ones, and engines in batches and alone."""
    parts: list[Any] = [Text(f"{mark[0].upper()}{mark[1:]}.", style="bold red") for mark in raced.cautions]
    for clients in reversed(CONCURRENCIES):
        parts.append(_table(f"Servers, {plural(clients, 'client')}", raced.place_of(raced.servers, clients)))
    most = CONCURRENCIES[-1]
    parts.append(_table(f"Empty services, {plural(most, 'client')}", raced.place_of([*FLOORS], most)))
    for batch in reversed(BATCHES):
        parts.append(_table(f"In process, batch {batch}", raced.place_of(raced.engines, batch)))
    parts.append(
        Text(
            "Medians, and what the rounds span; who overlaps is not ranked. Decoding is in all of them. Beyond are the "
            "CPU-ms of a request beyond decoding and inference."
        )
    )
    return parts


def _table(title: str, standings: Sequence[Standing]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("", min_width=12)
    for name in TITLES:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows_of(standings):
        table.add_row(*row)
    return table


if __name__ == "__main__":
    sys.exit(run(main))
