"""CPU time of the service for a request, of this checkout and of another one, in turns.

    git worktree add /tmp/before COMMIT
    python -m benchmarks.studies.request_cpu runs/bench/mu16 --checkout /tmp/before --rounds 9

Take a small artifact: what the model takes is the same on both sides, and hides the rest. Requests come one after
another on one connection; the time is the worker's, user and system, of all its threads.
"""

from __future__ import annotations

import http.client
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import psutil
from rich.console import Console

from benchmarks.arguments import images_of, parse, parser_of, run
from benchmarks.conditions import conditions
from benchmarks.studies.commands import service_worker
from sovit.jsonio import write_json
from sovit.process import free_port, serving, sovit_serve


def cpu_ms(port: int, worker: psutil.Process, image: bytes, requests: int) -> float:
    """Milliseconds of the worker's CPU time for each of so many requests."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    before = worker.cpu_times()
    for _ in range(requests):
        connection.request("POST", "/classify?top_k=3", image, {"content-type": "image/jpeg"})
        connection.getresponse().read()
    after = worker.cpu_times()
    connection.close()
    return 1000 * float(after.user + after.system - before.user - before.system) / requests


def main() -> int:
    """Command line."""
    parser = parser_of(__doc__, seconds=1.0)
    parser.add_argument("--checkout", type=Path, required=True, help="the other checkout")
    parser.add_argument("--requests", type=int, default=1000, help="requests in a turn")
    arguments, options = parse(parser)
    image = images_of(arguments.images)[0]
    taken: dict[str, list[float]] = {"here": [], "there": []}
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="sovit-bench-") as folder:
        services: dict[str, tuple[int, psutil.Process]] = {}
        for name, checkout in (("here", None), ("there", arguments.checkout)):
            port = free_port()
            command = sovit_serve(arguments.artifact, port, *options)
            stack.enter_context(serving(command, f"http://127.0.0.1:{port}", Path(folder) / name, folder=checkout))
            known = [worker.pid for _, worker in services.values()]
            services[name] = port, service_worker(known)
            cpu_ms(*services[name], image, arguments.requests)
        for number in range(arguments.rounds):
            for name in sorted(services, reverse=bool(number % 2)):
                taken[name].append(cpu_ms(*services[name], image, arguments.requests))
    ratios = [here / there for here, there in zip(taken["here"], taken["there"], strict=True)]
    if arguments.out:
        write_json(arguments.out, {"benchmark": "request cpu", "conditions": conditions(), "cpu_ms": taken})
    Console().print(
        f"CPU ms a request: here {median(taken['here']):.3f}, there {median(taken['there']):.3f}; "
        f"ratio {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) in {len(ratios)} rounds"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
