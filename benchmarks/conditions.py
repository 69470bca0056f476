"""The conditions a number was measured under. No number is published without them."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sovit import __version__
from sovit.machine import package_version, this_machine

_PACKAGES: Final = ("torch", "numpy", "pillow", "bentoml", "uvicorn")


def conditions() -> dict[str, Any]:
    """Processor, cores, memory, load, versions, the command and the time of day."""
    machine = this_machine()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": machine.processor,
        "cores": machine.cores,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": machine.gpu,
        "gpu_driver": _gpu_driver(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": sys.version.split()[0],
        "sovit": __version__,
        "packages": machine.engines | {name: found for name in _PACKAGES if (found := package_version(name))},
    }


def _command() -> str:
    """As it was typed, but for where the programs lie."""
    if sys.orig_argv[1:2] == ["-m"]:
        return shlex.join(["python", *sys.orig_argv[1:]])
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _gpu_driver() -> str:
    """The driver's version and the GPU's clocks just now and at most; "" where there is none that says."""
    if not this_machine().gpu:
        return ""
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            gpu, kind = pynvml.nvmlDeviceGetHandleByIndex(0), pynvml.NVML_CLOCK_SM
            now, most = pynvml.nvmlDeviceGetClockInfo(gpu, kind), pynvml.nvmlDeviceGetMaxClockInfo(gpu, kind)
            return f"{_text(pynvml.nvmlSystemGetDriverVersion())}, {now} of {most} MHz"
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # a driver that does not say
        return ""


def _text(said: str | bytes) -> str:
    return said if isinstance(said, str) else said.decode()
