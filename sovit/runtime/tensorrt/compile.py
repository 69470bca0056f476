"""Compile an artifact into an engine: a plan for the GPU of this machine, or an engine that travels.

    model.onnx -> parse -> build (minutes) -> plan in the cache -> parity on the artifact's reference -> description

TensorRT only compiles what the ONNX file says: the network is strongly typed, so precision is decided there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sovit.artifact import Artifact
from sovit.cache import cache_folder, write_whole
from sovit.errors import ConfigError, PlanMismatch, RuntimeFailure
from sovit.parity import Parity, measure_parity
from sovit.runtime.tensorrt.cuda import Gpu, current_gpu
from sovit.runtime.tensorrt.engine_folder import (
    EngineDescription,
    check_engine_folder,
    read_engine,
    require_fit,
    write_engine,
)
from sovit.runtime.tensorrt.library import TENSORRT, TENSORRT_RTX, Library, log_of
from sovit.runtime.tensorrt.monitor import build_monitor, interrupts_cancel, quiet
from sovit.runtime.tensorrt.network import AttentionPlan, Fusion, Part, attention_plans, model_parts, parse
from sovit.runtime.tensorrt.options import CompileOptions
from sovit.runtime.tensorrt.plan import (
    HardwareCompatibility,
    Plan,
    bytes_sha256,
    file_name,
    plan_path,
    since_ampere,
    write_plan,
)
from sovit.runtime.tensorrt.runtime import open_plan

_ABOUT_ATTENTION: Final = re.compile("attention|decompos|implementation", re.IGNORECASE)
_FP8_CAPABILITIES: Final = ("8.9", "12.0", "12.1")  # of those that TensorRT for RTX builds for
_WRONG_TYPE: Final = re.compile(r"Cannot compile for target\(s\) ([^,]*),.*datatypes: fp8_e4m3")
_OLDEST_CAPABILITY: Final = (8, 0)  # 7.5 has neither bf16 nor the float32 products of a head


@dataclass(frozen=True, kw_only=True)
class CompiledPlan:
    """A plan that lies in the cache and passed its parity check; `bytes` is its size."""

    path: Path
    bytes: int
    plan: Plan


@dataclass(frozen=True)
class Engine:
    """What the builder made: the engine, and what became of the attention of each part of the model."""

    content: bytes
    attention: dict[Part, Fusion]


def compile_plan(
    artifact: Artifact, options: CompileOptions | None = None, library: Library = TENSORRT
) -> CompiledPlan:
    """Build the plan of an artifact for this machine's GPU, check its parity there and keep it in the cache.

    Takes minutes. Raises `MissingDependency` without the library or a GPU, `RuntimeFailure` with its reason where it
    cannot build, and `ParityError` where the plan computes something else; an older plan is then still there.
    """
    options = options or CompileOptions()
    trt = library.load()
    gpu = current_gpu()
    if options.hardware_compatibility == "ampere_plus" and not since_ampere(gpu):
        raise ConfigError(f"a plan for Ampere and newer cannot be built on {gpu.name}: leave ampere_plus out.")
    here = (gpu.compute_capability,) if library.builds_anywhere and gpu.compute_capability in _known(trt) else ()
    engine = build_engine(trt, library, artifact, options, gpu=gpu, capabilities=here)
    return _keep(
        library, artifact, engine.content, gpu, batch=options.batch or artifact.manifest.batch,
        builder_level=options.builder_level, attention=engine.attention,
        hardware_compatibility=options.hardware_compatibility, workspace_gib=options.workspace_gib,
    )  # fmt: skip


def compile_engine(artifact: Artifact, out: Path, options: CompileOptions | None = None) -> EngineDescription:
    """Build an engine for RTX GPUs into a folder that may be taken to them. Needs no GPU.

    Raises `MissingDependency` without TensorRT for RTX, `ConfigError` for a compute capability that it does not build
    for, and `RuntimeFailure` with its reason where it cannot build; the folder is then as it was.
    """
    options = options or CompileOptions()
    library = TENSORRT_RTX
    trt = library.load()
    capabilities = options.compute_capabilities
    if not capabilities and artifact.manifest.precision == "fp8-bf16":
        capabilities = _FP8_CAPABILITIES
    _check_capabilities(trt, capabilities)
    check_engine_folder(out)
    engine = build_engine(trt, library, artifact, options, capabilities=capabilities)
    description = EngineDescription(
        artifact_sha256=artifact.sha256,
        name=artifact.manifest.name,
        precision=artifact.manifest.precision,
        engine_sha256=bytes_sha256(engine.content),
        bytes=len(engine.content),
        library=library.name,
        tensorrt=trt.__version__,
        compute_capabilities=capabilities,
        batch=options.batch or artifact.manifest.batch,
        builder_level=options.builder_level,
        attention=engine.attention,
    )
    write_engine(out, engine.content, description)
    return description


def take_engine(artifact: Artifact, folder: Path) -> CompiledPlan:
    """Check an engine that was built elsewhere for an artifact, and keep it as the plan of this machine's GPU.

    Raises `PlanMismatch` for a folder that is damaged, or made for another artifact, version or GPU: the engine is not
    loaded then. Raises `ParityError` where it computes something else than the artifact.
    """
    content, engine = read_engine(folder, artifact)
    library = TENSORRT_RTX
    trt, gpu = library.load(), current_gpu()
    require_fit(folder, engine, artifact, trt.__version__, gpu)
    return _keep(
        library, artifact, content, gpu, batch=engine.batch, builder_level=engine.builder_level,
        attention=engine.attention,
    )  # fmt: skip


def _keep(
    library: Library,
    artifact: Artifact,
    content: bytes,
    gpu: Gpu,
    *,
    batch: tuple[int, int, int],
    builder_level: int,
    attention: dict[Part, Fusion],
    hardware_compatibility: HardwareCompatibility = "none",
    workspace_gib: float | None = None,
) -> CompiledPlan:
    """Check an engine's parity on this GPU, then keep it as its plan."""
    version = library.load().__version__
    plan = Plan(
        artifact_sha256=artifact.sha256,
        plan_sha256=bytes_sha256(content),
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        library=library.name,
        tensorrt=version,
        hardware_compatibility=hardware_compatibility,
        batch=batch,
        workspace_gib=workspace_gib,
        builder_level=builder_level,
        attention=attention,
        parity=_parity(artifact, content, library, batch),
    )
    path = plan_path(artifact.sha256, gpu, library.name, version, hardware_compatibility)
    write_plan(path, content, plan)
    return CompiledPlan(path=path, bytes=len(content), plan=plan)


def _parity(artifact: Artifact, content: bytes, library: Library, batch: tuple[int, int, int]) -> Parity:
    """The plan's outputs for the reference images, run as a service would run them.

    What is compiled meanwhile is kept only if they are right.
    """
    images, reference = artifact.reference()
    (runtime,) = open_plan(artifact, content, library, keep_kernels=False)
    try:
        if runtime.batch != batch:
            raise PlanMismatch(
                f"the engine takes batches of {':'.join(map(str, runtime.batch))}, and is said to take "
                f"{':'.join(map(str, batch))}."
            )
        parity = measure_parity(runtime, images, reference).require()
        runtime.keep_kernels()
        return parity
    finally:
        runtime.close()


def build_engine(
    trt: Any,
    library: Library,
    artifact: Artifact,
    options: CompileOptions,
    *,
    gpu: Gpu | None = None,
    capabilities: tuple[str, ...] = (),
) -> Engine:
    """Parse and build, for this GPU or for compute capabilities (none: the library's default).

    Attention is fused where there is a kernel: plans are tried from the best on, until one builds. Raises
    `RuntimeFailure` with the library's own reason.
    """
    log = log_of(trt)
    plans = attention_plans(artifact)
    for plan in plans:
        log.forget()
        with nullcontext() if plan is plans[-1] else quiet():
            content = _build(trt, library, artifact, options, plan, gpu, capabilities)
        if content is not None:
            return Engine(content, {part: plan.of(part) for part in model_parts(artifact)})
        if not (plan.fp8 or _ABOUT_ATTENTION.search(log.errors() or log.reason())):
            break
    raise RuntimeFailure(_why_not(library, artifact, log))


def _build(
    trt: Any,
    library: Library,
    artifact: Artifact,
    options: CompileOptions,
    plan: AttentionPlan,
    gpu: Gpu | None,
    capabilities: tuple[str, ...],
) -> bytes | None:
    """One build; None where the builder refuses, and has said why to its log."""
    log = log_of(trt)
    batch = options.batch or artifact.manifest.batch
    with _border(f"{library.title} cannot compile {artifact.folder}", log):
        builder = trt.Builder(log)
        # 10.x needs the flag; 11.x and TensorRT for RTX know nothing else, and ignore it.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        kept = parse(trt, library, network, artifact, plan)
        config = builder.create_builder_config()
        profile = builder.create_optimization_profile()
        for tensor in artifact.manifest.inputs:
            shapes = [tuple(size if side == "B" else side for side in tensor.shape) for size in batch]
            profile.set_shape(tensor.name, *shapes)
        if config.add_optimization_profile(profile) < 0:
            raise RuntimeFailure(f"{library.title} refuses batches of {':'.join(map(str, batch))}: {log.reason()}.")
        _configure(trt, library, config, options)
        for index, capability in enumerate(capabilities):
            config.num_compute_capabilities = len(capabilities)
            if not config.set_compute_capability(_capability(trt, capability), index):
                raise RuntimeFailure(f"{library.title} refuses compute capability {capability}: {log.reason()}.")
        timings = None
        if gpu is not None and not library.builds_anywhere:
            timings = cache_folder("timings") / f"{file_name(gpu.name)}-{library.name}-{trt.__version__}.cache"
            _load_timings(config, timings)
        with build_monitor(trt) as monitor, interrupts_cancel(monitor):
            config.progress_monitor = monitor
            content = builder.build_serialized_network(network, config)
        del kept
        if monitor.interrupted:
            raise KeyboardInterrupt
        if content is not None and timings is not None:
            write_whole(timings, bytes(config.get_timing_cache().serialize()))
        return None if content is None else bytes(content)


def _why_not(library: Library, artifact: Artifact, log: Any) -> str:
    """Why nothing was built, and what would do, where that is known."""
    if (wrong := _WRONG_TYPE.search(log.errors())) is not None:
        return (
            f"{library.title} cannot compile {artifact.folder} for compute capability {_capability_names(wrong[1])}, "
            "which has no fp8: export it as int8-bf16, or leave that GPU out."
        )
    return f"{library.title} cannot compile {artifact.folder}: {log.reason()}."


def _capability_names(targets: str) -> str:
    """`sm80 sm75` to `8.0, 7.5`."""
    return ", ".join(f"{number[:-1]}.{number[-1]}" for number in re.findall(r"sm(\d+)", targets))


def _capability(trt: Any, capability: str) -> Any:
    return getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}")


def _known(trt: Any) -> list[str]:
    """The compute capabilities that TensorRT for RTX builds for, of those that have what our graphs need."""
    return [
        f"{name[2:-1]}.{name[-1]}"
        for name in sorted(trt.ComputeCapability.__members__, key=lambda name: (len(name), name))
        if name.startswith("SM") and (int(name[2:-1]), int(name[-1])) >= _OLDEST_CAPABILITY
    ]


def _check_capabilities(trt: Any, capabilities: tuple[str, ...]) -> None:
    known = _known(trt)
    for capability in capabilities:
        if capability not in known:
            raise ConfigError(
                f"--compute-capability {capability} is not supported: TensorRT for RTX {trt.__version__} builds for "
                f"{', '.join(known)}."
            )


def _configure(trt: Any, library: Library, config: Any, options: CompileOptions) -> None:
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: float32 products would keep 10 bits of 23
    config.builder_optimization_level = options.builder_level
    if not library.builds_anywhere:  # there the GPUs are named instead
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
