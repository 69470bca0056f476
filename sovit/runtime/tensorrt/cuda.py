"""The little of CUDA's runtime that the TensorRT runtime needs, through `cuda.bindings.runtime`.

Every call there returns a tuple that begins with the error; `check` is the one border where an error becomes ours.
Written for the bindings of CUDA 12 and 13, where `cudaGraphInstantiate` takes a graph and flags.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sovit.errors import MissingDependency, RuntimeFailure

_NEEDED: Final = "this needs a machine with an NVIDIA GPU and its driver (580 or newer for CUDA 13)"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The GPU that work runs on; versions as in "13.0". `memory` is in bytes."""

    name: str
    compute_capability: str
    memory: int
    driver: str
    runtime: str


def cuda_runtime() -> Any:
    """The module `cuda.bindings.runtime`. Raises `MissingDependency` where it is not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise MissingDependency("cuda-bindings is not installed: pip install 'sovit[gpu]', or 'sovit[rtx]'.") from error
    return runtime


def check(result: tuple[Any, ...]) -> Any:
    """The value of a call: None, the one value or the tuple of them.

    Raises `MissingDependency` where there is no GPU or driver, and `RuntimeFailure` for every other error.
    """
    error, *values = result
    cudart = cuda_runtime()
    if error != cudart.cudaError_t.cudaSuccess:
        reason = _text(cudart.cudaGetErrorString(error)[1])
        if error in (cudart.cudaError_t.cudaErrorNoDevice, cudart.cudaError_t.cudaErrorInsufficientDriver):
            raise MissingDependency(f"CUDA finds no GPU it can use ({reason}): {_NEEDED}.")
        if error == cudart.cudaError_t.cudaErrorMemoryAllocation:
            raise RuntimeFailure(
                "the GPU, or the memory that can be pinned for it, is full: use fewer lanes, or a smaller largest "
                "batch with `sovit compile ARTIFACT --batch MIN:OPT:MAX`."
            )
        raise RuntimeFailure(f"CUDA failed: {reason}.")
    return None if not values else values[0] if len(values) == 1 else tuple(values)


def current_gpu() -> Gpu:
    """Describe the first GPU, which is the one that is used. Raises `MissingDependency` where there is none."""
    cudart = cuda_runtime()
    try:
        count = check(cudart.cudaGetDeviceCount())
    except RuntimeError as error:  # bindings that find no driver library to load
        raise MissingDependency(f"CUDA's driver cannot be loaded: {_NEEDED}.") from error
    if count < 1:
        raise MissingDependency(f"CUDA finds no GPU: {_NEEDED}.")
    properties = check(cudart.cudaGetDeviceProperties(0))
    return Gpu(
        name=_text(properties.name),
        compute_capability=f"{properties.major}.{properties.minor}",
        memory=int(properties.totalGlobalMem),
        driver=_version(check(cudart.cudaDriverGetVersion())),
        runtime=_version(check(cudart.cudaRuntimeGetVersion())),
    )


class DeviceBuffer:
    """Memory of the GPU; `address` is an integer, `size` in bytes."""

    def __init__(self, size: int) -> None:
        self.size = max(1, size)  # CUDA gives no address for nothing
        self._cudart = cuda_runtime()
        self.address = int(check(self._cudart.cudaMalloc(self.size)))

    def close(self) -> None:
        """Free the memory."""
        check(self._cudart.cudaFree(self.address))


class HostBuffer:
    """Pinned memory of the host, which the GPU copies from and to without a stop; `array` is a view of it."""

    def __init__(self, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        self._cudart = cuda_runtime()
        size = math.prod(shape) * np.dtype(dtype).itemsize
        self.size = max(1, size)
        self.address = int(check(self._cudart.cudaHostAlloc(self.size, self._cudart.cudaHostAllocDefault)))
        memory = np.ctypeslib.as_array((ctypes.c_ubyte * self.size).from_address(self.address))
        self.array: NDArray[Any] = memory[:size].view(dtype).reshape(shape)

    def close(self) -> None:
        """Free the memory; `array` must not be used again."""
        del self.array
        check(self._cudart.cudaFreeHost(self.address))


class Stream:
    """A queue of work on the GPU, which does not wait for the default stream."""

    def __init__(self) -> None:
        self._cudart = cuda_runtime()
        self._stream = check(self._cudart.cudaStreamCreateWithFlags(self._cudart.cudaStreamNonBlocking))

    @property
    def handle(self) -> int:
        """The stream as the integer that TensorRT takes."""
        return int(self._stream)

    def upload(self, to: DeviceBuffer, source: HostBuffer, size: int) -> None:
        """Queue a copy of the first `size` bytes from the host to the GPU."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        check(self._cudart.cudaMemcpyAsync(to.address, source.address, size, kind, self._stream))

    def download(self, to: HostBuffer, source: DeviceBuffer, size: int) -> None:
        """Queue a copy of the first `size` bytes from the GPU to the host."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        check(self._cudart.cudaMemcpyAsync(to.address, source.address, size, kind, self._stream))

    def wait(self) -> None:
        """Return when all queued work is done. Errors of that work are raised here."""
        check(self._cudart.cudaStreamSynchronize(self._stream))

    def capture(self, queue_work: Callable[[], None]) -> Graph:
        """Record what `queue_work` queues on this stream, without running it.

        Only this thread is forbidden what a capture cannot take: other lanes go on working.
        """
        cudart = self._cudart
        check(
            cudart.cudaStreamBeginCapture(self._stream, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        )
        try:
            queue_work()
        except BaseException:
            # The stream leaves the capture whatever happened in it, and the next call must not meet its error.
            _, broken = cudart.cudaStreamEndCapture(self._stream)
            if broken is not None and int(broken):
                cudart.cudaGraphDestroy(broken)
            cudart.cudaGetLastError()
            raise
        try:
            recorded = check(cudart.cudaStreamEndCapture(self._stream))
            try:
                return Graph(check(cudart.cudaGraphInstantiate(recorded, 0)), self)
            finally:
                check(cudart.cudaGraphDestroy(recorded))
        except RuntimeFailure:
            cudart.cudaGetLastError()
            raise

    def launch(self, executable: Any) -> None:
        """Queue an instantiated graph."""
        check(self._cudart.cudaGraphLaunch(executable, self._stream))

    def close(self) -> None:
        """Destroy the stream."""
        check(self._cudart.cudaStreamDestroy(self._stream))


class Graph:
    """Recorded work that is queued again with one call."""

    def __init__(self, executable: Any, stream: Stream) -> None:
        self._executable = executable
        self._stream = stream

    def launch(self) -> None:
        """Queue the recorded work on its stream."""
        self._stream.launch(self._executable)

    def close(self) -> None:
        """Destroy the graph."""
        check(cuda_runtime().cudaGraphExecDestroy(self._executable))


def _text(name: bytes | str) -> str:
    return name if isinstance(name, str) else name.decode(errors="replace").rstrip("\0")


def _version(number: int) -> str:
    """13020 to "13.2"."""
    return f"{number // 1000}.{number % 1000 // 10}"
