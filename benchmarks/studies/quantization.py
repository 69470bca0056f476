"""What each choice of the quantisation is worth: error of int8 against fp32, choice by choice, with all else as it is.

    python -m benchmarks.studies.quantization --images IMAGES --out benchmarks/results/quantization.json

Three models: S/16 with random weights, the same with outlier channels (the same fp32 function), and digits, trained
here for half a minute. Errors are of pre_logits on images that calibration did not see, 16 photographs or all other
digits; for digits the agreement with the classes fp32 finds as well. OpenVINO computes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

from benchmarks.conditions import conditions
from benchmarks.studies.outliers import add_outliers
from export.calibrate import calibrate
from export.graph import write_graph
from export.quantize import STRENGTH, quantization
from export.reference import CALIBRATION, calibration_images, reference_images
from export.to_onnx import from_random
from sovit.artifact import INPUT, TensorInfo, output_tensors
from sovit.checkpoint import load_model, read_config
from sovit.config import variant_config
from sovit.cores import available_cores
from sovit.jsonio import write_json
from sovit.model import ViT
from sovit.parity import min_cosine, relative_error
from sovit.runtime.openvino import open_openvino
from sovit.runtime.pytorch import Graph, TorchRuntime
from sovit.spec import ModelSpec

Images = Sequence[NDArray[np.uint8]]
Ranges = Literal["largest", "percentile 99.99", "percentile 99.9", "entropy"]
_HISTOGRAM_IMAGES: Final = 32
_SENSITIVE: Final = {"the second layers of the MLPs": ".mlp.fc2", "the first and the last block": ""}


@dataclass(frozen=True)
class Choice:
    """One way to quantise. `left_out` names layers that stay in fp32."""

    title: str
    strength: float = STRENGTH
    ranges: Ranges = "largest"
    attention: bool = True
    left_out: str | None = None


CHOICES: Final = (
    Choice("as exported"),
    Choice("without smoothing", strength=0.0),
    Choice("smoothing at 0.25", strength=0.25),
    Choice("smoothing at 0.75", strength=0.75),
    Choice("ranges by percentile 99.99", ranges="percentile 99.99"),
    Choice("ranges by percentile 99.9", ranges="percentile 99.9"),
    Choice("ranges by entropy", ranges="entropy"),
    Choice("attention in fp32", attention=False),
    *(Choice(f"without {title}", left_out=title) for title in _SENSITIVE),
)


@dataclass(frozen=True)
class Subject:
    """A model with the images that calibrate it and the images that judge it."""

    title: str
    model: ViT
    spec: ModelSpec
    calibration: Images
    images_BYXC: NDArray[np.uint8]


def main() -> None:
    """Measure every choice on every model and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of real photographs")
    parser.add_argument("--out", type=Path, help="write the rows and conditions as JSON there")
    arguments = parser.parse_args()
    before = conditions()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="sovit-quantization-") as scratch:
        for subject in _subjects(arguments.images, Path(scratch)):
            largest = calibrate(subject.model, subject.spec.preprocess, subject.calibration)
            expected = _in_parts(TorchRuntime(subject.model, subject.spec.preprocess), subject.images_BYXC)
            for choice in CHOICES:
                found = measure(subject, choice, largest, expected, Path(scratch))
                rows.append({"model": subject.title, "choice": choice.title, **found})
    if arguments.out:
        write_json(arguments.out, {"benchmark": "quantization", "rows": rows, "conditions": before})
    table = Table("model", "choice", "relative error", "cosine", "top-1 agreement")
    for row in rows:
        agreement = f"{row['top1_agreement']:.2%}" if "top1_agreement" in row else ""
        table.add_row(row["model"], row["choice"], f"{row['relative_error']:.4f}", f"{row['cosine']:.5f}", agreement)
    Console().print(table)


def measure(
    subject: Subject,
    choice: Choice,
    largest: Mapping[str, NDArray[np.float32]],
    expected: Mapping[str, NDArray[np.float32]],
    scratch: Path,
) -> dict[str, float]:
    """Quantise a model in one way, from its activations' `largest` values, and compare with what fp32 gives."""
    config, preprocess = subject.spec.model, subject.spec.preprocess
    weights = {name: tensor.numpy() for name, tensor in subject.model.state_dict().items()}
    weights["pos_embed"] = subject.model.pos_embed.detach().numpy()
    found = quantization(config, weights, largest, choice.strength)
    ranges = found.ranges
    if choice.ranges != "largest":
        smoothed = ViT(config).eval()
        smoothed.load_state_dict({name: torch.from_numpy(found.weights[name]) for name in smoothed.state_dict()})
        others = _other_ranges(Graph(smoothed, preprocess).eval(), subject.calibration, choice.ranges)
        ranges = ranges | {name: others[name] for name in ranges.keys() & others.keys()}
    ranges = {name: value for name, value in ranges.items() if not _stays(name, choice, config.depth)}
    path = scratch / "model.onnx"
    outputs = output_tensors(config)
    write_graph(path, config, found.weights, preprocess, "int8", outputs, ranges)
    inputs = [TensorInfo(name=INPUT, dtype="uint8", shape=("B", *config.image_size, 3))]
    lane, *_ = open_openvino(path, precision="int8", inputs=inputs, outputs=outputs, threads=available_cores())
    got = _in_parts(lane, subject.images_BYXC)
    lane.close()
    row = {
        "relative_error": relative_error(got["pre_logits"], expected["pre_logits"]),
        "cosine": min_cosine(got["pre_logits"], expected["pre_logits"]),
    }
    if "logits" in expected:
        row["top1_agreement"] = float(np.mean(got["logits"].argmax(axis=1) == expected["logits"].argmax(axis=1)))
    return row


def _stays(name: str, choice: Choice, depth: int) -> bool:
    if not choice.attention and name.rsplit(".", 1)[-1] in ("q", "k", "v"):
        return True
    if choice.left_out is None:
        return False
    suffix = _SENSITIVE[choice.left_out]
    return name.endswith(suffix) if suffix else name.startswith(("blocks.0.", f"blocks.{depth - 1}."))


def _in_parts(runtime: Any, images_BYXC: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    parts = [runtime.run(images_BYXC[start : start + 16]) for start in range(0, len(images_BYXC), 16)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@torch.inference_mode()
def _other_ranges(graph: Graph, images: Images, kind: Ranges) -> dict[str, float]:
    """Ranges of the dense layers' inputs by ONNX Runtime's own calibration methods."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    method, _, percentile = kind.partition(" ")
    collector = HistogramCollector(
        method=method,
        symmetric=True,
        num_bins=2048,
        num_quantized_bins=128,
        percentile=float(percentile or 99.9),
        scenario="same",
    )
    seen: dict[str, NDArray[np.float32]] = {}
    for name, module in graph.model.named_modules():
        if isinstance(module, torch.nn.Linear) and not name.endswith(".q"):
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: seen.__setitem__(name, inputs[0].numpy().reshape(-1))
            )
    # All at once: what came later would stretch the histograms, and the search of entropy takes their length squared.
    graph(torch.from_numpy(np.stack(images[:: -(-len(images) // _HISTOGRAM_IMAGES)])))
    collector.collect({name: [values] for name, values in seen.items()})
    found: Mapping[str, Any] = collector.compute_collection_result()
    return {name: float(max(abs(value) for value in np.ravel(limits[:2]))) for name, limits in found.items()}


def _subjects(folder: Path, scratch: Path) -> Iterator[Subject]:
    for title in ("S/16, random", "S/16, random, with outliers"):
        source = from_random(title, variant_config("S/16"))
        if title.endswith("outliers"):
            add_outliers(source.model)
        images = reference_images(source.spec.preprocess, folder)
        yield Subject(
            title, source.model, source.spec, calibration_images(source.spec.preprocess, folder, images), images
        )
    yield _digits(scratch)


def _digits(scratch: Path) -> Subject:
    """Trained by the command: benchmarks know nothing of the training's modules."""
    out = scratch / "digits"
    command = [sys.executable, "-m", "sovit", "train", "digits", "--data", "digits", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    spec = read_config(out / "checkpoint")
    scans = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    images = np.stack([spec.preprocess(np.repeat(scan[:, :, None], 3, axis=2)) for scan in scans])
    chosen = np.arange(CALIBRATION) * len(images) // CALIBRATION
    others = np.delete(images, chosen, axis=0)
    return Subject("digits, trained", load_model(out / "checkpoint"), spec, list(images[chosen]), others)


if __name__ == "__main__":
    main()
