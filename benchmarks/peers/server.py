"""Any server of embeddings as a process: started, asked until it answers, watched, and stopped."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import httpx
import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.load.loops import Target
from sovit.errors import ServiceError

LEAST_COSINE: Final = 0.9999
_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 15.0


@contextmanager
def started(command: Sequence[str], url: str, image: bytes) -> Iterator[tuple[psutil.Process, bytes]]:
    """Run a server until the block ends; ready is the first 200 to an image, the one route that all of them have."""
    with tempfile.TemporaryFile() as log:
        process = psutil.Popen(
            [sys.executable, "-m", *command],
            cwd=Path(__file__).resolve().parents[2],
            env={**os.environ, "BENTOML_DO_NOT_TRACK": "True"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            answer = None
            deadline = time.monotonic() + _START_SECONDS
            while answer is None:
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise ServiceError(f"{command[0]} did not start: {log.read().decode(errors='replace')[-2000:]}")
                time.sleep(0.1)
                answer = _embed(url, image)
            yield process, answer
        finally:
            with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
                process.terminate()
                process.wait(_STOP_SECONDS)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _embed(url: str, image: bytes) -> bytes | None:
    headers = {"content-type": "image/jpeg", "accept": Target(url=url).accept}
    with suppress(httpx.TransportError):
        response = httpx.post(url, content=image, headers=headers, trust_env=False)
        if response.status_code == httpx.codes.OK:
            return response.content
    return None


def require_same(name: str, answer: bytes, expected_D: NDArray[np.float32]) -> None:
    """No parity, no number."""
    try:
        embedding_1D = np.load(io.BytesIO(answer), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ServiceError(f"{name} answered {answer[:60]!r} in place of an .npy file.") from error
    if embedding_1D.shape != (1, len(expected_D)) or embedding_1D.dtype != np.float32:
        raise ServiceError(f"{name} answered {embedding_1D.dtype} {embedding_1D.shape} in place of one embedding.")
    require_near(name, embedding_1D[0], expected_D)


def require_near(name: str, embedding_D: NDArray[np.float32], expected_D: NDArray[np.float32]) -> None:
    """Raises `ServiceError` where an embedding of length 1 is not the artifact's own."""
    if embedding_D.shape != expected_D.shape:
        raise ServiceError(f"{name} gave {embedding_D.shape} in place of an embedding {expected_D.shape}.")
    if not (cosine := float(embedding_D @ expected_D)) >= LEAST_COSINE:  # nor where it is no number
        raise ServiceError(f"{name} and the artifact in ONNX Runtime disagree: cosine {cosine:.6f}.")


def tree(process: psutil.Process) -> list[psutil.Process]:
    """All processes of a server."""
    return [process, *process.children(recursive=True)]


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of all of them so far."""
    return sum(sum(member.cpu_times()[:2]) for member in tree(process))
