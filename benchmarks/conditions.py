"""The conditions a number was measured under. No number is published without them."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from typing import Any, Final

from sovit import __version__
from sovit.machine import package_version, this_machine

_PACKAGES: Final = ("torch", "numpy", "pillow", "bentoml", "uvicorn")


def conditions() -> dict[str, Any]:
    """Processor, cores, load, versions and time of day."""
    machine = this_machine()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": machine.processor,
        "cores": machine.cores,
        "gpu": machine.gpu,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": sys.version.split()[0],
        "sovit": __version__,
        "packages": machine.engines | {name: found for name in _PACKAGES if (found := package_version(name))},
    }
