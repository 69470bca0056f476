"""What HTTP costs: images/s of the service against the same artifact in process, on the same cores.

    sovit export Ti/16 --num-classes 1000 --out runs/bench/ti16
    python -m benchmarks.studies.http runs/bench/ti16 --out benchmarks/results/http-ti16.json

Both sides get the same JPEG files and end with the same top-5 classes. They take turns within one run; the load
generator shares the cores with the service, as it must on one machine. In process is `Predictor.classify`, at its
better of batch 1 and 8.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.arguments import parse, photographs, run
from benchmarks.conditions import conditions
from benchmarks.load.loops import Target, closed_loop
from sovit.errors import ServiceError
from sovit.jsonio import write_json
from sovit.predict import Predictor, load_artifact
from sovit.process import free_port, serving, sovit_serve

IN_PROCESS_BATCHES: Final = (1, 8)


@dataclass(frozen=True)
class Comparison:
    """Medians over the rounds, in images/s; `ratio` is the median of HTTP over in process, round by round."""

    rounds: int
    seconds_per_round: float
    concurrency: int
    image_bytes: list[int]
    in_process: dict[str, float]
    http: float
    ratio: float
    ratio_min: float
    ratio_max: float
    failures: int


def compare(
    artifact: Path, *, rounds: int, seconds: float, concurrency: int, options: Sequence[str], console: Console
) -> Comparison:
    """Run both sides in turns. Raises `ServiceError` when the service does not start or all requests fail."""
    images = photographs()
    predictor = load_artifact(artifact)
    port = free_port()
    target = Target(url=f"http://127.0.0.1:{port}", path="/classify", accept="application/json")
    in_process: dict[int, list[float]] = {batch: [] for batch in IN_PROCESS_BATCHES}
    over_http: list[float] = []
    failures = 0
    with tempfile.TemporaryDirectory(prefix="sovit-bench-") as scratch:
        log = Path(scratch) / "serve.log"
        with serving(sovit_serve(artifact, port, *options), target.url, log):
            _require_same_answer(predictor, images, port)
            closed_loop(target, images, concurrency=concurrency, seconds=1.0)
            for number in range(rounds):
                for batch in IN_PROCESS_BATCHES:
                    in_process[batch].append(_rate(partial(_classify, predictor, images, batch), seconds))
                load = closed_loop(target, images, concurrency=concurrency, seconds=seconds)
                over_http.append(load.throughput)
                failures += load.failures
                console.print(f"round {number + 1}: in process {_last(in_process)}, HTTP {over_http[-1]:.1f} images/s")
    best = np.max([in_process[batch] for batch in IN_PROCESS_BATCHES], axis=0)
    ratios = np.array(over_http) / best
    return Comparison(
        rounds=rounds,
        seconds_per_round=seconds,
        concurrency=concurrency,
        image_bytes=[len(image) for image in images],
        in_process={f"batch {batch}": float(np.median(rates)) for batch, rates in in_process.items()},
        http=float(np.median(over_http)),
        ratio=float(np.median(ratios)),
        ratio_min=float(ratios.min()),
        ratio_max=float(ratios.max()),
        failures=failures,
    )


def _last(rates: dict[int, list[float]]) -> str:
    return " / ".join(f"{values[-1]:.1f} (batch {batch})" for batch, values in rates.items())


def _classify(predictor: Predictor, images: list[bytes], batch: int) -> int:
    return len(predictor.classify([images[index % len(images)] for index in range(batch)]))


def _rate(work: Callable[[], int], seconds: float) -> float:
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        done += work()
    return done / (time.perf_counter() - began)


def _request(connection: http.client.HTTPConnection, image: bytes) -> tuple[int, bytes]:
    connection.request("POST", "/classify", image, {"content-type": "image/jpeg"})
    response = connection.getresponse()
    return response.status, response.read()


def _require_same_answer(predictor: Predictor, images: list[bytes], port: int) -> None:
    """No parity, no number."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for image in images:
        status, body = _request(connection, image)
        expected = [prediction.index for prediction in predictor.classify([image])[0].predictions]
        if status != http.client.OK:
            raise ServiceError(f"the service answered {status}: {body[:200]!r}")
        if [prediction["index"] for prediction in json.loads(body)["results"][0]["predictions"]] != expected:
            raise ServiceError("the service and the artifact in process disagree on the top-5 classes.")
    connection.close()


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one side's turn")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--out", type=Path, help="write the result as JSON there")
    parser.epilog = "What follows -- is passed to `sovit serve`."
    arguments, serve_options = parse(parser)
    console = Console(stderr=True)
    before: dict[str, Any] = conditions()
    found = compare(
        arguments.artifact,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        concurrency=arguments.concurrency,
        options=serve_options,
        console=console,
    )
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        options = " ".join(serve_options)
        write_json(
            arguments.out, {"benchmark": "http", "serve_options": options, "conditions": before, **asdict(found)}
        )
    table = Table("", "images/s", "of in process")
    for name, rate in found.in_process.items():
        table.add_row(f"in process, {name}", f"{rate:.1f}", "")
    table.add_row(
        f"HTTP, {found.concurrency} clients, {found.failures} failures",
        f"{found.http:.1f}",
        f"{found.ratio:.1%} ({found.ratio_min:.1%} to {found.ratio_max:.1%})",
    )
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
