"""`measured.json`: what shapes with random weights take on a machine, as `sovit bench latency` measured it.

    {"schema_version": 1, "machine": {"processor": ..., "cores": 2, "gpu": "", "engines": {...}},
     "rows": [{"shape": "128,8,256,8/8", "image_size": [32, 32], "batch": 1, "p50_ms": 1.9, ...}, ...]}

It belongs to one machine with the engines it had; on another it is refused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar, Final, Literal, NamedTuple

from pydantic import ConfigDict

from sovit.artifact import Precision
from sovit.config import variant_config
from sovit.errors import ConfigError
from sovit.jsonio import STRICT, from_dict, read_json, to_dict, write_json
from sovit.machine import Machine, this_machine

_SCHEMA_VERSION: Final = 1
_BUSY: Final = 0.5  # work for more of its cores than this, before measuring, is named


class Question(NamedTuple):
    """What all latencies of one recommendation have in common."""

    image_size: tuple[int, int]
    batch: int
    precision: Precision


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The latency of one shape, in milliseconds for a whole batch: the median, and its 95 % interval.

    `shape` is written by number, such as `128,8,256,8/8`. `runs` are the timed ones in `processes`; `warmed` says that
    warm-up came to rest. `load_average` is the machine's before measuring. Raises `ConfigError` for what is none.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    shape: str
    image_size: tuple[int, int]
    batch: int
    precision: Precision
    runtime: str
    threads: int
    p50_ms: float
    low_ms: float
    high_ms: float
    runs: int
    processes: int
    warmed: bool
    time: str
    load_average: float

    def __post_init__(self) -> None:
        variant_config(self.shape, image_size=self.image_size)
        if not 0 < self.low_ms <= self.p50_ms <= self.high_ms < math.inf:
            raise ConfigError(f"the latency of {self.shape} must be above 0 and within its interval.")
        if min(self.batch, self.threads, self.runs, self.processes) < 1:
            raise ConfigError(f"batch, threads, runs and processes of {self.shape} must be at least 1.")

    @property
    def question(self) -> Question:
        """What it is an answer to."""
        return Question(self.image_size, self.batch, self.precision)


@dataclass(frozen=True, kw_only=True)
class Device:
    """A machine and what it measured."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    schema_version: Literal[1] = _SCHEMA_VERSION
    machine: Machine
    rows: tuple[Measurement, ...] = ()

    def __post_init__(self) -> None:
        seen = set()
        for row in self.rows:
            if (row.shape, row.question) in seen:
                raise ConfigError(
                    f"{row.shape} is there twice for images of {_pixels(row.image_size)}, batch {row.batch}, "
                    f"{row.precision}: keep one of them."
                )
            seen.add((row.shape, row.question))

    def answers(self, question: Question) -> dict[str, Measurement]:
        """What was measured for a question, by shape."""
        return {row.shape: row for row in self.rows if row.question == question}

    def added(self, rows: Sequence[Measurement]) -> Device:
        """With more rows; they take the place of those that answer the same."""
        new = {(row.shape, row.question): row for row in (*self.rows, *rows)}
        return replace(self, rows=tuple(new.values()))


def read_device(path: Path) -> Device:
    """What this machine has measured so far: the file's rows, none where there is no file yet.

    Raises `ConfigError` for a file that is none, for another machine's, and where it could not be written.
    """
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{path} could not be written: {path.parent} is no folder, or not yours to write in.")
    here = this_machine()
    if not path.exists():
        return Device(machine=here)
    data = read_json(path)
    if isinstance(data, dict) and "benchmark" in data:
        raise ConfigError(
            f"{path} is a result of `sovit bench`: name a file for this command, which writes it and measures into it."
        )
    if not (isinstance(data, dict) and "machine" in data and "rows" in data):
        raise ConfigError(f"{path} holds no latencies of a machine: name a new file, and they are measured into it.")
    found = from_dict(Device, data, str(path))
    differs = [
        field.name for field in fields(Machine) if getattr(found.machine, field.name) != getattr(here, field.name)
    ]
    if differs:
        said = "; ".join(f"{name} {getattr(found.machine, name)}, here {getattr(here, name)}" for name in differs)
        raise ConfigError(f"{path} was measured elsewhere ({said}): name another file, and measure here.")
    return found


def write_device(path: Path, device: Device) -> None:
    """Write it whole or not at all."""
    write_json(path, to_dict(device))


def cautions(rows: Sequence[Measurement], machine: Machine) -> tuple[str, ...]:
    """What may have disturbed these measurements, a sentence each."""
    busy = [row.shape for row in rows if row.load_average > _BUSY * machine.cores]
    restless = [row.shape for row in rows if not row.warmed]
    found = []
    if busy:
        found.append(f"the machine was busy before the measurement of {_some(busy)}: measure anew when it is not.")
    if restless:
        found.append(f"the medians of {_some(restless)} still moved when warm-up ended.")
    return tuple(found)


def _some(names: Sequence[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


def _pixels(image_size: tuple[int, int]) -> str:
    return "x".join(map(str, image_size))
