"""A start that fails ends the service with one sentence and the error's exit status.

The worker that cannot load the model stops its supervisor, which would start it again and again, and leaves the status
beside the settings that `sovit serve` wrote for it; that command makes it its own.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Final, NoReturn

from serving.process.scratch import own_settings
from sovit.errors import SoViTError

_STATUS: Final = "failed"


def give_up(error: SoViTError) -> NoReturn:
    """In the worker: say why, and end the whole service."""
    if (settings := own_settings()) is not None:
        (settings.parent / _STATUS).write_text(str(error.exit_code), encoding="utf-8")
    _say(error)  # before the supervisor ends, and this process with it
    os.kill(os.getppid(), signal.SIGTERM)
    os._exit(error.exit_code)


def end_process(error: SoViTError) -> NoReturn:
    """Say why, and end this process: the server would print where in our code it happened."""
    _say(error)
    os._exit(error.exit_code)


def _say(error: SoViTError) -> None:
    sys.stderr.flush()
    os.write(sys.stderr.fileno(), f"sovit: {error}\n".encode(errors="replace"))  # at once, or not at all


def failed_status(folder: Path) -> int | None:
    """In `sovit serve`: the exit status of a failed start, None where the service did start."""
    path = folder / _STATUS
    return int(path.read_text(encoding="utf-8")) if path.is_file() else None
