"""Runtimes in processes of their own, which take turns: each has its memory to itself, and none is measured alone.

The child is this module too: it loads one graph into one runtime, without torch unless that is the runtime, and times
a run whenever it is told to. What it holds is read from /proc (Linux).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np

from sovit.artifact import open_artifact
from sovit.cores import available_cores
from sovit.errors import ServiceError
from sovit.runtime.base import Runtime
from sovit.runtime.open import open_lanes
from sovit.runtime.profile import Setting

WARMUPS: Final = 3
SETTLE_SECONDS: Final = 0.01  # an engine's idle threads spin for a moment


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What one child loads: an artifact, or with `graph` another file of the same inputs in its place.

    `runtime` "torch" takes the checkpoint folder in `graph`.
    """

    title: str
    runtime: str
    artifact: str
    batch: int = 1
    graph: str | None = None


class Lane:
    """A child process with one loaded graph."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.studies.lanes", json.dumps(asdict(entry))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        self.loaded: dict[str, Any] = self._ask()

    def run(self) -> float:
        """Seconds of one run."""
        return float(self._ask("run")["seconds"])

    def __enter__(self) -> Lane:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not None:
            self._process.terminate()
        self._process.communicate()

    def _ask(self, word: str | None = None) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if word:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries print what they like
                found: dict[str, Any] = json.loads(line)
                return found
        raise ServiceError(f"the process of {self.entry.title} ended with status {self._process.wait()}.")


def race(lanes: Sequence[Lane], rounds: int, advance: Callable[[int], None]) -> list[dict[str, float]]:
    """Let lanes take turns in random order.

    The median time of each, and of its ratio to the first, turn by turn, with quartiles.
    """
    seconds = np.zeros((len(lanes), rounds))
    rng = np.random.default_rng(0)
    for turn in range(rounds):
        for index in rng.permutation(len(lanes)):  # nobody always follows the same one
            time.sleep(SETTLE_SECONDS)
            seconds[index, turn] = lanes[index].run()
            advance(1)
    rows = []
    for index in range(len(lanes)):
        low, middle, high = np.percentile(seconds[0] / seconds[index], (25, 50, 75))
        rows.append(
            {
                "p50_ms": float(np.median(seconds[index]) * 1e3),
                "speedup": float(middle),
                "speedup_p25": float(low),
                "speedup_p75": float(high),
            }
        )
    return rows


def _load(entry: Entry) -> tuple[Runtime, Any]:
    artifact = open_artifact(entry.artifact)
    images, _ = artifact.reference()
    image_BYXC = images[np.arange(entry.batch) % len(images)]
    if entry.runtime == "torch":
        import torch

        from sovit.checkpoint import load_model
        from sovit.runtime.pytorch import TorchRuntime

        torch.set_num_threads(available_cores())
        return TorchRuntime(load_model(str(entry.graph)), artifact.manifest.preprocess), image_BYXC
    if entry.graph is None:
        return open_lanes(artifact, Setting(runtime=entry.runtime))[0], image_BYXC
    manifest = artifact.manifest
    inputs, outputs = manifest.inputs, manifest.outputs[:1]
    threads = available_cores()
    if entry.runtime == "openvino":
        from sovit.runtime.openvino import open_openvino

        found = open_openvino(Path(entry.graph), precision="fp32", inputs=inputs, outputs=outputs, threads=threads)
        return found[0], image_BYXC
    from sovit.runtime.ort import OnnxRuntime

    runtime = OnnxRuntime(Path(entry.graph), precision="fp32", inputs=inputs, outputs=outputs, threads=threads)
    return runtime, image_BYXC


def _memory() -> dict[str, int]:
    """Resident bytes, those of them that are pages of files, and the most there ever were."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}
    return {"resident_bytes": values["VmRSS"], "file_bytes": values["RssFile"], "peak_bytes": values["VmHWM"]}


def _child(entry: Entry) -> None:
    before = _memory()["resident_bytes"]
    began = time.perf_counter()
    runtime, image_BYXC = _load(entry)
    seconds = time.perf_counter() - began
    for _ in range(WARMUPS):
        outputs = runtime.run(image_BYXC)
    finite = all(np.isfinite(values).all() for values in outputs.values())
    print(
        json.dumps({"load_seconds": seconds, "before_bytes": before, "finite": bool(finite), **_memory()}), flush=True
    )
    for _ in sys.stdin:
        began = time.perf_counter()
        runtime.run(image_BYXC)
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    _child(Entry(**json.loads(sys.argv[1])))
