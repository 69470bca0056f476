"""The GPU's memory that this process holds, as the driver's own library tells it."""

from __future__ import annotations

import os

from sovit.machine import this_machine


def device_memory() -> int | None:
    """Bytes on the first GPU; None without one, or where the driver does not know this process by its number."""
    if not this_machine().gpu:
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            running = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(0))
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # a driver that does not say
        return None
    return next((int(one.usedGpuMemory) for one in running if one.pid == os.getpid() and one.usedGpuMemory), None)
