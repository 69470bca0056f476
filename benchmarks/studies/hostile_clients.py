"""How long an ordinary client waits beside clients whose heads or images are made to be expensive.

    sovit export Ti/16 --num-classes 10 --out runs/bench/ti16
    python -m benchmarks.studies.hostile_clients runs/bench/ti16 --out benchmarks/results/hostile-clients.json

In each round the ordinary client asks alone and then beside each kind of hostile clients, in another order every time:
16 connections in a process of their own, which send `--megabytes` a second together, or three that send as much in
requests of 64 flat images of 50 megapixels each. `--checkout` serves another checkout of this project, to compare with.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Final

import psutil
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.arguments import images_of, parse, parser_of, run
from benchmarks.conditions import conditions
from benchmarks.studies.commands import service_worker
from sovit.jsonio import write_json
from sovit.process import free_port, serving, sovit_serve

CONNECTIONS: Final = 16
PIXEL_CLIENTS: Final = 3
PAUSE_SECONDS: Final = 0.02  # of the ordinary client
_GET: Final = b"GET /models%b HTTP/1.1\r\nhost: x\r\n%b\r\n"
_KEPT: Final = (b"?" + b"a&" * 60 + b"a=" + b"b" * 7_500, b"accept: " + b"a/b," * 30 + b"c" * 1_500 + b"\r\n")


def _post(head: bytes, body: bytes, content_type: bytes = b"image/jpeg") -> bytes:
    line = b"POST /embed%b HTTP/1.1\r\nhost: x\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n"
    return line % (head, content_type, len(body)) + body


def hostile_requests(image: bytes) -> dict[str, bytes]:
    """What each kind of hostile client sends, again and again."""
    head = b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\ncontent-length: %d\r\n%b\r\n%b"
    return {
        "60 kB of query": _post(b"?" + b"a=b&" * 15_000, image),
        "60 kB of Accept": head % (len(image), b"accept: " + b"a/b;q=0.1," * 6_000 + b"\r\n", image),
        "60 kB of short headers": head % (len(image), b"a:b\r\n" * 12_000, image),
        "a query at the limit": _GET % (_KEPT[0], b""),
        "an Accept at the limit": head % (1, _KEPT[1], b"x"),
        "400 escapes": _GET % (b"?model=" + b"%e9" * 395 + b"b" * 5_000, b""),
        "100 headers": _GET % (b"", b"".join(b"x-%d: %b\r\n" % (number, b"y" * 200) for number in range(98))),
        "an offered upgrade": _GET
        % (b"", b"connection: upgrade\r\nupgrade: h2c\r\n" + b"x: " + b"y" * 4_000 + b"\r\n"),
    }


def flat_images() -> bytes:
    """A form of 64 flat WebP images of 15000 x 3300: 120 kB, three gigapixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (15_000, 3_300)).save(buffer, "WEBP", lossless=True)
    part = b'--x\r\ncontent-disposition: form-data; name="images"; filename="a"\r\n\r\n' + buffer.getvalue() + b"\r\n"
    return _post(b"", part * 64 + b"--x--\r\n", b"multipart/form-data; boundary=x")


def attack(port: int, content: bytes, connections: int, bytes_per_second: float, seconds: float) -> None:
    """Send the request on each connection again and again, beginning anew where the service closes it."""
    until = time.monotonic() + seconds
    interval = connections * len(content) / bytes_per_second

    async def one(number: int) -> None:
        due = time.monotonic() + interval * number / connections
        while time.monotonic() < until:
            writer = None
            with suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                throw_away = asyncio.create_task(_read_all(reader))
                while time.monotonic() < until and not throw_away.done():
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    due = max(due, time.monotonic() - 1) + interval
                    writer.write(content)
                    await writer.drain()
                throw_away.cancel()
            if writer is not None:
                writer.close()

    async def all_of_them() -> None:
        await asyncio.gather(*(one(number) for number in range(connections)))

    asyncio.run(all_of_them())


async def _read_all(reader: asyncio.StreamReader) -> None:
    with suppress(OSError):
        while await reader.read(65_536):
            pass


@dataclass(frozen=True)
class Beside:
    """What the ordinary client met: milliseconds of its good answers, and answers by status; the worker's memory."""

    p50_ms: float
    p99_ms: float
    statuses: dict[str, int]
    peak_rss_bytes: int


def ask(port: int, image: bytes, seconds: float, worker: psutil.Process) -> Beside:
    """One image after another on one connection, with a pause between them."""
    until = time.monotonic() + seconds
    taken: list[float] = []
    statuses: Counter[str] = Counter()
    peak = 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while time.monotonic() < until:
        began = time.perf_counter()
        try:
            connection.request("POST", "/classify", image, {"content-type": "image/jpeg"})
            reply = connection.getresponse()
            reply.read()
            statuses[str(reply.status)] += 1
            if reply.status == http.HTTPStatus.OK:
                taken.append(1000 * (time.perf_counter() - began))
        except OSError as error:
            statuses[type(error).__name__] += 1
            connection.close()
        peak = max(peak, worker.memory_info().rss)
        time.sleep(PAUSE_SECONDS)
    connection.close()
    taken.sort()
    last = taken[int(0.99 * len(taken))] if taken else float("inf")
    return Beside(median(taken) if taken else float("inf"), last, dict(statuses), peak)


def beside(
    port: int, content: bytes | None, image: bytes, seconds: float, megabytes: float, worker: psutil.Process
) -> Beside:
    """Ask for `seconds`, alone or beside hostile clients."""
    if content is None:
        return ask(port, image, seconds, worker)
    connections, rate = PIXEL_CLIENTS if len(content) > 1e5 else CONNECTIONS, 1e6 * megabytes
    context = multiprocessing.get_context("spawn")
    hostile = context.Process(target=attack, args=(port, content, connections, rate, seconds + 1), daemon=True)
    hostile.start()
    time.sleep(1.0)
    try:
        return ask(port, image, seconds, worker)
    finally:
        hostile.join(seconds + 10)
        hostile.kill()
        time.sleep(1.0)


def measure(
    artifact: Path, images: Sequence[bytes], options: Sequence[str], *, rounds: int, seconds: float, megabytes: float,
    checkout: Path | None,
) -> list[dict[str, Beside]]:  # fmt: skip
    """All rounds on one service, the kinds in another order each time."""
    port = free_port()
    kinds: dict[str, bytes | None] = {"alone": None, **hostile_requests(images[0]), "flat images": flat_images()}
    results = []
    with (
        tempfile.TemporaryDirectory(prefix="sovit-bench-") as folder,
        serving(
            sovit_serve(artifact, port, *options), f"http://127.0.0.1:{port}", Path(folder) / "log", folder=checkout
        ),
    ):
        worker = service_worker()
        for number in range(rounds):
            order = [*kinds]
            random.Random(number).shuffle(order)
            results.append({kind: beside(port, kinds[kind], images[0], seconds, megabytes, worker) for kind in order})
    return results


def _table(rounds: Sequence[dict[str, Beside]]) -> Table:
    table = Table("beside", "p50 ms", "of alone", "p99 ms", "good answers", "others", "peak MB")
    for kind in sorted(rounds[0], key=lambda kind: kind != "alone"):
        results = [one[kind] for one in rounds]
        statuses = sum((Counter(result.statuses) for result in results), Counter())
        good = statuses.pop("200", 0)
        table.add_row(
            kind,
            f"{median(result.p50_ms for result in results):.1f}",
            f"{median(one[kind].p50_ms / one['alone'].p50_ms for one in rounds):.2f}",
            f"{median(result.p99_ms for result in results):.1f}",
            str(good),
            json.dumps(statuses) if statuses else "",
            f"{max(result.peak_rss_bytes for result in results) / 1e6:.0f}",
        )
    return table


def main() -> int:
    """Command line."""
    parser = parser_of(__doc__, seconds=5.0)
    parser.add_argument("--megabytes", type=float, default=10.0, help="what hostile heads take a second")
    parser.add_argument("--checkout", type=Path, help="serve this checkout of the project")
    arguments, options = parse(parser)
    before = conditions()
    rounds = measure(
        arguments.artifact.resolve(), images_of(arguments.images), options, rounds=arguments.rounds,
        seconds=arguments.seconds, megabytes=arguments.megabytes, checkout=arguments.checkout,
    )  # fmt: skip
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        result = {"benchmark": "hostile clients", "megabytes_per_second": arguments.megabytes, "conditions": before}
        write_json(
            arguments.out, result | {"rounds": [{kind: asdict(at) for kind, at in one.items()} for one in rounds]}
        )
    Console(width=140).print(_table(rounds))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
