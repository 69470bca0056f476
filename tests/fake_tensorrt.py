"""A TensorRT without a GPU: the classes and names that sovit uses, and their rules.

A plan holds the ONNX file, and ONNX Runtime computes it on what lies in the fake device's memory at the addresses that
were set: wrong padding, a wrong address or a copy left out of a graph gives wrong numbers. Broken rules are assertions.
Attributes that the real classes lack cannot be set (`__slots__`); `tests/test_tensorrt.py` compares the names.
"""

from __future__ import annotations

import base64
import enum
import json
import struct
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tests.fake_cuda import FakeDevice

RTX_HEADER_BYTES = 64
STATE_BYTES = 4096  # activation memory of every fake engine


@dataclass
class Behaviour:
    """What should go wrong, and what happened."""

    build_error: str = ""
    load_error: str = ""
    run_error: str = ""
    breaks_captures: bool = False
    factor: float = 1.0
    rename: dict[str, str] = field(default_factory=dict)
    configs: list[Any] = field(default_factory=list)
    flags: list[int] = field(default_factory=list)
    timings: list[bytes] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)
    kernels: list[int] = field(default_factory=list)  # sizes that TensorRT for RTX compiled at run time
    enqueued: list[tuple[int, bool]] = field(default_factory=list)
    alive: Any = field(default_factory=weakref.WeakSet)


class DataType(enum.IntEnum):
    FLOAT = 0
    HALF = 1
    INT32 = 3
    UINT8 = 5


class TensorIOMode(enum.IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class LayerType(enum.IntEnum):
    CONVOLUTION = 0
    ATTENTION_INPUT = 51
    ATTENTION_OUTPUT = 52


class BuilderFlag(enum.IntEnum):
    TF32 = 7


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0


class HardwareCompatibilityLevel(enum.IntEnum):
    NONE = 0
    AMPERE_PLUS = 1
    SAME_COMPUTE_CAPABILITY = 2


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class ExecutionContextAllocationStrategy(enum.IntEnum):
    STATIC = 0
    USER_MANAGED = 2


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def __init__(self) -> None:
        self.ready = True


class IProgressMonitor:
    def __init__(self) -> None:
        self.ready = True


class IHostMemory:
    __slots__ = ("_content",)

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __bytes__(self) -> bytes:  # the real one has the buffer protocol
        return self._content


class IAttention:
    __slots__ = ("decomposable",)

    def __init__(self) -> None:
        self.decomposable = False


class ILayer:
    __slots__ = ("_attention", "type")

    def __init__(self, kind: LayerType, attention: IAttention | None = None) -> None:
        self.type = kind
        self._attention = attention


class IAttentionInputLayer(ILayer):
    __slots__ = ()

    @property
    def attention(self) -> IAttention:
        assert self._attention is not None
        return self._attention


class INetworkDefinition:
    __slots__ = ("_graph", "_layers")

    def __init__(self) -> None:
        self._layers: list[ILayer] = []
        self._graph = b""

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_layer(self, index: int) -> ILayer:
        return self._layers[index]


class IOptimizationProfile:
    __slots__ = ("_shapes",)

    def __init__(self) -> None:
        self._shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:
        assert len(min) == len(opt) == len(max) == 4
        assert min[1:] == opt[1:] == max[1:], "only the batch is dynamic"
        if not min[0] <= opt[0] <= max[0]:
            raise RuntimeError("Shape provided for max is inconsistent with other shapes.")
        self._shapes[input] = (min, opt, max)


class ITimingCache:
    __slots__ = ("_content",)

    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> IHostMemory:
        return IHostMemory(self._content + b"timed ")


class IBuilderConfig:
    __slots__ = (
        "_capabilities", "_cleared", "_pools", "_profiles", "_timings", "builder_optimization_level",
        "hardware_compatibility_level", "num_compute_capabilities", "progress_monitor",
    )  # fmt: skip
    progress_monitor: Any
    num_compute_capabilities: int

    def __init__(self) -> None:
        self._capabilities: list[ComputeCapability] = []
        self._cleared: list[BuilderFlag] = []
        self._pools: dict[MemoryPoolType, int] = {}
        self._profiles: list[IOptimizationProfile] = []
        self._timings: ITimingCache | None = None

    def set_compute_capability(self, compute_capability: ComputeCapability, index: int) -> bool:
        assert index == len(self._capabilities) < self.num_compute_capabilities
        self._capabilities.append(compute_capability)
        return True

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._cleared.append(flag)

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        assert type(pool_size) is int
        self._pools[pool] = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        assert type(serialized_timing_cache) is bytes
        return None if serialized_timing_cache.startswith(b"garbage") else ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        if cache._content.startswith(b"another GPU"):
            return False
        self._timings = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._timings


class ComputeCapability(enum.IntEnum):
    SM75 = 75
    SM80 = 80
    SM89 = 89
    SM120 = 120


class CudaGraphStrategy(enum.IntEnum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(enum.IntEnum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class IRuntimeCache:
    """Kernels by the batch sizes they were made for; a blob of another machine is refused."""

    __slots__ = ("kernels",)

    def __init__(self) -> None:
        self.kernels: set[int] = set()

    def deserialize(self, blob: bytes) -> bool:
        assert type(blob) is bytes
        if not blob.startswith(b"kernels "):
            return False
        self.kernels = {int(word) for word in blob.split()[1:]}
        return True

    def serialize(self) -> IHostMemory:
        return IHostMemory(b"kernels " + b" ".join(b"%d" % size for size in sorted(self.kernels)))


class IRuntimeConfig:
    __slots__ = ("_cache", "_strategy", "cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy")
    cuda_graph_strategy: Any
    dynamic_shapes_kernel_specialization_strategy: Any

    def __init__(self) -> None:
        self._cache: IRuntimeCache | None = None
        self._strategy = ExecutionContextAllocationStrategy.STATIC

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self._strategy = strategy


class _Context:
    __slots__ = (
        "__weakref__", "_addresses", "_behaviour", "_device", "_engine", "_enqueued", "_kernels", "_memory", "_profile",
        "_shape",
    )  # fmt: skip

    def __init__(self, engine: _Engine, kernels: IRuntimeCache | None) -> None:
        self._kernels = kernels
        self._engine, self._device, self._behaviour = engine, engine._device, engine._behaviour
        self._addresses: dict[str, int] = {}
        self._memory: tuple[int, int] | None = None
        self._profile: int | None = None
        self._shape: tuple[int, ...] | None = None
        self._enqueued = False
        self._behaviour.alive.add(self)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert type(stream_handle) is int
        assert profile_index == 0
        self._device.queue(stream_handle, lambda: None)
        self._profile = profile_index
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        assert self._profile is not None
        assert size >= STATE_BYTES
        self._memory = (memory, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._engine.get_tensor_profile_shape(name, 0)
        assert not self._enqueued, "a context that a graph was recorded from must not change"
        if not (shape[1:] == least[1:] and least[0] <= shape[0] <= most[0]):
            return False
        self._shape = shape
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert type(memory) is int
        self._addresses[name] = memory
        return name in self._engine._tensors

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert type(stream_handle) is int
        assert self._shape is not None, "no input shape"
        assert self._memory is not None, "no activation memory"
        assert self._addresses.keys() == self._engine._tensors.keys(), "an address is missing"
        capturing = stream_handle in self._device.captures
        assert self._enqueued or not capturing, "the first enqueue of a shape cannot be captured"
        self._enqueued = True
        if self._kernels is not None and self._shape[0] not in self._kernels.kernels:
            self._kernels.kernels.add(self._shape[0])
            self._behaviour.kernels.append(self._shape[0])
        self._behaviour.enqueued.append((self._shape[0], capturing))
        if self._behaviour.run_error or (capturing and self._behaviour.breaks_captures):
            if capturing:
                self._device.broken_captures.add(stream_handle)
            self._engine._log.log(ILogger.Severity.ERROR, self._behaviour.run_error or "it cannot be captured")
            return False
        shape, addresses, memory, engine = self._shape, dict(self._addresses), self._memory, self._engine
        device, own = self._device, weakref.ref(self)

        def work() -> None:
            assert own() is not None, "the context is gone"
            device.read(*memory)
            size = int(np.prod(shape))
            images = np.frombuffer(device.read(addresses[engine._input], size), np.uint8).reshape(shape)
            for name, values in engine._compute(images).items():
                device.write(addresses[name], values.tobytes())

        self._device.queue(stream_handle, work)
        return True


class _Engine:
    __slots__ = (
        "__weakref__", "_behaviour", "_device", "_factor", "_input", "_log", "_profile", "_rename", "_session",
        "_tensors",
    )  # fmt: skip

    def __init__(self, log: Any, device: FakeDevice, behaviour: Behaviour, plan: dict[str, Any]) -> None:
        self._log, self._device, self._behaviour = log, device, behaviour
        self._session = onnxruntime.InferenceSession(base64.b64decode(plan["graph"]))
        self._factor = plan["factor"]
        self._rename = behaviour.rename
        self._input: str = plan["input"]
        self._profile = [tuple(shape) for shape in plan["profile"]]
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self._tensors = {
            self._rename.get(node.name, node.name): (mode, dtype, (-1, *node.shape[1:]))
            for mode, dtype, nodes in (
                (TensorIOMode.INPUT, DataType.UINT8, inputs),
                (TensorIOMode.OUTPUT, DataType.FLOAT, outputs),
            )
            for node in nodes
        }
        behaviour.alive.add(self)

    def _compute(self, images: Any) -> dict[str, Any]:
        """What ONNX Runtime computes, times a factor to be wrong by."""
        names = [node.name for node in self._session.get_outputs()]
        found = self._session.run(names, {self._input: images})
        return {name: values * np.float32(self._factor) for name, values in zip(names, found, strict=True)}

    @property
    def device_memory_size_v2(self) -> int:
        return STATE_BYTES

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return str(list(self._tensors)[index])

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self._tensors[name][0]

    def get_tensor_dtype(self, name: str) -> DataType:
        return self._tensors[name][1]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name][2]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert name == self._input
        assert profile_index == 0
        return list(self._profile)

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, strategy: Any) -> _Context:
        kernels = None
        if isinstance(strategy, IRuntimeConfig):
            assert strategy.cuda_graph_strategy == CudaGraphStrategy.DISABLED
            eager = DynamicShapesKernelSpecializationStrategy.EAGER
            assert strategy.dynamic_shapes_kernel_specialization_strategy == eager
            kernels, strategy = strategy._cache, strategy._strategy
            assert kernels is not None
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        self._behaviour.contexts.append(len(self._behaviour.contexts))
        return _Context(self, kernels)


def fake_tensorrt(device: FakeDevice, behaviour: Behaviour, version: str, *, rtx: bool = False) -> Any:
    """The module `tensorrt` of a version, or `tensorrt_rtx`, on a device."""

    class Builder:
        __slots__ = ("_log",)

        def __init__(self, logger: Any) -> None:
            assert logger.ready, "ILogger.__init__ was not called"
            self._log = logger

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            behaviour.flags.append(flags)
            return INetworkDefinition()

        def create_builder_config(self) -> IBuilderConfig:
            behaviour.configs.append(IBuilderConfig())
            return behaviour.configs[-1]  # type: ignore[no-any-return]

        def create_optimization_profile(self) -> IOptimizationProfile:
            return IOptimizationProfile()

        def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
            if not _walk(config.progress_monitor, behaviour):
                return None
            if error := behaviour.build_error:
                self._log.log(ILogger.Severity.WARNING, "memory is short")
                self._log.log(ILogger.Severity.ERROR, f"IBuilder::buildSerializedNetwork: {error}\nmore of it")
                return None
            (profile,) = config._profiles
            ((name, shapes),) = profile._shapes.items()
            if not rtx:
                assert config._timings is not None
                behaviour.timings.append(config._timings._content)
            graph = base64.b64encode(network._graph).decode()
            plan = {"graph": graph, "input": name, "profile": shapes, "factor": behaviour.factor, "version": version}
            content = json.dumps(plan).encode()
            return IHostMemory(rtx_header(content, version) + content if rtx else content)

    class OnnxParser:
        __slots__ = ("_log", "_network")

        def __init__(self, network: INetworkDefinition, logger: Any) -> None:
            self._network, self._log = network, logger

        def parse_from_file(self, model: str) -> bool:
            assert type(model) is str
            graph = onnx.load(model)
            assert Path(model).is_file()
            self._network._graph = graph.SerializeToString()
            self._network._layers = [ILayer(LayerType.CONVOLUTION)]
            for node in graph.graph.node:
                if node.op_type == "Attention":
                    attention = IAttention()
                    self._network._layers.append(ILayer(LayerType.ATTENTION_INPUT, attention))
                    self._network._layers.append(ILayer(LayerType.ATTENTION_OUTPUT))
            return True

    class Runtime:
        __slots__ = ("_log",)

        def __init__(self, logger: Any) -> None:
            assert logger.ready
            self._log = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> _Engine | None:
            plan = json.loads(serialized_engine[RTX_HEADER_BYTES if rtx else 0 :])
            if behaviour.load_error or plan["version"] != version:
                self._log.log(ILogger.Severity.ERROR, behaviour.load_error or "the plan is of another version")
                return None
            return _Engine(self._log, device, behaviour, plan)

    class Module:
        """Nothing can be asked of it that is not here."""

        __version__ = version

    shared = (
        DataType, TensorIOMode, LayerType, BuilderFlag, MemoryPoolType, HardwareCompatibilityLevel,
        NetworkDefinitionCreationFlag, ExecutionContextAllocationStrategy, ILogger, IProgressMonitor,
        IAttentionInputLayer, Builder, OnnxParser, Runtime,
        *((ComputeCapability, CudaGraphStrategy, DynamicShapesKernelSpecializationStrategy) if rtx else ()),
    )  # fmt: skip
    for part in shared:
        setattr(Module, part.__name__, part)
    return Module


def rtx_header(content: bytes, version: str) -> bytes:
    """The header of an engine as TensorRT for RTX writes it."""
    numbers = [int(part) for part in version.split(".")]
    head = struct.pack("<4s4x8xQ4B", b"vtrt", len(content) + RTX_HEADER_BYTES, *numbers)
    return head.ljust(RTX_HEADER_BYTES, b"\0")


def _walk(monitor: Any, behaviour: Behaviour) -> bool:
    """The phases of a build as TensorRT reports them; False when the monitor cancels it."""
    assert monitor.ready, "IProgressMonitor.__init__ was not called"
    monitor.phase_start("Building engine", None, 2)
    monitor.phase_start("Tactic selection", "Building engine", 4)
    for step in range(3):  # phases may end before their last step
        if not monitor.step_complete("Tactic selection", step):
            return False
    monitor.phase_finish("Tactic selection")
    go_on: bool = monitor.step_complete("Building engine", 0) and monitor.step_complete("Building engine", 1)
    monitor.phase_finish("Building engine")
    return go_on
