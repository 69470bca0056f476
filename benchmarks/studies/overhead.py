"""What the benchmarks add to the times they measure: each of them on work whose time is known.

    python -m benchmarks.studies.overhead --out benchmarks/results/overhead.json

In process a stand-in computes for a known time and notes how long it really did; over HTTP a server waits for a known
time and does the same. What a benchmark says beyond that, at the median, is its own. Goal: under 1 %. Over HTTP the
kernel's sockets and the server's own reading and writing are in it too: what they take is the line of the bare socket,
a blocking one that asks the same server about as seldom as the slowest load does.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.arguments import require_turns, run
from benchmarks.conditions import conditions
from benchmarks.latency.child import measure
from benchmarks.load.loops import Load, Target, closed_loop, open_loop
from benchmarks.scenarios.loadgen import Scenario, run_scenario
from sovit.errors import ServiceError
from sovit.jsonio import must_be_writable, write_json
from sovit.preprocess import Images

IN_PROCESS_SECONDS: Final = 0.01
SERVER_SECONDS: Final = 0.1
_IMAGES: Final[NDArray[np.uint8]] = np.zeros((16, 8, 8, 3), np.uint8)
_REPLY: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-npy\r\ncontent-length: 2\r\n\r\nok"
_REQUEST: Final = b"POST /embed HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 5\r\n\r\nimage"
_CLIENTS: Final = 8
_PATIENCE_SECONDS: Final = 30.0
_RATES: Final = (10.0, 50.0, 200.0)


@dataclass(frozen=True, kw_only=True)
class Added:
    """Medians in milliseconds: what the work took by its own clock, and what the benchmark says it took."""

    benchmark: str
    own_ms: float
    said_ms: float

    @property
    def share(self) -> float:
        """What the benchmark adds, as a share of the work."""
        return self.said_ms / self.own_ms - 1


class Busy:
    """A runtime that computes for a known time, as an engine does: it does not sleep."""

    name = "busy"
    precision = "fp32"

    def __init__(self) -> None:
        self.own_ms: list[float] = []

    def run(self, image_BYXC: Images) -> dict[str, NDArray[np.float32]]:
        """See `Runtime.run`."""
        began = time.perf_counter()
        while time.perf_counter() - began < IN_PROCESS_SECONDS * len(image_BYXC):
            pass
        self.own_ms.append(1e3 * (time.perf_counter() - began))
        return {"pre_logits": np.zeros((len(image_BYXC), 1), np.float32)}

    def close(self) -> None:
        """See `Runtime.close`."""


def in_process(rounds: int) -> list[Added]:
    """`bench latency`, and `bench scenario` image by image."""
    busy = Busy()
    timed = measure(busy, _IMAGES, 1, rounds, 0.0)
    latency = Added(
        benchmark="latency", own_ms=median(busy.own_ms[-rounds:]), said_ms=1e3 * float(np.median(timed.seconds))
    )
    busy = Busy()
    outcome = run_scenario(
        busy, _IMAGES, Scenario(name="single-stream", min_seconds=rounds * IN_PROCESS_SECONDS, min_queries=rounds)
    )
    assert outcome.p50_ms is not None
    return [latency, Added(benchmark="scenario single-stream", own_ms=median(busy.own_ms), said_ms=outcome.p50_ms)]


def over_http(seconds: float) -> list[Added]:
    """`bench load` in closed loop and at several rates, against a server in a process of its own."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
    server.start()
    theirs.close()  # the server has its own end, and with this one open nobody would learn that it died

    def told() -> Any:
        if not ours.poll(_PATIENCE_SECONDS):
            raise ServiceError(f"the server of known times did not answer within {_PATIENCE_SECONDS:g} s.")
        try:
            return ours.recv()
        except EOFError as error:
            raise ServiceError("the server of known times ended before its time.") from error

    def held(name: str, said: Callable[[], float]) -> Added:
        ours.send("forget")
        told()
        said_ms = said()
        ours.send("tell")
        return Added(benchmark=name, own_ms=told(), said_ms=said_ms)

    try:
        port = told()
        target = Target(url=f"http://127.0.0.1:{port}")
        clients = partial(closed_loop, target, [b"image"], concurrency=_CLIENTS, seconds=seconds)
        rates = [(rate, partial(open_loop, target, [b"image"], rate=rate, seconds=seconds)) for rate in _RATES]
        return [
            held("bare socket", partial(_bare_socket_ms, port, 1 / min(_RATES), seconds)),
            held(f"load, {_CLIENTS} clients", partial(_median_ms, clients)),
            *(held(f"load, {rate:g} a second", partial(_median_ms, load)) for rate, load in rates),
        ]
    finally:
        server.kill()
        server.join()


def _median_ms(offered: Callable[[], Load]) -> float:
    load = offered()
    if load.p50_ms is None or load.failures:
        raise ServiceError(f"{load.failures} of {load.offered} requests failed: {load.statuses}.")
    return load.p50_ms


def _bare_socket_ms(port: int, pause_seconds: float, seconds: float) -> float:
    found_ms: list[float] = []
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_SECONDS) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = time.perf_counter() + seconds
        while not found_ms or time.perf_counter() < end:
            time.sleep(pause_seconds)
            began = time.perf_counter()
            connection.sendall(_REQUEST)
            if not connection.recv(len(_REPLY)):
                raise ServiceError("the server of known times closed the connection.")
            found_ms.append(1e3 * (time.perf_counter() - began))
    return median(found_ms)


def _serve(connection: Connection) -> None:
    asyncio.run(_answer(connection))


async def _answer(connection: Connection) -> None:
    own_ms: list[float] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            began = time.perf_counter()
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
            await reader.readexactly(int(fields[b"content-length"]))
            await asyncio.sleep(SERVER_SECONDS)
            own_ms.append(1e3 * (time.perf_counter() - began))
            writer.write(_REPLY)

    async def answer_until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def asked() -> None:
        if connection.recv() == "forget":
            own_ms.clear()
            connection.send(None)
        else:
            connection.send(median(own_ms))

    server = await asyncio.start_server(answer_until_closed, "127.0.0.1", 0)
    asyncio.get_running_loop().add_reader(connection.fileno(), asked)
    connection.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def main(words: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=500, help="runs in process (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load (default: %(default)g)")
    parser.add_argument("--out", type=Path, help="write the result as JSON there")
    arguments = parser.parse_args(words)
    require_turns(arguments.rounds, arguments.seconds)
    must_be_writable(arguments.out)
    before = conditions()
    found = [*in_process(arguments.rounds), *over_http(arguments.seconds)]
    table = Table("benchmark", "work ms", "said ms", "added %")
    for one in found:
        table.add_row(one.benchmark, f"{one.own_ms:.3f}", f"{one.said_ms:.3f}", f"{100 * one.share:.2f}")
    Console().print(table)
    if arguments.out:
        rows = [asdict(one) | {"share": one.share} for one in found]
        write_json(arguments.out, {"benchmark": "overhead", "conditions": before, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
