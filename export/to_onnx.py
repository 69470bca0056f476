"""Checkpoint to artifact: one ONNX graph, proved against eager PyTorch before it is written.

    sovit export runs/demo/checkpoint --to onnx --precision fp32 --out runs/demo/artifact

The graph takes resized uint8 images and normalises them itself. Opset 23 has `Attention` and `Gelu` as single
operators, which keeps a transformer block at about 25 nodes and lets a runtime fuse what it knows.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from sovit.artifact import (
    GRAPH,
    REFERENCE,
    Artifact,
    Manifest,
    Precision,
    TensorInfo,
    file_sha256,
    hash_files,
    write_artifact,
    write_manifest,
)
from sovit.checkpoint import WEIGHTS, load_model, read_config
from sovit.config import ViTConfig
from sovit.cost import cost
from sovit.errors import ConfigError
from sovit.model import ViT
from sovit.parity import measure_parity
from sovit.preprocess import Preprocess
from sovit.runtime.ort import OnnxRuntime
from sovit.runtime.pytorch import Graph, TorchRuntime
from sovit.spec import ModelSpec

OPSET: Final = 23
INPUT: Final = "image"
MAX_BATCH: Final = 1024
# protobuf stops at 2 GiB; weights in a file of their own are also mapped instead of copied.
EXTERNAL_DATA_BYTES: Final = 2**30


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
    labels = tuple(f"class {index}" for index in range(config.num_classes))
    return Source(
        name=name,
        model=model,
        spec=ModelSpec(model=config, preprocess=Preprocess(image_size=config.image_size), labels=labels),
        sha256="",
        provenance={"weights": f"random, seed {seed}: for measurement only"},
    )


def export_onnx(
    source: Source, out: Path, images_BYXC: NDArray[np.uint8], *, precision: Precision = "fp32"
) -> Artifact:
    """Write an artifact folder, or nothing at all.

    `images_BYXC` are 16 preprocessed real images; they and their fp32 outputs become `reference.npz`. Raises
    `ConfigError` for weights that are not finite and `ParityError` when ONNX Runtime's outputs leave the tolerance.
    """
    _check_finite(source.model)
    graph = Graph(source.model, source.spec.preprocess).eval()
    reference = TorchRuntime(source.model, source.spec.preprocess).run(images_BYXC)
    with write_artifact(out) as folder:
        _write_graph(graph, folder / GRAPH, images_BYXC[:2], source.spec.model)
        np.savez(folder / REFERENCE, **{"image": images_BYXC, **reference})  # type: ignore[arg-type]
        inputs = (TensorInfo(name=INPUT, dtype="uint8", shape=("B", *source.spec.model.image_size, 3)),)
        outputs = tuple(
            TensorInfo(name=name, dtype="float32", shape=("B", values.shape[1])) for name, values in reference.items()
        )
        runtime = OnnxRuntime(folder / GRAPH, precision=precision, inputs=inputs, outputs=outputs)
        parity = measure_parity(runtime, images_BYXC, reference).require()
        runtime.close()
        manifest = Manifest(
            model=source.spec.model,
            preprocess=source.spec.preprocess,
            labels=source.spec.labels,
            score=source.spec.score,
            name=source.name,
            precision=precision,
            opset=OPSET,
            inputs=inputs,
            outputs=outputs,
            batch=(1, MAX_BATCH),
            files=hash_files(folder),
            checkpoint_sha256=source.sha256,
            versions={package: version(package) for package in ("torch", "onnx", "onnxscript", "onnxruntime")},
            parity=parity,
            provenance=source.provenance,
        )
        write_manifest(folder, manifest)
    return Artifact(out, manifest)


def _check_finite(model: ViT) -> None:
    for name, tensor in model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise ConfigError(f"the weight {name} holds values that are not finite; the model cannot be exported.")


def _write_graph(graph: Graph, path: Path, images_BYXC: NDArray[np.uint8], config: ViTConfig) -> None:
    batch = torch.export.Dim("B", min=1, max=MAX_BATCH)
    with _quiet_exporter():
        program = torch.onnx.export(
            graph,
            (torch.from_numpy(images_BYXC.copy()),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(graph.output_names),
            dynamic_shapes={"image": {0: batch}},
            verbose=False,
        )
        assert program is not None  # None is the old exporter's return value
        # The exporter notes source lines and stack traces of this machine on every node: nobody's business.
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
        for value in program.model.graph.initializers.values():
            value.metadata_props.clear()
        program.model.metadata_props.clear()
        program.model.graph.metadata_props.clear()
        program.save(path, external_data=cost(config).weight_bytes > EXTERNAL_DATA_BYTES)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's notes on packages we do not use, and its own deprecations, off the screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
