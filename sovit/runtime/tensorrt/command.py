"""`sovit compile`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import asdict

from sovit.artifact import open_artifact
from sovit.commands.result import Result
from sovit.errors import ConfigError
from sovit.runtime.tensorrt.compile import CompiledPlan, compile_engine, compile_plan, take_engine
from sovit.runtime.tensorrt.library import TENSORRT, TENSORRT_RTX
from sovit.runtime.tensorrt.network import Fusion, Part
from sovit.runtime.tensorrt.options import CompileOptions, compile_options


def compile_artifact(arguments: argparse.Namespace) -> Result:
    """Compile an artifact for the GPU of this machine, or into an engine that travels, or take such an engine."""
    options = compile_options(arguments)
    is_rtx = arguments.library == "rtx"
    if is_rtx and options.hardware_compatibility != "none":
        raise ConfigError(
            "--hardware-compatibility does not apply to --for rtx: name the GPUs with --compute-capability X.Y."
        )
    if arguments.engine is not None:
        if arguments.out is not None or options != CompileOptions():
            raise ConfigError("--from cannot be combined with options for building.")
        artifact = open_artifact(arguments.artifact)
        return _plan(take_engine(artifact, arguments.engine), 0.0)
    if not is_rtx and arguments.out is not None:
        raise ConfigError("--out needs --for rtx: a TensorRT plan is tied to the machine that built it.")
    if options.compute_capabilities and arguments.out is None:
        raise ConfigError("--compute-capability needs --for rtx and --out ENGINE.")
    artifact = open_artifact(arguments.artifact)
    started = time.monotonic()
    if arguments.out is not None:
        engine = compile_engine(artifact, arguments.out, options)
        seconds = time.monotonic() - started
        capabilities = ", ".join(engine.compute_capabilities) or "8.0 and newer"
        lines = [
            f"engine: {arguments.out} ({engine.bytes / 1e6:,.1f} MB, {seconds:,.1f} s)",
            f"for RTX GPUs of compute capability {capabilities} with TensorRT for RTX {engine.tensorrt}, batches of "
            f"{':'.join(map(str, engine.batch))}",
            _attention(engine.attention),
            f"not run yet; on the GPU machine: sovit compile {arguments.artifact} --from {arguments.out}",
        ]
        data = {"path": str(arguments.out), "bytes": engine.bytes, "seconds": seconds, "engine": asdict(engine)}
        return Result(data, "\n".join(lines))
    compiled = compile_plan(artifact, options, TENSORRT_RTX if is_rtx else TENSORRT)
    return _plan(compiled, time.monotonic() - started)


def _plan(compiled: CompiledPlan, seconds: float) -> Result:
    plan, parity = compiled.plan, compiled.plan.parity
    agreement = "" if parity.top1_agreement is None else f", top-1 agreement {parity.top1_agreement:.1%}"
    took = f", {seconds:,.0f} s" if seconds else ""
    lines = [
        f"plan: {compiled.path} ({compiled.bytes / 1e6:,.1f} MB{took})",
        f"for {plan.gpu} with {plan.library} {plan.tensorrt}, batches of {':'.join(map(str, plan.batch))}",
        _attention(plan.attention),
        f"parity with fp32 torch on {parity.images} images: relative error {parity.relative_error:.2e}, cosine "
        f"{parity.cosine:.7f}{agreement}",
    ]
    data = {"path": str(compiled.path), "bytes": compiled.bytes, "seconds": seconds, "plan": asdict(plan)}
    return Result(data, "\n".join(lines))


def _attention(attention: Mapping[Part, Fusion]) -> str:
    """What became of attention, part by part."""
    names: dict[Part, str] = {"blocks": "in the blocks", "map_head": "in the MAP head"}
    return "attention: " + ", ".join(f"{fusion} {names[part]}" for part, fusion in attention.items())
