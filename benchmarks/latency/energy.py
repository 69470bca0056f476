"""Joules of a stretch of work, where the machine tells them: RAPL of the processor, NVML of the GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sovit.machine import this_machine

_RAPL: Final = Path("/sys/class/powercap")
LEAST_SECONDS: Final = 5.0  # counters are refreshed every 20 to 100 ms: a shorter stretch says nothing


@dataclass
class Stretch:
    """What a stretch took; `joules` is None where nothing can be read, or it was too short."""

    seconds: float = 0.0
    joules: float | None = None


@contextmanager
def measured_energy(rapl: Path = _RAPL) -> Iterator[Stretch]:
    """Fill in the yielded stretch when the block ends."""
    read = _counter(rapl)
    stretch = Stretch()
    before, began = read() if read else None, time.perf_counter()
    yield stretch
    stretch.seconds = time.perf_counter() - began
    after = read() if read else None
    if before is not None and after is not None and after > before and stretch.seconds >= LEAST_SECONDS:
        stretch.joules = after - before


def _counter(rapl: Path) -> Callable[[], float | None] | None:
    """Reads the joules used since some time; of the GPU where there is one, else of all processor packages."""
    if this_machine().gpu:
        return _nvml_joules
    packages = [path for path in sorted(rapl.glob("intel-rapl:*")) if path.name.count(":") == 1]
    files = [path / "energy_uj" for path in packages]
    if not files or not all(_readable(path) for path in files):
        return None
    return lambda: sum(int(path.read_text()) for path in files) / 1e6


def _readable(path: Path) -> bool:
    try:
        path.read_text()
    except OSError:
        return False
    return True


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
