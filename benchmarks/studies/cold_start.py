"""Cold start: from process start to ready, of our service and of an empty BentoML service, in turns.

    python -m benchmarks.studies.cold_start runs/demo/artifact --out benchmarks/results/cold-start.json

Ready is the first 200 from /readyz, polled every 20 ms. Ours verifies the artifact, loads the model and warms it
before it is ready; from the second start on it finds the compiled graph in this machine's cache. The empty service
mounts its routes in the same way and has no model. Memory is what the worker has resident, once it has answered.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Final

import httpx
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.arguments import photographs, run
from benchmarks.conditions import conditions
from sovit.jsonio import write_json
from sovit.process import free_port, serving, sovit_serve

_EMPTY: Final = "benchmarks.studies.empty_service:EmptyService"


def measure(artifact: Path, rounds: int, console: Console) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds to ready and the worker's resident MB of each start, by service."""
    seconds: dict[str, list[float]] = {"empty BentoML service": [], "sovit serve": []}
    memory: dict[str, list[float]] = {name: [] for name in seconds}
    with tempfile.TemporaryDirectory(prefix="sovit-bench-") as scratch:
        log = Path(scratch) / "serve.log"
        for number in range(rounds):
            for name, found in seconds.items():
                port = free_port()
                empty = ["bentoml", "serve", _EMPTY, "--host", "127.0.0.1", "--port", str(port)]
                command = sovit_serve(artifact, port) if name == "sovit serve" else empty
                url, quiet = f"http://127.0.0.1:{port}", {"BENTOML_DO_NOT_TRACK": "True"}
                with serving(command, url, log, env=quiet) as took:
                    found.append(took)
                    memory[name].append(_worker_mb(url))
            console.print(f"round {number + 1}: " + ", ".join(f"{name} {s[-1]:.2f} s" for name, s in seconds.items()))
    return seconds, memory


def _worker_mb(url: str) -> float:
    """Resident memory of the largest process below this one, after some requests."""
    for image in photographs() * 2:
        httpx.post(f"{url}/embed", content=image, headers={"content-type": "image/jpeg"}, trust_env=False, timeout=60)
    resident: list[int] = [process.memory_info().rss for process in psutil.Process().children(recursive=True)]
    return max(resident) / 1e6


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="write the result as JSON there")
    arguments = parser.parse_args()
    before = conditions()
    seconds, memory = measure(arguments.artifact, arguments.rounds, Console(stderr=True))
    empty, ours = (np.array(values) for values in seconds.values())
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        result = {"benchmark": "cold start", "artifact": arguments.artifact.name, "conditions": before}
        write_json(arguments.out, result | {"seconds": seconds, "worker_mb": memory})
    table = Table("service", "median s", "min", "max", "worker MB")
    for name, values in seconds.items():
        resident = f"{np.median(memory[name]):.0f}"
        table.add_row(name, f"{np.median(values):.2f}", f"{min(values):.2f}", f"{max(values):.2f}", resident)
    table.add_row("difference, start by start", f"{np.median(ours - empty):+.2f}", "", "", "")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
