"""Servers of one artifact and engines in process take turns at the same photographs.

In every round each has one turn, in an order that moves on from round to round. Each is started for its turn alone, so
that what it does while it waits costs no other, and must first give the embedding that ONNX Runtime gives in process:
no parity, no number. CPU-ms of a request are user and system time of all processes of a server. Just before each turn
of a server, preprocessing and ONNX Runtime with one thread, image by image, are measured; the difference is the
framework's, and may be below 0 for a server that infers in batches. On shared cores rates move with the neighbours'
load, CPU time much less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.load.loops import Target, closed_loop
from benchmarks.peers.in_process import Job
from benchmarks.peers.server import cpu_seconds, require_near, require_same, started, tree
from benchmarks.process import run_child
from sovit.cores import available_cores
from sovit.errors import ConfigError, ServiceError
from sovit.predict import Predictor, load_artifact
from sovit.process import free_port

CONCURRENCIES: Final = (1, 16)
BATCHES: Final = (1, 8)
OURS: Final = "sovit serve"
PEERS: Final = {"FastAPI": "fastapi", "mosec": "mosec", "LitServe": "litserve"}
FLOORS: Final = {"empty, mounted as ours": "EmptyService", "empty, mounted plainly": "PlainService"}
ENGINES: Final = {
    "ONNX Runtime": "onnxruntime",
    "OpenVINO": "openvino",
    "PyTorch, eager": "torch",
    "torch.compile": "torch-compile",
}

Command = Callable[[int], list[str]]  # the arguments of `python -m` that serve on a port


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What all of them work on. Without a `checkpoint` PyTorch stays out."""

    artifact: Path
    checkpoint: Path | None
    images: Sequence[Path]
    seconds: float
    options: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One server under one load, or one engine at one batch size. Times are of a request, or of a batch.

    `load` is the number of clients with a request under way, or of images in a batch; `memory_mb` is resident, of all
    processes. In process nothing is a framework's and no generator runs.
    """

    load: int
    images_per_second: float
    cpu_ms: float
    p50_ms: float
    p99_ms: float
    memory_mb: float
    in_process_cpu_ms: float | None = None
    generator_cpu_ms: float | None = None

    @property
    def framework_cpu_ms(self) -> float | None:
        """What a request costs beyond decoding and inference."""
        return None if self.in_process_cpu_ms is None else self.cpu_ms - self.in_process_cpu_ms


def contestants(contest: Contest) -> list[str]:
    """The names of all of them: servers, then engines."""
    engines = [name for name, runtime in ENGINES.items() if contest.checkpoint or not runtime.startswith("torch")]
    return [OURS, *PEERS, *FLOORS, *engines]


@dataclass
class Taken:
    """The turns of each so far, why some had to leave, and whether all rounds were held."""

    turns: dict[str, list[Turn]]
    failed: dict[str, str]
    complete: bool = False


def race(
    contest: Contest, rounds: int, tell: Callable[[str], None], keep: Callable[[Taken], object] = lambda taken: None
) -> Taken:
    """The turns of each, handed to `keep` after every round; Ctrl-C ends with what there is.

    One that does not start, gives another embedding or fails a request leaves, and the others go on.
    """
    predictor = load_artifact(contest.artifact, runtime="onnxruntime", threads=1)
    expected_D = predictor.embed(contest.images[:1])[0]
    names = contestants(contest)
    taken = Taken({name: [] for name in names}, {})
    try:
        for number in range(rounds):
            cut = number % len(names)
            for name in (one for one in names[cut:] + names[:cut] if one not in taken.failed):
                try:
                    found = (
                        _engine_turns(name, contest, expected_D)
                        if name in ENGINES
                        else _server_turns(name, contest, predictor, expected_D)
                    )
                except (ConfigError, ServiceError) as error:
                    taken.failed[name] = str(error)
                    tell(f"round {number + 1}, {name} leaves: {error}")
                    continue
                taken.turns[name] += found
                tell(f"round {number + 1}, {name}: {found[-1].images_per_second:,.1f} images/s")
            keep(taken)
        taken.complete = True
    except KeyboardInterrupt:
        tell("interrupted: the turns that were held are kept")
    return taken


def command_of(name: str, contest: Contest) -> Command:
    """How a server is started."""
    artifact = contest.artifact.resolve()
    if name == OURS:
        # By a name of its own: a variant's is none that a URL could hold.
        return lambda port: ["sovit", "serve", f"model={artifact}", "--port", str(port), *contest.options]
    if name in FLOORS:
        service = f"benchmarks.studies.empty_service:{FLOORS[name]}"
        return lambda port: ["bentoml", "serve", service, "--host", "127.0.0.1", "--port", str(port)]
    return lambda port: [f"benchmarks.peers.{PEERS[name]}_server", str(artifact), "--port", str(port)]


def _server_turns(name: str, contest: Contest, predictor: Predictor, expected_D: NDArray[np.float32]) -> list[Turn]:
    images = [path.read_bytes() for path in contest.images]
    port = free_port()
    found = []
    with started(command_of(name, contest)(port), f"http://127.0.0.1:{port}/embed", images[0]) as (process, answer):
        if name not in FLOORS:
            require_same(name, answer, expected_D)
        for clients in CONCURRENCIES:
            bare = None if name in FLOORS else _bare_cpu_ms(predictor, images, contest.seconds / 2)
            found.append(_turn(name, process, port, images, clients, contest.seconds, bare))
    return found


def _bare_cpu_ms(predictor: Predictor, images: Sequence[bytes], seconds: float) -> float:
    done, began, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        for image in images:
            predictor.runtime.run([predictor.spec.preprocess(image)])
        done += len(images)
    return 1000 * (time.process_time() - cpu) / done


def _turn(
    name: str,
    process: psutil.Process,
    port: int,
    images: Sequence[bytes],
    clients: int,
    seconds: float,
    bare: float | None,
) -> Turn:
    target = Target(url=f"http://127.0.0.1:{port}")
    closed_loop(target, images, concurrency=clients, seconds=1.0)
    before = cpu_seconds(process)
    load = closed_loop(target, images, concurrency=clients, seconds=seconds)
    cpu = cpu_seconds(process) - before
    if load.failures or load.p50_ms is None or load.p99_ms is None:
        raise ServiceError(f"{name} failed {load.failures} of {load.offered} requests: {load.statuses}.")
    return Turn(
        load=clients,
        images_per_second=load.throughput,
        cpu_ms=1000 * cpu / load.completed,
        p50_ms=load.p50_ms,
        p99_ms=load.p99_ms,
        memory_mb=sum(member.memory_info().rss for member in tree(process)) / 1e6,
        in_process_cpu_ms=bare,
        generator_cpu_ms=1000 * load.cpu_seconds / load.completed,
    )


def _engine_turns(name: str, contest: Contest, expected_D: NDArray[np.float32]) -> list[Turn]:
    job = Job(
        artifact=str(contest.artifact.resolve()),
        runtime=ENGINES[name],
        threads=available_cores(),
        batches=BATCHES,
        seconds=contest.seconds,
        images=[str(path.resolve()) for path in contest.images],
        checkpoint="" if contest.checkpoint is None else str(contest.checkpoint.resolve()),
    )
    found = run_child("benchmarks.peers.in_process", job)
    require_near(name, np.array(found["embedding"], np.float32), expected_D)
    return [
        Turn(
            load=one["batch"],
            images_per_second=one["images_per_second"],
            cpu_ms=one["cpu_ms"],
            p50_ms=one["p50_ms"],
            p99_ms=one["p99_ms"],
            memory_mb=found["memory_bytes"] / 1e6,
        )
        for one in found["batches"]
    ]
