"""Result files of `sovit bench latency`: read strictly, and what changed from one to the other beyond noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, NamedTuple

from pydantic import ConfigDict

from benchmarks.intervals import Estimate
from sovit.errors import ConfigError
from sovit.jsonio import from_dict, read_json
from sovit.runtime.open import ON_GPU

SCHEMA_VERSION: Final = 2
# A machine with work for more of its cores than this, when a run begins, is named.
_BUSY: Final = 0.5
# A result may hold more than is read here; the schema version says that what is read means the same.
_READ: Final = ConfigDict(extra="ignore", allow_inf_nan=False)

Verdict = Literal["faster", "slower", "no change beyond noise", "not the same model"]


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
    """One measured row. Times are in milliseconds for a whole batch; None where something was not measured."""

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
    p50_ms: Estimate
    p99_ms: Estimate
    images_per_second: Estimate
    flops_per_image: float
    peak_memory_bytes: float | None = None
    joules_per_image: float | None = None
    cosine: float | None = None
    failures: int = 0

    @property
    def key(self) -> Key:
        """Its identity in a file."""
        return Key(self.variant, self.image_size, self.runtime, self.precision, self.batch, self.threads)

    @property
    def on_gpu(self) -> bool:
        """Whether the runtime is one that computes on a GPU."""
        return self.runtime in ON_GPU


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What the rows were measured under (`benchmarks.conditions`)."""

    __pydantic_config__: ClassVar[ConfigDict] = _READ

    time: str
    processor: str
    cores: int
    gpu: str
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
    """How the rows were measured."""

    __pydantic_config__: ClassVar[ConfigDict] = _READ

    rounds: int
    processes: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A result file."""

    __pydantic_config__: ClassVar[ConfigDict] = _READ

    file: str
    quick: bool
    complete: bool
    conditions: Conditions
    settings: Settings
    rows: tuple[Row, ...]

    @property
    def flaws(self) -> list[str]:
        """Why its numbers are not to be published; empty when they may be."""
        found = []
        if self.quick:
            found.append("a quick run, not to be published")
        if not self.complete:
            found.append("an incomplete run: it was interrupted")
        if failures := sum(row.failures for row in self.rows):
            found.append(f"{plural(failures, 'run')} failed")
        return found

    @property
    def cautions(self) -> list[str]:
        """The flaws, and what may have disturbed it: the intervals say how much."""
        load, cores = self.conditions.load_average[:1], self.conditions.cores
        busy = (
            f"the machine was busy when the run began: load average {load[0]} on {plural(cores, 'core')}"
            if load
            else ""
        )
        return [*self.flaws, *[busy] * self.conditions.busy]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A condition that is not the same in both. `void` where no change can then be laid to the code."""

    what: str
    a: str
    b: str
    void: bool


@dataclass(frozen=True, kw_only=True)
class Change:
    """A row in both: its p50 in B as a multiple of that in A, so less than 1 is faster."""

    row: Key
    a_ms: Estimate
    b_ms: Estimate
    ratio: Estimate
    verdict: Verdict
    note: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All of it."""

    a: str
    b: str
    cautions: list[str]
    differences: list[Difference]
    changes: list[Change]
    only_in_a: list[Key]
    only_in_b: list[Key]

    @property
    def void(self) -> list[Difference]:
        """The differences that make the verdicts say nothing about the code."""
        return [difference for difference in self.differences if difference.void]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""

        def named(keys: Sequence[Key]) -> list[dict[str, Any]]:
            return [key._asdict() for key in keys]

        return {
            "benchmark": "compare",
            "schema_version": 1,
            "a": self.a,
            "b": self.b,
            "comparable": not self.void,
            "cautions": self.cautions,
            "differences": [asdict(difference) for difference in self.differences],
            "rows": [
                {
                    **change.row._asdict(),
                    "a_p50_ms": asdict(change.a_ms),
                    "b_p50_ms": asdict(change.b_ms),
                    "ratio": asdict(change.ratio),
                    "verdict": change.verdict,
                    "note": change.note,
                }
                for change in self.changes
            ],
            "only_in_a": named(self.only_in_a),
            "only_in_b": named(self.only_in_b),
        }


def read_measured(path: Path, name: str = "") -> Measured:
    """A result file, called `name` in what is made of it. Raises `ConfigError` for anything else."""
    data = read_json(path)
    if not isinstance(data, dict) or not isinstance(data.get("benchmark"), str):
        raise ConfigError(f"{path} is no benchmark result: it must be a file that `sovit bench latency --out` wrote.")
    if data["benchmark"] != "latency":
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
        for what in ("p50_ms", "p99_ms", "images_per_second"):
            estimate: Estimate = getattr(row, what)
            if not (0 < estimate.low <= estimate.value <= estimate.high and math.isfinite(estimate.high)):
                raise ConfigError(f"{path}: {what} of {row.key} must be a number above 0 within its interval.")
        if row.batch < 1 or row.flops_per_image <= 0:
            raise ConfigError(f"{path}: {row.key} must have a batch and FLOPs above 0.")
        if row.key in seen:
            raise ConfigError(f"{path} holds {row.key} twice.")
        seen.add(row.key)
    return measured


def compare(a: Measured, b: Measured) -> Comparison:
    """What changed from A to B."""
    rows_a, rows_b = ({row.key: row for row in one.rows} for one in (a, b))
    return Comparison(
        a=a.file,
        b=b.file,
        cautions=[f"{one.file}: {caution}" for one in (a, b) for caution in one.cautions],
        differences=_differences(a, b),
        changes=[_change(row, rows_b[key]) for key, row in rows_a.items() if key in rows_b],
        only_in_a=[key for key in rows_a if key not in rows_b],
        only_in_b=[key for key in rows_b if key not in rows_a],
    )


def ratio(one: Estimate, other: Estimate) -> Estimate:
    """`one` divided by `other`. The interval holds every quotient of the two intervals, so it is never too narrow."""
    return Estimate(one.value / other.value, one.low / other.high, one.high / other.low)


def verdict_of(changed: Estimate) -> Verdict:
    """What a ratio of times says, given its interval."""
    if changed.high < 1:
        return "faster"
    return "slower" if changed.low > 1 else "no change beyond noise"


def _change(a: Row, b: Row) -> Change:
    changed = ratio(b.p50_ms, a.p50_ms)
    verdict, note = verdict_of(changed), ""
    if a.flops_per_image != b.flops_per_image:
        verdict = "not the same model"
        note = f"{a.flops_per_image / 1e9:,.3f} and {b.flops_per_image / 1e9:,.3f} GFLOPs per image"
    elif a.weights != b.weights:
        note = f"weights {a.weights} and {b.weights}"
    return Change(row=a.key, a_ms=a.p50_ms, b_ms=b.p50_ms, ratio=changed, verdict=verdict, note=note)


def _differences(a: Measured, b: Measured) -> list[Difference]:
    """Conditions that differ: first the machine, which makes a comparison void, then what may explain a change."""
    one, other = a.conditions, b.conditions
    found = [
        ("processor", one.processor, other.processor, True),
        ("cores", one.cores, other.cores, True),
        ("GPU", one.gpu or "none", other.gpu or "none", True),
        ("threads", a.settings.threads, b.settings.threads, False),
        ("processes", a.settings.processes, b.settings.processes, False),
        ("rounds", a.settings.rounds, b.settings.rounds, False),
        ("Python", one.python, other.python, False),
        ("sovit", one.sovit, other.sovit, False),
        *(
            (name, one.packages.get(name, "not there"), other.packages.get(name, "not there"), False)
            for name in sorted(one.packages.keys() | other.packages.keys())
        ),
    ]
    return [
        Difference(what=what, a=str(in_a), b=str(in_b), void=void) for what, in_a, in_b, void in found if in_a != in_b
    ]


def pixels(image_size: Sequence[int]) -> str:
    """(Y, X) as people write it."""
    y, x = image_size
    return f"{y} px" if y == x else f"{y} x {x} px"


def plural(count: int, what: str) -> str:
    """A number of things."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
