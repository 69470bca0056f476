"""`sovit compile`."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict

from sovit.artifact import open_artifact
from sovit.commands.result import Result
from sovit.runtime.tensorrt.compile import compile_plan
from sovit.runtime.tensorrt.options import compile_options


def compile_artifact(arguments: argparse.Namespace) -> Result:
    """Compile an artifact for the GPU of this machine."""
    options = compile_options(arguments)
    artifact = open_artifact(arguments.artifact)
    started = time.monotonic()
    compiled = compile_plan(artifact, options)
    seconds = time.monotonic() - started
    plan, parity = compiled.plan, compiled.plan.parity
    agreement = "" if parity.top1_agreement is None else f", top-1 agreement {parity.top1_agreement:.1%}"
    lines = [
        f"plan: {compiled.path} ({compiled.bytes / 1e6:,.1f} MB, {seconds:,.0f} s)",
        f"for {plan.gpu} with TensorRT {plan.tensorrt}, batches of {':'.join(map(str, plan.batch))}",
        f"parity with fp32 torch on {parity.images} images: relative error {parity.relative_error:.2e}, cosine "
        f"{parity.cosine:.7f}{agreement}",
    ]
    data = {"path": str(compiled.path), "bytes": compiled.bytes, "seconds": seconds, "plan": asdict(plan)}
    return Result(data, "\n".join(lines))
