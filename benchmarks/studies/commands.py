"""`sovit` commands and services as processes of their own: what one takes, and which is a service's worker (Linux)."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Collection
from typing import Final, TypedDict

import psutil

from sovit.errors import ServiceError

# What a forked process has used so far begins with its parent's memory; VmHWM begins anew with the program.
_PROGRAM: Final = """
import sys
from sovit.cli import main
code = main(sys.argv[1:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


class Taken(TypedDict):
    """Wall time, and the most memory that was ever resident, pages of mapped files included."""

    seconds: float
    peak_rss_bytes: int


def run_sovit(*words: str) -> Taken:
    """Run `sovit WORDS`. Raises `ServiceError` with what it said when it fails."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _PROGRAM, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServiceError(f"sovit {' '.join(words)} failed: {done.stderr}")
    return {"seconds": time.perf_counter() - began, "peak_rss_bytes": int(done.stdout.split()[-1]) * 1024}


def service_worker(known: Collection[int] = ()) -> psutil.Process:
    """The worker process of a service that this process started, and whose id is not among those `known`."""
    return next(
        process
        for process in psutil.Process().children(recursive=True)
        if process.pid not in known and "--worker-id" in process.cmdline()
    )
