"""The two libraries that build and run engines: TensorRT, and TensorRT for RTX, whose builder needs no GPU.

Their Python APIs agree as far as sovit uses them; what differs is a field of `Library`. An engine of one is refused by
the other.
"""

from __future__ import annotations

import importlib
import logging
from collections import deque
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

from sovit.errors import MissingDependency

logger = logging.getLogger(__name__)

LibraryName = Literal["tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True)
class Library:
    """One of the two. `modules` are the names it may be imported by, the first that is there.

    `builds_anywhere`: it builds for GPUs that are named, on a machine without one. `compiles_at_load`: an engine is
    finished by the runtime, which keeps what it compiled in a cache of its own.
    """

    name: LibraryName
    title: str
    modules: tuple[str, ...]
    least_version: tuple[int, int]
    how_to_get_it: str
    builds_anywhere: bool = False
    compiles_at_load: bool = False

    def compile_command(self, artifact: object) -> str:
        """The command that makes a plan of an artifact here."""
        return f"sovit compile {artifact}{' --for rtx' if self.compiles_at_load else ''}"

    def load(self) -> Any:
        """The module. Raises `MissingDependency` where it is missing, cannot be loaded or is too old."""
        for name in self.modules:
            try:
                trt = importlib.import_module(name)
            except (ImportError, OSError):  # OSError: its libraries are not there
                continue
            version: str = trt.__version__
            if tuple(int(part) for part in version.split(".")[:2]) < self.least_version:
                raise MissingDependency(
                    f"{self.title} {version} cannot read the Attention of ONNX's opset 23: pip install "
                    f"'{self.name}>={'.'.join(map(str, self.least_version))}'."
                )
            return trt
        raise MissingDependency(f"{self.title} is not installed: {self.how_to_get_it}.")


TENSORRT: Final = Library(
    "tensorrt",
    "TensorRT",
    ("tensorrt",),
    (10, 14),  # the first whose ONNX parser takes Attention (release notes of its parser)
    "pip install 'sovit[gpu]' on a machine with an NVIDIA GPU",
)
TENSORRT_RTX: Final = Library(
    "tensorrt-rtx",
    "TensorRT for RTX",
    ("tensorrt_rtx", "tensorrt_rtx_bindings"),  # of NVIDIA's meta package, or of its bindings alone
    (1, 7),  # the oldest that was tried
    "pip install 'sovit[rtx]' (x86-64 Linux or Windows)",
    builds_anywhere=True,
    compiles_at_load=True,
)
LIBRARIES: Final[dict[LibraryName, Library]] = {library.name: library for library in (TENSORRT, TENSORRT_RTX)}


@cache
def log_of(trt: Any) -> Any:
    """The one logger of a library in this process, which remembers why something failed.

    TensorRT keeps the first logger it is given and calls it until the process ends, from any of its threads.
    """

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: deque[str] = deque(maxlen=20)
            self._warnings: deque[str] = deque(maxlen=20)

        def log(self, severity: Any, msg: str) -> None:
            logger.debug("TensorRT: %s", msg)
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self._errors.append(msg)
            elif severity == trt.ILogger.Severity.WARNING:
                self._warnings.append(msg)

        def forget(self) -> None:
            """Begin anew: what follows is about something else."""
            self._errors.clear()
            self._warnings.clear()

        def reason(self) -> str:
            """The first error since, or the last warning, as the end of a sentence."""
            message = self._errors[0] if self._errors else self._warnings[-1] if self._warnings else ""
            return (message.strip().splitlines() or ["it gave no reason"])[0].rstrip(".")

        def errors(self) -> str:
            """All errors since."""
            return "\n".join(self._errors)

    return Log()
