"""How many CPU cores this process may use, and what may be asked of them."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

from sovit.errors import ConfigError

_GROUP: Final = Path("/proc/self/cgroup")
_GROUPS: Final = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Cores in this process's affinity mask, or in the machine where there is no such thing; a container's limit holds.

    A limit of part of a core counts as a whole one.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _container_limit(_GROUP, _GROUPS))))


def require_threads(threads: int | None) -> None:
    """Raises `ConfigError` for a `--threads` that there are no cores for. None leaves the number open."""
    if threads is None:
        return
    if threads < 1:
        raise ConfigError(f"--threads {threads} must be at least 1.")
    if threads > (cores := available_cores()):
        raise ConfigError(f"--threads {threads} must be at most {cores}, the cores there are.")


def _container_limit(group: Path, groups: Path) -> float:
    """The lowest `cpu.max` of the control group (version 2) and those above it; infinite where there is none."""
    try:
        lines = group.read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if own is None:
        return math.inf
    folder = groups / own.strip("/")
    return min(_quota(parent / "cpu.max") for parent in (folder, *folder.parents) if parent.is_relative_to(groups))


def _quota(path: Path) -> float:
    try:
        quota, period = path.read_text(encoding="utf-8").split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
