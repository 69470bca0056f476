"""Joules of a stretch of work, where the machine tells them: RAPL of the processors, NVML of the GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

_RAPL: Final = Path("/sys/class/powercap")
LEAST_SECONDS: Final = 5.0  # counters are refreshed every 20 to 100 ms: a shorter stretch says nothing


@dataclass
class Stretch:
    """What a stretch took; `joules` is None where nothing can be read, or it was too short."""

    seconds: float = 0.0
    joules: float | None = None


@dataclass(frozen=True)
class _Counter:
    """Joules used since some time, and where it begins anew at 0 (None: never)."""

    read: Callable[[], float | None]
    turns_at: float | None = None


@contextmanager
def measured_energy(*, gpu: bool, rapl: Path = _RAPL) -> Iterator[Stretch]:
    """Fill in the yielded stretch when the block ends: of the first GPU, or else of all processor packages."""
    counters = [_Counter(_nvml_joules)] if gpu else _packages(rapl)
    stretch = Stretch()
    befores, began = [one.read() for one in counters], time.perf_counter()
    yield stretch
    stretch.seconds = time.perf_counter() - began
    used = [_used(one, before, one.read()) for one, before in zip(counters, befores, strict=True)]
    told = [joules for joules in used if joules is not None]
    if counters and len(told) == len(counters) and sum(told) > 0 and stretch.seconds >= LEAST_SECONDS:
        stretch.joules = sum(told)


def _used(counter: _Counter, before: float | None, after: float | None) -> float | None:
    if before is None or after is None:
        return None
    if after >= before:
        return after - before
    return None if counter.turns_at is None else after + counter.turns_at - before


def _packages(rapl: Path) -> list[_Counter]:
    """One for each processor package; none where one cannot be read. Other zones are parts of these, or of more."""
    found = []
    for zone in sorted(rapl.glob("intel-rapl:*")):
        try:
            if not (zone / "name").read_text().startswith("package"):
                continue
            found.append(_Counter(partial(_joules, zone / "energy_uj"), _joules(zone / "max_energy_range_uj")))
            _joules(zone / "energy_uj")
        except (OSError, ValueError):
            return []
    return found


def _joules(file: Path) -> float:
    return int(file.read_text()) / 1e6


def _nvml_joules() -> float | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(0))) / 1e3
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # a GPU without the counter, or a driver that does not say
        return None
