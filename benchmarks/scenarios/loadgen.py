"""Scenarios as the field knows them, driven by mlcommons-loadgen: single-stream, offline, server.

    sovit bench scenario server runs/demo/artifact --rate 20 --limit-ms 500

Single-stream: one image at a time, the next when the last is done. Offline: all images at once, in batches. Server:
images arrive as a Poisson process, open loop, and what waits is run together. The load generator decides what is issued
when, how long a run has to be, and what its percentiles are. A result of ours is none of any benchmark suite: it has
not been submitted, reviewed or audited.
"""

from __future__ import annotations

import math
import queue
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from sovit.errors import ConfigError, MissingDependency, ServiceError
from sovit.runtime.base import Runtime

ScenarioName = Literal["single-stream", "offline", "server"]

SAMPLES: Final = 1024  # images in the set that queries are drawn from
_SUMMARY: Final = re.compile(r"^(?P<name>[^:\n]+?)\s*: (?P<value>[^\n]+)$", re.MULTILINE)
_MS: Final = 1e-6  # of a ns
_MOST_SEED: Final = 2**63


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """How to ask. `rate` (images/s) and `limit_ms` are for the server; `rate` is a guess for offline."""

    name: ScenarioName
    min_seconds: float = 10.0
    min_queries: int = 64
    rate: float = 0.0
    limit_ms: float = 1000.0
    percentile: float = 99.0
    max_batch: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name in ("server", "offline") and not 0 < self.rate < math.inf:
            raise ConfigError(
                f"the scenario {self.name} needs --rate, in images a second (offline: about what you expect)."
            )
        if not 0 < self.percentile < 100:
            raise ConfigError(f"percentile is {self.percentile}, it must lie between 0 and 100.")
        for field in ("min_seconds", "min_queries", "limit_ms", "max_batch"):
            if not 0 < getattr(self, field) < math.inf:
                raise ConfigError(f"{field} is {getattr(self, field)}, it must be above 0, and finite.")
        if not 0 <= self.seed < _MOST_SEED:
            raise ConfigError(f"seed is {self.seed}, it must lie in 0..{_MOST_SEED - 1}.")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the load generator says of a run. Latencies are in ms.

    `unmet` are the conditions it had set that were not met, such as a run that was too short for its percentile.
    `images_per_second` is the offline throughput, or the rate at which the server completed.
    """

    scenario: ScenarioName
    unmet: tuple[str, ...]
    images: int
    images_per_second: float | None
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    mean_ms: float | None
    batches: int
    summary: dict[str, str]


def run_scenario(runtime: Runtime, images_BYXC: NDArray[np.uint8], scenario: Scenario) -> Outcome:
    """Run one scenario on a loaded runtime. Raises `MissingDependency` and `ServiceError`."""
    lg = loadgen()
    settings = _settings(lg, scenario)
    batch = 1 if scenario.name == "single-stream" else scenario.max_batch
    with (
        tempfile.TemporaryDirectory(prefix="sovit-loadgen-") as folder,
        _system(lg, runtime, images_BYXC, batch, at_once=scenario.name == "single-stream") as sut,
    ):
        output = lg.LogOutputSettings()
        output.outdir = folder
        output.copy_summary_to_stdout = False
        logs = lg.LogSettings()
        logs.log_output = output
        qsl = lg.ConstructQSL(SAMPLES, SAMPLES, lambda _: None, lambda _: None)
        lg.StartTestWithLogSettings(sut.handle, qsl, settings, logs)
        lg.DestroyQSL(qsl)
        text = (Path(folder) / "mlperf_log_summary.txt").read_text(encoding="utf-8")
    if sut.failure is not None:
        raise ServiceError(f"the runtime failed under the load generator: {sut.failure}")
    return read_summary(text, scenario.name, images=sut.images, batches=sut.batches)


def read_summary(text: str, name: ScenarioName, *, images: int, batches: int) -> Outcome:
    """What the load generator wrote, as numbers."""
    found = {match["name"].strip(): match["value"].strip() for match in _SUMMARY.finditer(text)}
    if "Result is" not in found:
        raise ServiceError("the load generator wrote no result.")

    def number(*names: str) -> float | None:
        return next((float(found[one]) for one in names if one in found), None)

    def milliseconds(*names: str) -> float | None:
        value = number(*names)
        return None if value is None else value * _MS

    rate = number("Samples per second", "Completed samples per second", "QPS w/o loadgen overhead")
    return Outcome(
        scenario=name,
        unmet=tuple(key.removesuffix(" satisfied") for key, value in found.items() if value == "NO"),
        images=images,
        images_per_second=rate,
        p50_ms=milliseconds("50.00 percentile latency (ns)"),
        p90_ms=milliseconds("90.00 percentile latency (ns)"),
        p99_ms=milliseconds("99.00 percentile latency (ns)"),
        mean_ms=milliseconds("Mean latency (ns)"),
        batches=batches,
        summary=found,
    )


class _System:
    """What is tested: a thread that runs what waits, up to a batch.

    `at_once` runs an image in the load generator's own thread, which waits for it anyway: no other has to wake first.
    """

    def __init__(
        self, lg: Any, runtime: Runtime, images_BYXC: NDArray[np.uint8], max_batch: int, *, at_once: bool
    ) -> None:
        self.handle: Any = None
        self.batches = self.images = 0
        self.failure: Exception | None = None
        self._lg, self._runtime, self._images, self._max_batch = lg, runtime, images_BYXC, max_batch
        self._at_once = at_once
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="system under test", daemon=True)
        self._thread.start()

    def issue(self, samples: list[Any]) -> None:
        """Called by the load generator."""
        queries = [(sample.id, sample.index) for sample in samples]
        if self._at_once:
            self._answer(queries)
            return
        for query in queries:
            self._queue.put(query)

    def stop(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (batch := self._take()) is not None:
            self._answer(batch)

    def _answer(self, batch: list[tuple[int, int]]) -> None:
        try:
            if self.failure is None:
                self._runtime.run(self._images[[index % len(self._images) for _, index in batch]])
                self.batches += 1
                self.images += len(batch)
        except Exception as error:
            self.failure = error
        # Also after a failure: the load generator waits for every answer.
        self._lg.QuerySamplesComplete([self._lg.QuerySampleResponse(one, 0, 0) for one, _ in batch])

    def _take(self) -> list[tuple[int, int]] | None:
        first = self._queue.get()
        if first is None:
            return None
        batch = [first]
        while len(batch) < self._max_batch and not self._queue.empty():
            after = self._queue.get()
            if after is None:
                self._queue.put(None)
                break
            batch.append(after)
        return batch


@contextmanager
def _system(
    lg: Any, runtime: Runtime, images_BYXC: NDArray[np.uint8], max_batch: int, *, at_once: bool
) -> Iterator[_System]:
    system = _System(lg, runtime, images_BYXC, max_batch, at_once=at_once)
    flush: Callable[[], None] = lambda: None  # noqa: E731 - nothing is held back
    system.handle = lg.ConstructSUT(system.issue, flush)
    try:
        yield system
    finally:
        lg.DestroySUT(system.handle)
        system.stop()


def _settings(lg: Any, scenario: Scenario) -> Any:
    settings = lg.TestSettings()
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = int(1000 * scenario.min_seconds)
    settings.min_query_count = scenario.min_queries
    for field in ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed"):
        setattr(settings, field, scenario.seed + 1)
    if scenario.name == "single-stream":
        settings.scenario = lg.TestScenario.SingleStream
        settings.single_stream_expected_latency_ns = 1_000_000
        settings.single_stream_target_latency_percentile = scenario.percentile / 100
    elif scenario.name == "offline":
        settings.scenario = lg.TestScenario.Offline
        settings.offline_expected_qps = scenario.rate
    else:
        settings.scenario = lg.TestScenario.Server
        settings.server_target_qps = scenario.rate
        settings.server_target_latency_ns = int(1e6 * scenario.limit_ms)
        settings.server_target_latency_percentile = scenario.percentile / 100
    return settings


def loadgen() -> Any:
    """The load generator's module. Raises `MissingDependency`."""
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise MissingDependency("scenarios need the load generator: pip install 'sovit[bench]'.") from error
    return mlperf_loadgen
