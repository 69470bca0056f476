"""TensorRT and TensorRT for RTX: run the plan that `sovit compile` made or checked on this machine.

    images -> pinned host memory -> [copy, engine, copy] on the lane's stream -> outputs

Work in brackets is recorded as a CUDA graph for every batch size that is run, and launched with one call afterwards. To
keep the sizes few, a batch is padded to the next power of two. A graph holds the state of the execution context it was
recorded from, so every size has a context of its own; those of a lane share one block of activation memory, since a
lane runs one thing at a time (TensorRT's developer guide, "CUDA Graphs"). Lanes share the engine and its weights.
"""

from __future__ import annotations

import logging
import math
from contextlib import ExitStack, suppress
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sovit.artifact import Artifact, Manifest, TensorInfo
from sovit.errors import ArtifactMismatch, ConfigError, MissingDependency, PlanMismatch, RuntimeFailure
from sovit.preprocess import Images
from sovit.runtime.batches import batch_sizes
from sovit.runtime.tensorrt.cuda import DeviceBuffer, Graph, HostBuffer, Stream, current_gpu
from sovit.runtime.tensorrt.library import TENSORRT, Library, log_of
from sovit.runtime.tensorrt.plan import find_description, find_plan
from sovit.runtime.tensorrt.runtime_cache import RuntimeCache

_logger = logging.getLogger(__name__)
_DTYPES: Final[dict[str, type[np.generic]]] = {"uint8": np.uint8, "float32": np.float32}
_PROFILE: Final = 0  # a plan has one optimisation profile


def open_tensorrt(artifact: Artifact, library: Library = TENSORRT, *, lanes: int = 1) -> list[TensorRtRuntime]:
    """Load the plan that was compiled for an artifact on this machine, once, and give `lanes` lanes of it.

    Raises `MissingDependency` without TensorRT or a GPU, `PlanMismatch` without a plan that fits, and
    `ArtifactMismatch` where the plan's inputs or outputs are not the manifest's.
    """
    trt = library.load()
    _, content = find_plan(artifact, current_gpu(), library.name, trt.__version__)
    return open_plan(artifact, content, library, lanes=lanes)


def is_compiled(artifact: Artifact, library: Library = TENSORRT) -> bool:
    """Whether there is a plan of an artifact that this machine can run."""
    try:
        find_description(artifact, current_gpu(), library.name, library.load().__version__)
    except (MissingDependency, PlanMismatch, RuntimeFailure):
        return False
    return True


def open_plan(
    artifact: Artifact, content: bytes, library: Library = TENSORRT, *, lanes: int = 1, keep_kernels: bool = True
) -> list[TensorRtRuntime]:
    """As `open_tensorrt`, for a plan that has just been built or found.

    Without `keep_kernels` nothing is read from the cache or written to it, until the runtime is told to.
    """
    if lanes < 1:
        raise ConfigError(f"lanes is {lanes}, it must be at least 1.")
    trt = library.load()
    log = log_of(trt)
    log.forget()
    try:
        engine = trt.Runtime(log).deserialize_cuda_engine(content)  # the engine keeps the runtime alive
    except (RuntimeError, TypeError) as error:  # TypeError: TensorRT gave nothing where the bindings need an object
        raise RuntimeFailure(f"{library.title} could not be started: {log.reason()}.") from error
    if engine is None:
        raise PlanMismatch(
            f"{library.title} cannot load the plan of {artifact.folder} ({log.reason()}): run "
            f"`{library.compile_command(artifact.folder)}`."
        )
    kernels = RuntimeCache(trt, library, artifact, engine, keep=keep_kernels) if library.compiles_at_load else None
    with ExitStack() as opened:
        runtimes = []
        for _ in range(lanes):
            runtimes.append(TensorRtRuntime(trt, library, engine, artifact.manifest, kernels))
            opened.callback(runtimes[-1].close)
        opened.pop_all()
        return runtimes


class TensorRtRuntime:
    """One lane: a stream, buffers for the largest batch, and an execution context for each batch size that is run."""

    def __init__(
        self, trt: Any, library: Library, engine: Any, manifest: Manifest, kernels: RuntimeCache | None = None
    ) -> None:
        self.name: str = library.name
        self.precision: str = manifest.precision
        self._trt, self._library, self._engine, self._kernels = trt, library, engine, kernels
        self._input, self._outputs = manifest.inputs[0], manifest.outputs
        _check_tensors(trt, engine, manifest)
        least, usual, most = (tuple(shape) for shape in engine.get_tensor_profile_shape(self._input.name, _PROFILE))
        self.batch: tuple[int, int, int] = least[0], usual[0], most[0]
        self._sizes = batch_sizes(least[0], most[0])
        self._runs: dict[int, _BatchRun] = {}
        self._use_graphs = True
        self._closed = False
        # Whatever is acquired later depends on what came before, and is freed first.
        with ExitStack() as acquired:
            self._stream = Stream()
            acquired.callback(self._stream.close)
            self._host: dict[str, HostBuffer] = {}
            self._device: dict[str, DeviceBuffer] = {}
            for tensor in (self._input, *self._outputs):
                self._host[tensor.name] = host = HostBuffer(_shape(tensor, most[0]), _DTYPES[tensor.dtype])
                acquired.callback(host.close)
                self._device[tensor.name] = device = DeviceBuffer(host.size)
                acquired.callback(device.close)
            self._activations = DeviceBuffer(engine.device_memory_size_v2)
            acquired.callback(self._activations.close)
            self._acquired = acquired.pop_all()

    def run(self, image_BYXC: Images) -> dict[str, NDArray[np.float32]]:
        """See `Runtime.run`. More images than the largest batch are run in pieces."""
        if self._closed:
            raise RuntimeFailure("this TensorRT runtime is closed.")
        images = np.asarray(image_BYXC)
        expected = tuple(self._input.shape[1:])
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            raise RuntimeFailure(
                f"the plan takes uint8 images of shape {list(expected)}, these are {images.dtype} of shape "
                f"{list(images.shape[1:])}."
            )
        most = self._sizes[-1]
        found = {tensor.name: np.empty(_shape(tensor, len(images)), _DTYPES[tensor.dtype]) for tensor in self._outputs}
        for start in range(0, len(images), most):
            piece = images[start : start + most]
            self._run_piece(piece)
            for name, values in found.items():
                values[start : start + len(piece)] = self._host[name].array[: len(piece)]
        return found

    def keep_kernels(self) -> None:
        """Keep what was compiled at run time, from now on, where the library does so."""
        if self._kernels is not None:
            self._kernels.keep = True
            self._kernels.save()

    def close(self) -> None:
        """See `Runtime.close`. The engine is freed with its last lane."""
        if self._closed:
            return
        self._closed = True
        try:
            self._acquired.close()
        finally:
            self._runs.clear()
            del self._engine, self._kernels

    def _run_piece(self, piece_BYXC: NDArray[np.uint8]) -> None:
        """At most the largest batch; the results are in the host buffers when this returns."""
        size = next(size for size in self._sizes if size >= len(piece_BYXC))
        pixels = self._host[self._input.name].array
        pixels[: len(piece_BYXC)] = piece_BYXC
        pixels[len(piece_BYXC) : size] = 0  # no image of an earlier batch is run again as padding
        run = self._runs.get(size)
        if run is None:
            run = _BatchRun(
                self._trt, self._library.title, self._create_context, size, self._device, self._activations,
                self._input, self._stream,
            )  # fmt: skip
            self._acquired.callback(run.close)
            self._runs[size] = run
        if run.graph is not None:
            run.graph.launch()
            self._stream.wait()
            return
        try:
            self._queue(run)
        except RuntimeFailure:
            with suppress(RuntimeFailure):  # what was queued before it still uses the buffers
                self._stream.wait()
            raise
        self._stream.wait()
        if self._use_graphs:
            self._record(run)
        if self._kernels is not None:
            self._kernels.save()

    def _create_context(self) -> Any:
        if self._kernels is not None:
            return self._kernels.create_context()
        return self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)

    def _queue(self, run: _BatchRun) -> None:
        """All work of one batch: pixels to the GPU, the engine, outputs back."""
        name = self._input.name
        self._stream.upload(self._device[name], self._host[name], _bytes(self._input, run.size))
        run.enqueue()
        for tensor in self._outputs:
            self._stream.download(self._host[tensor.name], self._device[tensor.name], _bytes(tensor, run.size))

    def _record(self, run: _BatchRun) -> None:
        """Only after a run of this size: TensorRT finishes a new shape's preparations in its first enqueue."""
        try:
            run.graph = self._stream.capture(lambda: self._queue(run))
        except RuntimeFailure as error:
            self._use_graphs = False
            _logger.warning("TensorRT runs without CUDA graphs, which costs some latency: %s", error)


class _BatchRun:
    """An execution context for one batch size, and its graph once that is recorded."""

    def __init__(
        self,
        trt: Any,
        title: str,
        create_context: Any,
        size: int,
        device: dict[str, DeviceBuffer],
        activations: DeviceBuffer,
        image: TensorInfo,
        stream: Stream,
    ) -> None:
        self.size = size
        self.graph: Graph | None = None
        self._log = log_of(trt)
        self._title = title
        self._stream = stream
        self._log.forget()
        try:
            context = create_context()
            if context is None:
                raise self._failure("gives no execution context")
            if not context.set_optimization_profile_async(_PROFILE, stream.handle):
                raise self._failure("refuses its optimisation profile")
            stream.wait()
            context.set_device_memory(activations.address, activations.size)
            if not context.set_input_shape(image.name, _shape(image, size)):
                raise self._failure(f"refuses a batch of {size}")
            for name, buffer in device.items():
                if not context.set_tensor_address(name, buffer.address):
                    raise self._failure(f"refuses the buffer of {name}")
        except (RuntimeError, TypeError) as error:
            raise self._failure(f"cannot prepare a batch of {size}") from error
        self._context = context

    def enqueue(self) -> None:
        """Queue the engine on the stream."""
        if not self._context.execute_async_v3(self._stream.handle):
            raise self._failure("failed")

    def close(self) -> None:
        """The graph goes before the context it was recorded from."""
        if self.graph is not None:
            self.graph.close()
        del self._context

    def _failure(self, what: str) -> RuntimeFailure:
        return RuntimeFailure(f"{self._title} {what}: {self._log.reason()}.")


def _check_tensors(trt: Any, engine: Any, manifest: Manifest) -> None:
    """A plan of another model than the manifest's is refused when it is loaded, not when it is run."""
    kinds = {trt.DataType.UINT8: "uint8", trt.DataType.FLOAT: "float32"}
    found = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        kind = kinds.get(engine.get_tensor_dtype(name))
        found[name] = (is_input, kind, tuple(engine.get_tensor_shape(name))[1:])
    declared = {
        tensor.name: (is_input, tensor.dtype, tensor.shape[1:])
        for is_input, tensors in ((True, manifest.inputs), (False, manifest.outputs))
        for tensor in tensors
    }
    if found != declared:
        raise ArtifactMismatch(
            f"the plan of {manifest.name} has other inputs or outputs than the manifest declares: run `sovit compile` "
            "on this artifact."
        )


def _shape(tensor: TensorInfo, batch: int) -> tuple[int, ...]:
    return tuple(batch if side == "B" else side for side in tensor.shape)


def _bytes(tensor: TensorInfo, batch: int) -> int:
    return math.prod(_shape(tensor, batch)) * np.dtype(_DTYPES[tensor.dtype]).itemsize
