"""The result file of `sovit bench latency`: what its rows hold, written as it is and read back strictly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

from pydantic import ConfigDict

from benchmarks.intervals import LEAST_REPEATS, Estimate
from benchmarks.opening import is_on_gpu
from benchmarks.words import pixels, plural
from sovit.errors import ConfigError
from sovit.jsonio import from_dict, read_json, to_dict

BENCHMARK: Final = "latency"
SCHEMA_VERSION: Final = 3
# A machine with work for more of its cores than this, when a run begins, is named.
_BUSY: Final = 0.5
# A result may hold more than is read here; the schema version says that what is read means the same.
_READ: Final = ConfigDict(extra="ignore", allow_inf_nan=False)


class Key(NamedTuple):
    """What makes two rows the same row."""

    variant: str
    image_size: tuple[int, int]
    runtime: str
    precision: str
    batch: int
    threads: int

    def __str__(self) -> str:
        """In words."""
        return (
            f"{self.variant} at {pixels(self.image_size)} in {self.runtime} {self.precision}, batch {self.batch}, "
            f"{plural(self.threads, 'thread')}"
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model in one runtime at one batch size.

    Times are in milliseconds for a whole batch, and of the runtime's call alone. None is what is undefined or cannot be
    read here. `runs` are the timed ones of all `processes`; `warmed` says that in each of them the medians of the last
    warm-up runs agreed, `first_ms` how long the first took. `load_seconds` is the time until the first can begin, with
    what the engine compiles then, `compile_seconds` what the first takes beyond a later one where it compiles.
    `images_per_second` is at the mean time, one batch after another. `matmul_flops` is the rate of a matrix product in
    the same processes, float32 on the CPU and on a GPU of the precision, bfloat16 for quantised ones; `cosine` the
    worst of a few embeddings against fp32 PyTorch's; `device_memory_bytes` what the process had of the GPU's memory at
    its end.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _READ

    variant: str
    image_size: tuple[int, int]
    runtime: str
    precision: str
    batch: int
    threads: int
    weights: str
    processes: int
    runs: int
    warmup_runs: int
    warmed: bool
    first_ms: float
    load_seconds: float
    compile_seconds: float | None
    p50_ms: Estimate
    p90_ms: Estimate
    p99_ms: Estimate
    process_p50_ms: tuple[float, ...]
    images_per_second: Estimate
    process_images_per_second: tuple[float, ...]
    peak_memory_bytes: int
    device_memory_bytes: int | None = None
    flops_per_image: int
    achieved_flops: float
    matmul_flops: float | None
    mfu: float | None
    joules_per_image: float | None
    cosine: float

    @property
    def key(self) -> Key:
        """Its identity in a file."""
        return Key(self.variant, self.image_size, self.runtime, self.precision, self.batch, self.threads)

    @property
    def on_gpu(self) -> bool:
        """Whether the runtime is one that computes on a GPU."""
        return is_on_gpu(self.runtime)


@dataclass(frozen=True, kw_only=True)
class Failed:
    """What was asked for and could not be measured, or not in every process; `runtime` is "" for an export."""

    __pydantic_config__: ClassVar[ConfigDict] = _READ

    variant: str
    image_size: tuple[int, int]
    runtime: str
    precision: str
    reason: str

    def __str__(self) -> str:
        """In words."""
        where = f"in {self.runtime} {self.precision}" if self.runtime else f"as {self.precision}"
        return f"{self.variant} at {pixels(self.image_size)} {where}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What the rows were measured under (`benchmarks.conditions`); memory in bytes, 0 where nobody says."""

    __pydantic_config__: ClassVar[ConfigDict] = _READ

    time: str
    command: str
    system: str
    processor: str
    cores: int
    memory: int
    gpu: str
    gpu_driver: str
    load_average: tuple[float, ...]
    python: str
    sovit: str
    packages: dict[str, str]

    @property
    def busy(self) -> bool:
        """Whether the machine had work when the run began, be it an earlier benchmark's."""
        return bool(self.load_average) and self.load_average[0] > _BUSY * self.cores


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the rows were measured: in each process at least so many timed runs, for at least so many seconds."""

    __pydantic_config__: ClassVar[ConfigDict] = _READ

    batch: tuple[int, ...]
    rounds: int
    seconds: float
    processes: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A result file; `file` is what it is called in what is made of it."""

    __pydantic_config__: ClassVar[ConfigDict] = _READ

    file: str = ""
    quick: bool
    complete: bool
    conditions: Conditions
    settings: Settings
    rows: tuple[Row, ...]
    failed: tuple[Failed, ...]

    @property
    def flaws(self) -> list[str]:
        """Why its numbers are not to be published; empty when they may be."""
        found = []
        if self.quick:
            found.append("a quick run, not to be published")
        if not self.complete:
            found.append("an incomplete run: it was interrupted")
        if not self.quick and self.settings.processes < LEAST_REPEATS:
            found.append(f"{plural(self.settings.processes, 'process')} a row, where {LEAST_REPEATS} are the least")
        lost = [str(row.key) for row in self.rows if row.processes < min(LEAST_REPEATS, self.settings.processes)]
        if lost and self.complete:
            found.append(f"fewer than {LEAST_REPEATS} processes of {', '.join(lost)}")
        return found

    @property
    def cautions(self) -> list[str]:
        """The flaws, what is missing, and what may have disturbed it: the intervals say how much."""
        load, cores = self.conditions.load_average[:1], self.conditions.cores
        busy = (
            f"the machine was busy when the run began: load average {load[0]} on {plural(cores, 'core')}"
            if load
            else ""
        )
        missing = [f"not measured, or not in every process: {one}" for one in self.failed]
        return [*self.flaws, *missing, *[busy] * self.conditions.busy, *self.restless]

    @property
    def restless(self) -> list[str]:
        """That some rows did not come to rest, and whose; empty where all did."""
        rows = [row for row in self.rows if not row.warmed]
        names = ", ".join(dict.fromkeys(row.variant for row in rows))
        said = f"in {len(rows)} of {plural(len(self.rows), 'row')} ({names}) the medians still moved when warm-up ended"
        return [said] if rows else []

    def to_json(self) -> dict[str, Any]:
        """As the file has it."""
        data = to_dict(self)
        del data["file"]
        return {"benchmark": BENCHMARK, "schema_version": SCHEMA_VERSION, **data}


def read_measured(path: Path, name: str = "") -> Measured:
    """A result file, called `name` in what is made of it. Raises `ConfigError` for anything else."""
    data = read_json(path)
    if not isinstance(data, dict) or not isinstance(data.get("benchmark"), str):
        raise ConfigError(f"{path} is no benchmark result: it must be a file that `sovit bench latency --out` wrote.")
    if data["benchmark"] != BENCHMARK:
        raise ConfigError(f"{path} is a result of the benchmark {data['benchmark']!r}, not of `sovit bench latency`.")
    if data.get("schema_version") != SCHEMA_VERSION:
        raise ConfigError(
            f"{path} has schema_version {data.get('schema_version')}, known is {SCHEMA_VERSION}: measure it anew with "
            "`sovit bench latency`."
        )
    measured = from_dict(Measured, {**data, "file": name or path.name}, str(path))
    if not measured.rows:
        raise ConfigError(f"{path} holds no rows: nothing was measured.")
    seen = set()
    for row in measured.rows:
        for what in ("p50_ms", "p90_ms", "p99_ms", "images_per_second"):
            estimate: Estimate = getattr(row, what)
            if not (0 < estimate.low <= estimate.value <= estimate.high and math.isfinite(estimate.high)):
                raise ConfigError(f"{path}: {what} of {row.key} must be a number above 0 within its interval.")
        if row.batch < 1 or row.flops_per_image <= 0 or min(row.image_size) < 1:
            raise ConfigError(f"{path}: {row.key} must have a batch, an image size and FLOPs above 0.")
        if not all(0 < one < math.inf for one in (*row.process_p50_ms, *row.process_images_per_second)):
            raise ConfigError(f"{path}: the times and rates of the processes of {row.key} must be above 0.")
        if row.key in seen:
            raise ConfigError(f"{path} holds {row.key} twice.")
        seen.add(row.key)
    return measured


def read_all(paths: Sequence[Path]) -> list[Measured]:
    """Result files by their names, or by their paths where two have the same name."""
    names = [path.name for path in paths]
    return [read_measured(path, path.name if names.count(path.name) == 1 else str(path)) for path in paths]
