"""Shapes measured by `sovit bench latency --quick`, in a process of its own: the core imports no benchmark."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from pydantic import ConfigDict

from sovit.artifact import Precision
from sovit.errors import ServiceError
from sovit.jsonio import from_dict, read_json
from sovit.laws.advice.device import Measurement, Question

_PROGRAM: Final = (sys.executable, "-m", "sovit")
# The result holds more than is read here.
_READ: Final = ConfigDict(extra="ignore", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True)
class _Estimate:
    __pydantic_config__: ClassVar[ConfigDict] = _READ

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class _Row:
    __pydantic_config__: ClassVar[ConfigDict] = _READ

    variant: str
    image_size: tuple[int, int]
    runtime: str
    precision: Precision
    batch: int
    threads: int
    processes: int
    runs: int
    warmed: bool
    p50_ms: _Estimate


@dataclass(frozen=True, kw_only=True)
class _Conditions:
    __pydantic_config__: ClassVar[ConfigDict] = _READ

    time: str


@dataclass(frozen=True, kw_only=True)
class _Result:
    __pydantic_config__: ClassVar[ConfigDict] = _READ

    conditions: _Conditions
    rows: tuple[_Row, ...]


def bench(shapes: Sequence[str], question: Question, load_average: float) -> tuple[Measurement, ...]:
    """Measure shapes; those that fail are not in the answer, and why is on standard error, where its progress is.

    A shape takes some ten seconds to export and measure, large ones minutes. `load_average` was the machine's before
    the first of a row of calls: what one leaves behind is no trouble of the next. Raises `ServiceError` where there
    is no result.
    """
    with tempfile.TemporaryDirectory(prefix="sovit-recommend-") as folder:
        out = Path(folder) / "latency.json"
        words = [
            *_PROGRAM, "bench", "latency", *shapes, "--image-size", "x".join(map(str, question.image_size)),
            "--batch", str(question.batch), "--precision", question.precision, "--quick", "--out", str(out),
        ]  # fmt: skip
        done = subprocess.run(words, stdout=subprocess.DEVNULL, check=False)
        if done.returncode not in (0, 1) or not out.is_file():
            raise ServiceError(f"`sovit bench latency` ended with status {done.returncode} and no latencies.")
        found = from_dict(_Result, read_json(out), "the result of `sovit bench latency`")
    return tuple(
        Measurement(
            shape=row.variant, image_size=row.image_size, batch=row.batch, precision=row.precision,
            runtime=row.runtime, threads=row.threads, p50_ms=row.p50_ms.value, low_ms=row.p50_ms.low,
            high_ms=row.p50_ms.high, runs=row.runs, processes=row.processes, warmed=row.warmed,
            time=found.conditions.time, load_average=load_average,
        )
        for row in found.rows
        if row.variant in shapes
    )  # fmt: skip
