"""A CUDA runtime without a GPU, as strict as the real one: what is queued runs when the stream is waited for.

It has only names of `cuda.bindings.runtime`, and the real enumerations (`tests/test_cuda.py` compares the two). Host
memory is real, so that numpy can look at it; device memory can be reached by nobody but this module.
"""

# ruff: noqa: N802 - the names are the real ones
from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from cuda.bindings import runtime as real

Work = Callable[[], None]
OK = real.cudaError_t.cudaSuccess
INVALID = real.cudaError_t.cudaErrorInvalidValue
CAPTURING = real.cudaError_t.cudaErrorStreamCaptureUnsupported
INVALIDATED = real.cudaError_t.cudaErrorStreamCaptureInvalidated


@dataclass
class Handle:
    """A stream or a graph: something that only `int` can look into."""

    number: int

    def __int__(self) -> int:
        return self.number


@dataclass
class FakeDevice:
    """The state behind the calls. `errors` holds, by the name of a call, what its next calls return."""

    name: bytes = b"NVIDIA H100 80GB HBM3"
    compute_capability: tuple[int, int] = (9, 0)
    count: int = 1
    calls: list[str] = field(default_factory=list)
    errors: dict[str, list[Any]] = field(default_factory=dict)
    memory: dict[int, Any] = field(default_factory=dict)
    streams: dict[int, list[Work]] = field(default_factory=dict)
    captures: dict[int, list[Work]] = field(default_factory=dict)
    broken_captures: set[int] = field(default_factory=set)
    graphs: dict[int, list[Work]] = field(default_factory=dict)
    executables: dict[int, list[Work]] = field(default_factory=dict)
    numbers: Any = field(default_factory=lambda: itertools.count(0x7000_0000_0000, 0x1000_0000))

    def queue(self, stream: int, work: Work) -> None:
        """Put work on a stream, or into the graph that is being captured from it."""
        assert stream in self.streams, "this stream does not exist, or no longer"
        (self.captures[stream] if stream in self.captures else self.streams[stream]).append(work)

    def read(self, address: int, size: int) -> bytes:
        """The content of memory that is alive and holds `size` bytes."""
        return bytes(self._view(address, size))

    def write(self, address: int, content: bytes) -> None:
        self._view(address, len(content))[:] = content

    def _view(self, address: int, size: int) -> memoryview:
        assert address in self.memory, "memory that is not there, or no longer"
        view = memoryview(self.memory[address]).cast("B")
        assert size <= len(view), f"{size} bytes of a buffer of {len(view)}"
        return view[:size]

    @property
    def leftovers(self) -> list[str]:
        """What was not freed."""
        kinds = {"memory": self.memory, "streams": self.streams, "graphs": self.graphs, "executables": self.executables}
        return [f"{len(alive)} {kind}" for kind, alive in kinds.items() if alive]


def fake_cudart(device: FakeDevice) -> SimpleNamespace:
    """The module, on a device."""

    def called(name: str) -> Any:
        device.calls.append(name)
        pending = device.errors.get(name)
        return pending.pop(0) if pending else OK

    def cudaGetDeviceCount() -> tuple[Any, ...]:
        error = called("cudaGetDeviceCount")
        return error, device.count if error == OK else None

    def cudaGetDeviceProperties(index: int) -> tuple[Any, ...]:
        called("cudaGetDeviceProperties")
        assert index == 0
        properties = real.cudaDeviceProp()
        properties.name = device.name.ljust(256, b"\0")
        properties.major, properties.minor = device.compute_capability
        properties.totalGlobalMem = 80 * 2**30
        return OK, properties

    def allocate(name: str, make: Callable[[int], tuple[int, Any]]) -> Callable[..., tuple[Any, ...]]:
        def call(size: int, *flags: int) -> tuple[Any, ...]:
            error = called(name)
            if error == OK and (type(size) is not int or size < 1 or len(flags) != (name == "cudaHostAlloc")):
                error = INVALID
            if device.captures:
                device.broken_captures |= set(device.captures)
                error = CAPTURING
            if error != OK:
                return error, None
            address, content = make(size)
            device.memory[address] = content
            return OK, address

        return call

    def on_host(size: int) -> tuple[int, Any]:
        content = (ctypes.c_ubyte * size)(*[0xAB] * min(size, 16))
        return ctypes.addressof(content), content

    def free(name: str) -> Callable[[int], tuple[Any]]:
        def call(address: int) -> tuple[Any]:
            error = called(name)
            assert not any(device.streams.values()), "freed before the work that may use it was done"
            assert isinstance(device.memory[address], bytearray) == (name == "cudaFree")
            del device.memory[address]
            return (error,)

        return call

    def cudaStreamCreateWithFlags(flags: int) -> tuple[Any, ...]:
        error = called("cudaStreamCreateWithFlags")
        assert flags == real.cudaStreamNonBlocking, "a capture must not wait for the default stream"
        number = next(device.numbers)
        device.streams[number] = []
        return error, Handle(number)

    def cudaStreamDestroy(stream: Handle) -> tuple[Any]:
        error = called("cudaStreamDestroy")
        assert not device.streams.pop(int(stream))
        return (error,)

    def cudaStreamSynchronize(stream: Handle) -> tuple[Any]:
        error = called("cudaStreamSynchronize")
        if int(stream) in device.captures:
            device.broken_captures.add(int(stream))
            return (CAPTURING,)
        pending = device.streams[int(stream)]
        while pending:
            pending.pop(0)()
        return (error,)

    def cudaMemcpyAsync(dst: int, src: int, count: int, kind: Any, stream: Handle) -> tuple[Any]:
        error = called("cudaMemcpyAsync")
        on_device = {address: isinstance(device.memory[address], bytearray) for address in (dst, src)}
        expected = {
            real.cudaMemcpyKind.cudaMemcpyHostToDevice: (True, False),
            real.cudaMemcpyKind.cudaMemcpyDeviceToHost: (False, True),
        }[kind]
        assert (on_device[dst], on_device[src]) == expected
        if error == OK:
            device.queue(int(stream), lambda: device.write(dst, device.read(src, count)))
        return (error,)

    def cudaStreamBeginCapture(stream: Handle, mode: Any) -> tuple[Any]:
        error = called("cudaStreamBeginCapture")
        assert mode == real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        assert not device.streams[int(stream)], "work before the capture was not waited for"
        if error == OK:
            device.captures[int(stream)] = []
        return (error,)

    def cudaStreamEndCapture(stream: Handle) -> tuple[Any, ...]:
        error = called("cudaStreamEndCapture")
        recorded = device.captures.pop(int(stream))
        if int(stream) in device.broken_captures:
            device.broken_captures.remove(int(stream))
            error = INVALIDATED
        if error != OK:
            return error, None
        number = next(device.numbers)
        device.graphs[number] = recorded
        return OK, Handle(number)

    def cudaGraphInstantiate(graph: Handle, flags: int) -> tuple[Any, ...]:
        error = called("cudaGraphInstantiate")
        assert flags == 0
        if error != OK:
            return error, None
        number = next(device.numbers)
        device.executables[number] = list(device.graphs[int(graph)])
        return OK, Handle(number)

    def cudaGraphLaunch(graphExec: Handle, stream: Handle) -> tuple[Any]:
        error = called("cudaGraphLaunch")
        for work in device.executables[int(graphExec)]:
            device.queue(int(stream), work)
        return (error,)

    def destroy(name: str, alive: dict[int, list[Work]]) -> Callable[[Handle], tuple[Any]]:
        def call(handle: Handle) -> tuple[Any]:
            error = called(name)
            del alive[int(handle)]
            return (error,)

        return call

    def cudaGetLastError() -> tuple[Any]:
        return (called("cudaGetLastError"),)

    return SimpleNamespace(
        cudaError_t=real.cudaError_t,
        cudaMemcpyKind=real.cudaMemcpyKind,
        cudaStreamCaptureMode=real.cudaStreamCaptureMode,
        cudaStreamNonBlocking=real.cudaStreamNonBlocking,
        cudaHostAllocDefault=real.cudaHostAllocDefault,
        cudaGetErrorString=real.cudaGetErrorString,
        cudaGetDeviceCount=cudaGetDeviceCount,
        cudaGetDeviceProperties=cudaGetDeviceProperties,
        cudaDriverGetVersion=lambda: (OK, 13000),
        cudaRuntimeGetVersion=lambda: (OK, 13020),
        cudaMalloc=allocate("cudaMalloc", lambda size: (next(device.numbers), bytearray(b"\xcd" * size))),
        cudaHostAlloc=allocate("cudaHostAlloc", on_host),
        cudaFree=free("cudaFree"),
        cudaFreeHost=free("cudaFreeHost"),
        cudaStreamCreateWithFlags=cudaStreamCreateWithFlags,
        cudaStreamDestroy=cudaStreamDestroy,
        cudaStreamSynchronize=cudaStreamSynchronize,
        cudaMemcpyAsync=cudaMemcpyAsync,
        cudaStreamBeginCapture=cudaStreamBeginCapture,
        cudaStreamEndCapture=cudaStreamEndCapture,
        cudaGraphInstantiate=cudaGraphInstantiate,
        cudaGraphLaunch=cudaGraphLaunch,
        cudaGraphExecDestroy=destroy("cudaGraphExecDestroy", device.executables),
        cudaGraphDestroy=destroy("cudaGraphDestroy", device.graphs),
        cudaGetLastError=cudaGetLastError,
    )
