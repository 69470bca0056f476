"""What a request costs in each server of the same artifact beyond decoding and inference: CPU time first of all.

    sovit export mu/16 --num-classes 1000 --out runs/bench/mu16
    python -m benchmarks.peers.race runs/bench/mu16 --images FOLDER --out benchmarks/results/framework.json

Servers take turns in every round, in an order that moves on from round to round. Each is started for its turn alone, so
that what it does while it waits costs no other, and must first answer with the embedding that the artifact gives in
process. CPU-ms of a request are user and system time of all processes of the server. In process is preprocessing and
ONNX Runtime with one thread, image by image, measured just before every turn; the difference is the framework's, and
may be below 0 for a server that infers in batches. On shared cores rates move with the neighbours' load, CPU time much
less. The smallest variant keeps the model from hiding the rest. `pip install 'sovit[peers]'` brings the peers.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import httpx
import numpy as np
import psutil
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.conditions import conditions
from benchmarks.load.loops import Target, closed_loop
from benchmarks.studies.arguments import images_of, parse, parser_of
from sovit.errors import ServiceError
from sovit.jsonio import write_json
from sovit.machine import package_version
from sovit.predict import Predictor, load_artifact
from sovit.process import free_port, sovit_serve

CONCURRENCIES: Final = (1, 16)
LEAST_COSINE: Final = 0.9999
OURS: Final = "sovit serve"
FLOORS: Final = {"empty, mounted as ours": "EmptyService", "empty, mounted plainly": "PlainService"}
# Decoding is most of the work beside the smallest model: one lane is enough for it.
OUR_OPTIONS: Final = ("--runtime", "onnxruntime", "--threads", "1", "--lanes", "1")
_PEERS: Final = {"FastAPI": "fastapi", "mosec": "mosec", "LitServe": "litserve"}
_IMAGES: Final = 16  # few enough that every turn goes through all of them many times
_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 15.0

Command = Callable[[int], list[str]]  # the arguments of `python -m` that serve on a port


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One server under one load. CPU times are of one request; `memory_mb` is resident, of all processes."""

    cpu_ms: float
    in_process_cpu_ms: float
    framework_cpu_ms: float
    rate: float
    p50_ms: float
    p99_ms: float
    memory_mb: float
    generator_cpu_ms: float


def commands(artifact: Path, options: Sequence[str]) -> dict[str, Command]:
    """How each server is started."""

    def peer(module: str) -> Command:
        return lambda port: [f"benchmarks.peers.{module}_server", str(artifact.resolve()), "--port", str(port)]

    def floor(service: str) -> Command:
        name = f"benchmarks.studies.empty_service:{service}"
        return lambda port: ["bentoml", "serve", name, "--host", "127.0.0.1", "--port", str(port)]

    ours: dict[str, Command] = {OURS: lambda port: sovit_serve(artifact, port, *options)}
    floors = {name: floor(service) for name, service in FLOORS.items()}
    return ours | floors | {name: peer(module) for name, module in _PEERS.items()}


def compare(
    artifact: Path, images: Sequence[bytes], *, rounds: int, seconds: float, options: Sequence[str], console: Console
) -> dict[str, dict[int, list[Turn]]]:
    """The turns of each server, by concurrency.

    Raises `ServiceError` when a server does not start, answers with another embedding, or fails a request.
    """
    predictor = load_artifact(artifact, runtime="onnxruntime", threads=1)
    expected_D = predictor.embed(images[:1])[0]
    servers = commands(artifact, options)
    turns: dict[str, dict[int, list[Turn]]] = {name: {clients: [] for clients in CONCURRENCIES} for name in servers}
    for number in range(rounds):
        cut = number % len(servers)
        for name in [*servers][cut:] + [*servers][:cut]:
            port = free_port()
            with _started(servers[name](port), f"http://127.0.0.1:{port}/embed", images[0]) as (process, answer):
                if name not in FLOORS:
                    _require_same(name, answer, expected_D)
                for clients in CONCURRENCIES:
                    bare = _in_process(predictor, images, seconds / 2)
                    turns[name][clients].append(_turn(name, process, port, images, clients, seconds, bare))
        found = ", ".join(f"{name} {turns[name][CONCURRENCIES[-1]][-1].cpu_ms:.2f}" for name in servers)
        console.print(f"round {number + 1}: CPU-ms of a request: {found}")
    return turns


def _in_process(predictor: Predictor, images: Sequence[bytes], seconds: float) -> float:
    done, began, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        for image in images:
            predictor.runtime.run([predictor.spec.preprocess(image)])
        done += len(images)
    return 1000 * (time.process_time() - cpu) / done


def _turn(
    name: str, process: psutil.Process, port: int, images: Sequence[bytes], clients: int, seconds: float, bare: float
) -> Turn:
    target = Target(url=f"http://127.0.0.1:{port}")
    closed_loop(target, images, concurrency=clients, seconds=1.0)
    before = _cpu_seconds(process)
    load = closed_loop(target, images, concurrency=clients, seconds=seconds)
    cpu = _cpu_seconds(process) - before
    if load.failures or load.p50_ms is None or load.p99_ms is None:
        raise ServiceError(f"{name} failed {load.failures} of {load.offered} requests: {load.statuses}.")
    cpu_ms = 1000 * cpu / load.completed
    return Turn(
        cpu_ms=cpu_ms,
        in_process_cpu_ms=bare,
        framework_cpu_ms=cpu_ms - bare,
        rate=load.throughput,
        p50_ms=load.p50_ms,
        p99_ms=load.p99_ms,
        memory_mb=sum(member.memory_info().rss for member in _tree(process)) / 1e6,
        generator_cpu_ms=1000 * load.cpu_seconds / load.completed,
    )


@contextmanager
def _started(command: Sequence[str], url: str, image: bytes) -> Iterator[tuple[psutil.Process, bytes]]:
    """Run a server until the block ends; ready is the first 200 to an image, the one route that all of them have."""
    with tempfile.TemporaryFile() as log:
        process = psutil.Popen(
            [sys.executable, "-m", *command],
            cwd=Path(__file__).resolve().parents[2],
            env={**os.environ, "BENTOML_DO_NOT_TRACK": "True"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            answer = None
            deadline = time.monotonic() + _START_SECONDS
            while answer is None:
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise ServiceError(f"{command[0]} did not start: {log.read().decode(errors='replace')[-2000:]}")
                time.sleep(0.1)
                answer = _embed(url, image)
            yield process, answer
        finally:
            with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
                process.terminate()
                process.wait(_STOP_SECONDS)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _embed(url: str, image: bytes) -> bytes | None:
    headers = {"content-type": "image/jpeg", "accept": Target(url=url).accept}
    with suppress(httpx.TransportError):
        response = httpx.post(url, content=image, headers=headers, trust_env=False)
        if response.status_code == httpx.codes.OK:
            return response.content
    return None


def _require_same(name: str, answer: bytes, expected_D: NDArray[np.float32]) -> None:
    """No parity, no number."""
    embedding_1D = np.load(io.BytesIO(answer))
    if embedding_1D.shape != (1, len(expected_D)) or embedding_1D.dtype != np.float32:
        raise ServiceError(f"{name} answered {embedding_1D.dtype} {embedding_1D.shape} in place of one embedding.")
    if (cosine := float(embedding_1D[0] @ expected_D)) < LEAST_COSINE:
        raise ServiceError(f"{name} and the artifact in process disagree: cosine {cosine:.6f}.")


def _tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _cpu_seconds(process: psutil.Process) -> float:
    return sum(sum(member.cpu_times()[:2]) for member in _tree(process))


def _table(turns: dict[str, dict[int, list[Turn]]]) -> Table:
    table = Table("", "clients", "CPU-ms", "of framework", "requests/s", "p50 ms", "p99 ms", "MB", "generator CPU-ms")
    every = [turn.in_process_cpu_ms for by_clients in turns.values() for found in by_clients.values() for turn in found]
    table.add_row("in process, no server", "", _spread(every))
    for name, by_clients in turns.items():
        for clients, found in by_clients.items():
            table.add_row(
                name,
                str(clients),
                _spread([turn.cpu_ms for turn in found]),
                "" if name in FLOORS else _spread([turn.framework_cpu_ms for turn in found]),
                _spread([turn.rate for turn in found], 0),
                f"{median(turn.p50_ms for turn in found):.1f}",
                f"{median(turn.p99_ms for turn in found):.1f}",
                f"{median(turn.memory_mb for turn in found):.0f}",
                f"{median(turn.generator_cpu_ms for turn in found):.2f}",
            )
    return table


def _spread(values: Sequence[float], digits: int = 2) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> int:
    """Command line."""
    parser = parser_of(__doc__, seconds=5.0)
    parser.epilog = f"What follows -- is passed to `sovit serve` in place of {' '.join(OUR_OPTIONS)}."
    arguments, given = parse(parser)
    options = given or [*OUR_OPTIONS]
    found = images_of(arguments.images)
    images = found[:: -(-len(found) // _IMAGES)]
    before: dict[str, Any] = conditions()
    before["peers"] = {name: package_version(name) for name in (*_PEERS.values(), "uvloop", "httptools")}
    turns = compare(
        arguments.artifact,
        images,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        options=options,
        console=Console(stderr=True),
    )
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            arguments.out,
            {
                "benchmark": "framework",
                "conditions": before,
                "serve_options": " ".join(options),
                "seconds": arguments.seconds,
                "image_bytes": [len(image) for image in images],
                "turns": {
                    name: {str(clients): [*map(asdict, rows)] for clients, rows in by_clients.items()}
                    for name, by_clients in turns.items()
                },
            },
        )
    Console().print(_table(turns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
