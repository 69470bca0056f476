"""Checkpoint to artifact: one ONNX graph, proved against eager PyTorch before it is written.

    sovit export runs/demo/checkpoint --to onnx --precision fp32 --out runs/demo/artifact

The graph takes resized uint8 images and normalises them itself; `export/graph.py` writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from export.calibrate import calibrate
from export.graph import OPSET, Types, write_graph
from export.quantize import quantization
from sovit.artifact import (
    GRAPH,
    INPUT,
    REFERENCE,
    Artifact,
    Manifest,
    Precision,
    TensorInfo,
    check_batch,
    file_sha256,
    hash_files,
    output_tensors,
    write_artifact,
    write_manifest,
)
from sovit.checkpoint import WEIGHTS, load_model, read_config
from sovit.config import ViTConfig
from sovit.errors import ConfigError
from sovit.model import LayerScale, ViT
from sovit.parity import measure_parity
from sovit.preprocess import Preprocess
from sovit.runtime.open import open_lanes, parity_runtimes
from sovit.runtime.profile import Setting
from sovit.runtime.pytorch import TorchRuntime
from sovit.spec import ModelSpec

_VERSIONS: Final = ("torch", "onnx", "onnxruntime", "openvino", "numpy")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How to export. `batch` is the least, the usual and the largest batch.

    `outputs` None gives pre_logits and, with a head, logits. Without logits among them the artifact has no head.
    """

    precision: Precision = "fp32"
    batch: tuple[int, int, int] = (1, 8, 64)
    outputs: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_batch(self.batch)

    def spec(self, source: ModelSpec) -> ModelSpec:
        """The model to write: without its head where nobody asks for logits. Raises `ConfigError` for a lack of one."""
        if self.outputs is None:
            return source
        if "logits" in self.outputs and not source.model.num_classes:
            raise ConfigError("this checkpoint has no classification head, so there can be no logits.")
        if "pre_logits" not in self.outputs:
            raise ConfigError("pre_logits must be among the outputs: every embedding is made of them.")
        if "logits" in self.outputs:
            return source
        return replace(source, model=replace(source.model, num_classes=0), labels=())

    def tensors(self, model: ViTConfig) -> tuple[TensorInfo, ...]:
        """The outputs to declare."""
        return output_tensors(model, tokens="tokens" in (self.outputs or ()))


@dataclass(frozen=True)
class Source:
    """A model to export, with what its manifest must say about it."""

    name: str
    model: ViT
    spec: ModelSpec
    sha256: str
    provenance: dict[str, Any]


def from_checkpoint(folder: Path, name: str, image_size: tuple[int, int] | None = None) -> Source:
    """A checkpoint folder as a source, at its own image size (Y, X) or another.

    A graph takes images of one size: for a NaFlex checkpoint without `image_size` this is a `ConfigError`.
    """
    config = read_config(folder)
    if config.preprocess.resize == "naflex" and image_size is None:
        own = "x".join(str(side) for side in config.model.image_size)
        raise ConfigError(
            f"{folder} is a NaFlex checkpoint, whose images keep their aspect ratio, and a graph takes one size: "
            f"give --image-size {own} (its position embedding's own) or another, to which images are squashed."
        )
    return Source(
        name=name,
        model=load_model(folder, image_size=image_size),
        spec=config.at(image_size) if image_size else config,
        sha256=file_sha256(folder / WEIGHTS),
        provenance=config.provenance,
    )


def from_random(name: str, config: ViTConfig, seed: int = 0) -> Source:
    """A model with random weights, to measure what a shape costs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ViT(config).eval()
        if model.head is not None:
            # A head of zeros would make every parity check on the logits trivially true.
            torch.nn.init.normal_(model.head.weight, std=config.width**-0.5)
        for module in model.modules():
            if isinstance(module, LayerScale):
                # Nor may it keep the blocks out of the sum, as it does at the start of training.
                torch.nn.init.ones_(module.gamma)
    labels = tuple(f"class {index}" for index in range(config.num_classes))
    return Source(
        name=name,
        model=model,
        spec=ModelSpec(model=config, preprocess=Preprocess(image_size=config.image_size), labels=labels),
        sha256="",
        provenance={"weights": f"random, seed {seed}: for measurement only"},
    )


def export_onnx(
    source: Source,
    out: Path,
    images_BYXC: NDArray[np.uint8],
    options: ExportOptions | None = None,
    calibration: Sequence[NDArray[np.uint8]] = (),
) -> Artifact:
    """Write an artifact folder, or nothing at all.

    `images_BYXC` are 16 preprocessed real images; they and their fp32 outputs become `reference.npz`. Quantised
    precisions need `calibration` images, preprocessed, and better others. Raises `ConfigError` for weights that are not
    finite, and `ParityError` when a runtime's outputs leave the tolerance.
    """
    options = options or ExportOptions()
    model, spec, precision = source.model, options.spec(source.spec), options.precision
    _check_finite(model)
    outputs = options.tensors(spec.model)
    reference = _reference(model, spec, images_BYXC, outputs)
    with write_artifact(out) as folder:
        weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        weights["pos_embed"] = model.pos_embed.detach().numpy()  # also where it is computed
        ranges: dict[str, float] = {}
        if Types.of(precision).quantized:
            largest = calibrate(model, spec.preprocess, calibration)
            chosen = quantization(spec.model, weights, largest, tokens=outputs[-1].name == "tokens")
            weights, ranges = chosen.weights, chosen.ranges
        write_graph(folder / GRAPH, spec.model, weights, spec.preprocess, precision, outputs, ranges)
        np.savez(folder / REFERENCE, **{"image": images_BYXC, **reference})  # type: ignore[arg-type]
        manifest = Manifest(
            model=spec.model,
            preprocess=spec.preprocess,
            labels=spec.labels,
            score=spec.score,
            name=source.name,
            precision=precision,
            opset=OPSET,
            inputs=(TensorInfo(name=INPUT, dtype="uint8", shape=("B", *spec.model.image_size, 3)),),
            outputs=outputs,
            batch=options.batch,
            files=hash_files(folder),
            checkpoint_sha256=source.sha256,
            versions={package: version(package) for package in _VERSIONS if find_spec(package)},
            parity=(),
            provenance=source.provenance | ({"calibration_images": len(calibration)} if ranges else {}),
        )
        parity = []
        for name in parity_runtimes(precision):
            runtime = open_lanes(Artifact(folder, manifest), Setting(runtime=name))[0]
            parity.append(measure_parity(runtime, images_BYXC, reference).require())
            runtime.close()
        manifest = replace(manifest, parity=tuple(parity))
        write_manifest(folder, manifest)
    return Artifact(out, manifest)


def _reference(
    model: ViT, spec: ModelSpec, images_BYXC: NDArray[np.uint8], outputs: Sequence[TensorInfo]
) -> dict[str, NDArray[np.float32]]:
    """The fp32 outputs of eager torch, in small batches: tokens of a large model are large."""
    runtime = TorchRuntime(model, spec.preprocess, tokens=outputs[-1].name == "tokens")
    parts = [runtime.run(images_BYXC[start : start + 4]) for start in range(0, len(images_BYXC), 4)]
    return {tensor.name: np.concatenate([part[tensor.name] for part in parts]) for tensor in outputs}


def _check_finite(model: ViT) -> None:
    for name, tensor in model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise ConfigError(f"the weight {name} holds values that are not finite; the model cannot be exported.")
