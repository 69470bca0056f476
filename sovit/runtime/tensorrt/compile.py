"""Compile an artifact into a TensorRT plan for the GPU of this machine.

    model.onnx -> parse -> build (minutes) -> plan in the cache -> parity on the artifact's reference -> description

TensorRT only compiles what the ONNX file says: the network is strongly typed, so precision is decided there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sovit.artifact import Artifact
from sovit.cache import cache_folder, write_whole
from sovit.errors import ConfigError, RuntimeFailure
from sovit.parity import Parity, measure_parity
from sovit.progress import progress
from sovit.runtime.tensorrt.cuda import Gpu, current_gpu
from sovit.runtime.tensorrt.options import CompileOptions
from sovit.runtime.tensorrt.plan import (
    Plan,
    bytes_sha256,
    file_name,
    plan_path,
    since_ampere,
    write_plan,
)
from sovit.runtime.tensorrt.runtime import load_tensorrt, open_plan, tensorrt_log


@dataclass(frozen=True, kw_only=True)
class CompiledPlan:
    """A plan that lies in the cache and passed its parity check; `bytes` is its size."""

    path: Path
    bytes: int
    plan: Plan


def compile_plan(artifact: Artifact, options: CompileOptions | None = None) -> CompiledPlan:
    """Build the plan of an artifact for this machine's GPU, check its parity there and keep it in the cache.

    Takes minutes. Raises `MissingDependency` without TensorRT or a GPU, `RuntimeFailure` with TensorRT's reason where
    it cannot build, and `ParityError` where the plan computes something else; an older plan is then still there.
    """
    options = options or CompileOptions()
    trt = load_tensorrt()
    gpu = current_gpu()
    if options.hardware_compatibility == "ampere_plus" and not since_ampere(gpu):
        raise ConfigError(f"a plan for Ampere and newer cannot be built on {gpu.name}: leave ampere_plus out.")
    batch = options.batch or artifact.manifest.batch
    content = _build(trt, artifact, options, batch, gpu)
    path = plan_path(artifact.sha256, gpu, trt.__version__, options.hardware_compatibility)
    plan = Plan(
        artifact_sha256=artifact.sha256,
        plan_sha256=bytes_sha256(content),
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        tensorrt=trt.__version__,
        hardware_compatibility=options.hardware_compatibility,
        batch=batch,
        workspace_gib=options.workspace_gib,
        builder_level=options.builder_level,
        parity=_parity(artifact, content),
    )
    write_plan(path, content, plan)
    return CompiledPlan(path=path, bytes=len(content), plan=plan)


def _parity(artifact: Artifact, content: bytes) -> Parity:
    """The plan's outputs for the reference images, run as a service would run them."""
    images, reference = artifact.reference()
    (runtime,) = open_plan(artifact, content)
    try:
        return measure_parity(runtime, images, reference).require()
    finally:
        runtime.close()


def _build(trt: Any, artifact: Artifact, options: CompileOptions, batch: tuple[int, int, int], gpu: Gpu) -> bytes:
    """Parse and build. Raises `RuntimeFailure` with TensorRT's own reason."""
    log = tensorrt_log(trt)
    log.forget()
    with _border(f"TensorRT cannot compile {artifact.folder}", log):
        builder = trt.Builder(log)
        # 10.x needs the flag; 11.x knows nothing else, and ignores it.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)  # owns what it parsed: alive until the build is done
        _parse(parser, artifact)
        _let_attention_fall_apart(trt, network)
        config = builder.create_builder_config()
        profile = builder.create_optimization_profile()
        for tensor in artifact.manifest.inputs:
            shapes = [tuple(size if side == "B" else side for side in tensor.shape) for size in batch]
            profile.set_shape(tensor.name, *shapes)
        if config.add_optimization_profile(profile) < 0:
            raise RuntimeFailure(f"TensorRT refuses batches of {':'.join(map(str, batch))}: {log.reason()}.")
        _configure(trt, config, options)
        timings = cache_folder("timings") / f"{file_name(gpu.name)}-tensorrt-{trt.__version__}.cache"
        _load_timings(config, timings)
        with _monitor(trt) as monitor:
            config.progress_monitor = monitor
            plan = builder.build_serialized_network(network, config)
        if monitor.interrupted:
            raise KeyboardInterrupt
        if plan is None:
            raise RuntimeFailure(f"TensorRT cannot compile {artifact.folder}: {log.reason()}.")
        write_whole(timings, bytes(config.get_timing_cache().serialize()))
        return bytes(plan)


def _parse(parser: Any, artifact: Artifact) -> None:
    """Weights outside the ONNX file are found beside it."""
    if parser.parse_from_file(str(artifact.graph)):
        return
    errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
    first = (errors[0].strip().splitlines() or [""])[0].rstrip(".") if errors else "it gave no reason"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    raise RuntimeFailure(f"TensorRT cannot read {artifact.graph}: {first}{more}.")


def _let_attention_fall_apart(trt: Any, network: Any) -> None:
    """Allow attention without a fused kernel, as in float32 or for an odd head size, where TensorRT would give up.

    Where there is a fused kernel it is still taken. The parser sets this by an attribute that ONNX does not know.
    """
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # get_layer gives the base class
            layer.attention.decomposable = True


def _configure(trt: Any, config: Any, options: CompileOptions) -> None:
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: float32 products would keep 10 bits of 23
    config.builder_optimization_level = options.builder_level
    config.hardware_compatibility_level = {
        "none": trt.HardwareCompatibilityLevel.NONE,
        "same_compute_capability": trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY,
        "ampere_plus": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
    }[options.hardware_compatibility]
    if options.workspace_gib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace_gib * 2**30))


def _load_timings(config: Any, path: Path) -> None:
    """What earlier builds measured; a file that does not fit this GPU or TensorRT is left out and written anew."""
    for content in (path.read_bytes() if path.is_file() else b"", b""):
        timings = config.create_timing_cache(content)
        if timings is not None and config.set_timing_cache(timings, False):
            return
    raise RuntimeFailure("TensorRT gives no timing cache, not even an empty one.")


@contextmanager
def _border(what: str, log: Any) -> Iterator[None]:
    """The bindings raise RuntimeError, and TypeError where TensorRT gave nothing and they need an object."""
    try:
        yield
    except (RuntimeError, TypeError) as error:
        raise RuntimeFailure(f"{what}: {log.reason()}.") from error


@contextmanager
def _monitor(trt: Any) -> Iterator[Any]:
    """A progress monitor that shows a bar for each phase at the top, and cancels the build on an interrupt.

    TensorRT calls it from several threads, and nothing may be raised into it.
    """
    guard = threading.Lock()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self, shown: ExitStack) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._phases = _Phases(lambda name: shown.enter_context(progress(name, _Phases.TOTAL)), shown.close)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._guarded(lambda: self._phases.start(phase_name, parent_phase, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._guarded(lambda: self._phases.step(phase_name, step))
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            self._guarded(lambda: self._phases.finish(phase_name))

        def _guarded(self, show: Callable[[], None]) -> None:
            try:
                with guard:
                    show()
            except KeyboardInterrupt:
                self.interrupted = True
            except Exception:  # a bar that cannot be drawn must not end minutes of work
                self._phases.hide()

    with ExitStack() as shown:
        yield Monitor(shown)


class _Phases:
    """Nested phases as the progress of the one at the top, in parts of `TOTAL`.

    A phase fills the step of its parent that is under way when it starts.
    """

    TOTAL: Final = 1000

    def __init__(self, show: Callable[[str], Callable[[int], None]], end: Callable[[], None]) -> None:
        self._show, self._end = show, end
        self._advance: Callable[[int], None] | None = None
        self._top = ""
        self._done = 0
        self._hidden = False
        self._spans: dict[str, tuple[float, float, int, int]] = {}  # begin, length, steps, steps done

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Open the bar of a phase at the top, or find a nested one its part."""
        if self._hidden:
            return
        if parent in self._spans:
            begin, length, count, done = self._spans[parent]
            step = length / max(1, count)
            self._spans[name] = (begin + step * min(done, count - 1), step, steps, 0)
        elif self._advance is None:
            self._top, self._done = name, 0
            self._spans[name] = (0.0, 1.0, steps, 0)
            self._advance = self._show(name)

    def step(self, name: str, step: int) -> None:
        """Step `step`, counted from 0, of a phase is done."""
        if name not in self._spans or self._advance is None:
            return
        begin, length, count, _ = self._spans[name]
        self._spans[name] = (begin, length, count, step + 1)
        reached = int(self.TOTAL * min(1.0, begin + length * (step + 1) / max(1, count)))
        if reached > self._done:
            self._advance(reached - self._done)
            self._done = reached

    def finish(self, name: str) -> None:
        """Close the bar with its phase; phases may end before their last step."""
        self._spans.pop(name, None)
        if name == self._top and self._advance is not None:
            self._advance, self._top = None, ""
            self._spans.clear()
            self._end()

    def hide(self) -> None:
        """Show nothing any more."""
        self._hidden = True
        self._advance = None
        self._spans.clear()
