"""What machine this is, as far as plans, tuned profiles and published numbers depend on it."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar, Final

from pydantic import ConfigDict

from sovit.cores import available_cores
from sovit.jsonio import STRICT

_UNKNOWN_MEMORY: Final = 4 << 30
_ENGINES: Final = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13-bindings")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Processor, the cores this process may use, the first GPU by name ("" for none), and the engines' versions.

    Torch is none of the engines: a service has none, and runs on what was tuned beside one.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    processor: str
    cores: int
    gpu: str
    engines: dict[str, str]


@cache
def this_machine() -> Machine:
    """The machine this process runs on."""
    engines = {name: found for name in _ENGINES if (found := package_version(name))}
    return Machine(processor=_processor(), cores=available_cores(), gpu=_gpu(), engines=engines)


def package_version(package: str) -> str | None:
    """The installed version of a package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def free_memory() -> int | None:
    """Bytes that can be taken without swapping, of the machine and of the container; None where nobody says."""
    found = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        found.append(limit - used)
    except (OSError, ValueError):  # no container, or "max": no limit
        pass
    return min(found, default=None)


def total_memory() -> int:
    """Bytes of memory of the machine, or of the container where that has a limit below it."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else [_UNKNOWN_MEMORY]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # no container, or "max": no limit
            found.append(int(Path(path).read_text()))
    return min(found)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu() -> str:
    """The name the driver's own library gives, without starting CUDA."""
    try:
        import pynvml
    except ImportError:
        return ""
    try:
        pynvml.nvmlInit()
        try:
            name = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))
            return name if isinstance(name, str) else name.decode()
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return ""
