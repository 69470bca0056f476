"""`sovit export`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from export.reference import reference_images
from export.to_onnx import export_onnx, from_checkpoint, from_random
from sovit.checkpoint import is_checkpoint
from sovit.cli import Result
from sovit.config import parse_image_size, variant_config
from sovit.errors import ConfigError


def export(arguments: argparse.Namespace) -> Result:
    """Export a checkpoint, or a variant with random weights."""
    folder = Path(arguments.source)
    image_size = parse_image_size(arguments.image_size) if arguments.image_size else None
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
    console = Console(stderr=True)
    images = reference_images(source.spec.preprocess, arguments.reference)
    with console.status("exporting and checking parity"):
        artifact = export_onnx(source, arguments.out, images, precision=arguments.precision)
    parity = artifact.manifest.parity
    size = sum(file.bytes for file in artifact.manifest.files.values())
    agreement = "" if parity.top1_agreement is None else f", top-1 agreement {parity.top1_agreement:.1%}"
    text = (
        f"artifact: {arguments.out} ({size / 1e6:,.1f} MB, {arguments.precision}, opset {artifact.manifest.opset})\n"
        f"parity with fp32 torch on {parity.images} images: relative error {parity.relative_error:.2e}, "
        f"cosine {parity.cosine:.7f}{agreement}"
    )
    return Result({"artifact": str(arguments.out), "bytes": size, "parity": asdict(parity)}, text)
