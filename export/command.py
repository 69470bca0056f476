"""`sovit export`."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.graph import Types
from export.reference import calibration_images, reference_images
from export.to_onnx import ExportOptions, export_onnx, from_checkpoint, from_random
from sovit.artifact import OPSETS, parse_batch
from sovit.checkpoint import is_checkpoint
from sovit.commands.result import Result
from sovit.config import parse_image_size, variant_config
from sovit.errors import ConfigError
from sovit.preprocess import Preprocess
from sovit.runtime.open import parity_runtimes
from sovit.runtime.tensorrt.compile import compile_plan
from sovit.runtime.tensorrt.cuda import current_gpu
from sovit.runtime.tensorrt.library import TENSORRT
from sovit.runtime.tensorrt.options import CompileOptions, compile_options


def export(arguments: argparse.Namespace) -> Result:
    """Export a checkpoint, or a variant with random weights."""
    if arguments.opset not in OPSETS:
        raise ConfigError(f"--opset {arguments.opset} cannot be written; known is {', '.join(map(str, OPSETS))}.")
    folder = Path(arguments.source)
    image_size = None if arguments.image_size is None else parse_image_size(arguments.image_size)
    compiling = _compile_options(arguments)
    parity_runtimes(arguments.precision)  # what is missing for the proof is said before the work
    options = ExportOptions(
        precision=arguments.precision,
        batch=ExportOptions.batch if arguments.batch is None else parse_batch(arguments.batch),
        outputs=tuple(arguments.outputs) if arguments.outputs else None,
    )
    name = arguments.name or arguments.out.resolve().name
    if is_checkpoint(folder):
        if arguments.num_classes is not None:
            raise ConfigError("--num-classes is for variants; a checkpoint brings its own head.")
        source = from_checkpoint(folder, name, image_size)
    elif folder.is_dir():
        raise ConfigError(f"{folder} is no checkpoint: config.json is missing.")
    else:
        config = variant_config(
            arguments.source, image_size=image_size or (224, 224), num_classes=arguments.num_classes or 0
        )
        source = from_random(name, config)
    options.spec(source.spec)  # what cannot be asked for is said before the work
    images = reference_images(source.spec.preprocess, arguments.reference)
    calibration = _calibration(arguments, source.spec.preprocess, images)
    artifact = export_onnx(source, arguments.out, images, options, calibration)
    size = sum(file.bytes for file in artifact.manifest.files.values())
    lines = [
        f"artifact: {arguments.out} ({size / 1e6:,.1f} MB, {arguments.precision}, opset {artifact.manifest.opset})"
    ]
    for parity in artifact.manifest.parity:
        agreement = "" if parity.top1_agreement is None else f", top-1 agreement {parity.top1_agreement:.1%}"
        lines.append(
            f"parity of {parity.runtime} with fp32 torch on {parity.images} images: relative error "
            f"{parity.relative_error:.2e}, cosine {parity.cosine:.7f}{agreement}"
        )
    data: dict[str, Any] = {
        "artifact": str(arguments.out),
        "bytes": size,
        "parity": [asdict(each) for each in artifact.manifest.parity],
    }
    if compiling is not None:
        compiled = compile_plan(artifact, compiling)
        lines.append(f"plan: {compiled.path} ({compiled.bytes / 1e6:,.1f} MB) for {compiled.plan.gpu}")
        data |= {"plan": {"path": str(compiled.path), **asdict(compiled.plan)}}
    return Result(data, "\n".join(lines))


def _compile_options(arguments: argparse.Namespace) -> CompileOptions | None:
    """How to compile for `--to tensorrt`. What is missing here for that is said before the work."""
    given = compile_options(arguments)
    if arguments.to == "tensorrt":
        TENSORRT.load()
        current_gpu()
        return given
    if replace(given, batch=None) != CompileOptions():
        raise ConfigError("--workspace-gib, --builder-level and --hardware-compatibility are for --to tensorrt.")
    return None


def _calibration(
    arguments: argparse.Namespace, preprocess: Preprocess, reference_BYXC: NDArray[np.uint8]
) -> list[NDArray[np.uint8]]:
    """Preprocessed images for a quantised precision, none of which is a reference image where there are enough."""
    if not Types.of(arguments.precision).quantized:
        if arguments.calibrate is not None:
            raise ConfigError(f"--calibrate means nothing to {arguments.precision}; it is for quantised precisions.")
        return []
    if arguments.calibrate is None:
        if is_checkpoint(Path(arguments.source)):
            raise ConfigError(f"{arguments.precision} needs real images to find its ranges: give --calibrate IMAGES.")
        return list(reference_BYXC)
    return calibration_images(preprocess, arguments.calibrate, reference_BYXC)
