"""The pieces of the runtime table: the products' graph has the model's FLOPs, and children take turns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import benchmarks.studies.gpu
from benchmarks.studies.lanes import Entry, Lane, race
from benchmarks.studies.outliers import add_outliers
from benchmarks.studies.products import declared, write_products
from export.reference import reference_images
from export.to_onnx import from_random
from sovit.artifact import Artifact
from sovit.config import ViTConfig, variant_config
from sovit.cost import macs
from sovit.errors import ServiceError
from sovit.preprocess import Preprocess
from sovit.runtime.openvino import open_openvino
from sovit.runtime.ort import OnnxRuntime
from sovit.runtime.pytorch import TorchRuntime
from tests.conftest import random_model, tiny_spec

CONFIG = ViTConfig(width=32, depth=3, mlp_dim=48, num_heads=4, patch_size=4, image_size=(16, 24), pool="gap")


def graph_macs(path: Path) -> int:
    """Multiply-accumulates of a graph's products, from the shapes that onnx infers."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
    values = [*model.graph.value_info, *model.graph.output, *model.graph.input]
    shapes = {v.name: [side.dim_value or 1 for side in v.type.tensor_type.shape.dim] for v in values}
    shapes |= {t.name: list(t.dims) for t in model.graph.initializer}
    total = 0
    for node in model.graph.node:
        if node.op_type == "MatMul":
            total += int(np.prod(shapes[node.output[0]])) * shapes[node.input[0]][-1]
        if node.op_type == "Conv":
            total += int(np.prod(shapes[node.output[0]])) * int(np.prod(shapes[node.input[1]][1:]))
    return total


@pytest.mark.parametrize("attention", [True, False])
def test_the_products_are_the_models_own(attention: bool, tmp_path: Path) -> None:
    write_products(tmp_path / "p.onnx", CONFIG, attention=attention)
    pairs = CONFIG.depth * 2 * CONFIG.num_tokens**2 * CONFIG.width
    assert graph_macs(tmp_path / "p.onnx") == macs(CONFIG) - (0 if attention else pairs)
    image, output = declared(CONFIG)
    images = np.random.default_rng(0).integers(0, 255, (3, 16, 24, 3), np.uint8)
    ort = OnnxRuntime(tmp_path / "p.onnx", precision="fp32", inputs=[image], outputs=[output], threads=1)
    openvino, *_ = open_openvino(tmp_path / "p.onnx", precision="fp32", inputs=[image], outputs=[output], threads=1)
    one, other = (runtime.run(images)["pre_logits"] for runtime in (ort, openvino))
    assert np.isfinite(one).all()
    assert np.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_lanes_take_turns_in_processes_of_their_own(exported: Artifact, tmp_path: Path) -> None:
    folder = str(exported.folder)
    entries = [Entry(title=name, runtime=name, artifact=folder, batch=3) for name in ("onnxruntime", "openvino")]
    with Lane(entries[0]) as one, Lane(entries[1]) as other:
        for lane in (one, other):
            assert lane.loaded["finite"]
            assert 0 < lane.loaded["file_bytes"] < lane.loaded["resident_bytes"] <= lane.loaded["peak_bytes"]
        advanced: list[int] = []
        rows = race([one, other], 5, advanced.append)
    assert sum(advanced) == 10
    assert rows[0]["speedup"] == rows[0]["speedup_p25"] == 1.0
    assert rows[1]["speedup_p25"] <= rows[1]["speedup"] <= rows[1]["speedup_p75"]
    assert all(row["p50_ms"] > 0 for row in rows)
    with pytest.raises(ServiceError, match="the process of broken ended with status"):
        Lane(Entry(title="broken", runtime="onnxruntime", artifact=str(tmp_path)))


def test_planted_outliers_are_there_and_change_nothing() -> None:
    spec = tiny_spec()
    model, images = random_model(spec.model), np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), np.uint8)
    before = TorchRuntime(model, Preprocess(image_size=(16, 16))).run(images)["pre_logits"]
    gain = model.state_dict()["blocks.0.norm1.weight"].clone()
    add_outliers(model)
    after = TorchRuntime(model, Preprocess(image_size=(16, 16))).run(images)["pre_logits"]
    assert np.allclose(before, after, rtol=1e-4, atol=1e-5)
    assert int((model.state_dict()["blocks.0.norm1.weight"] != gain).sum()) == 3


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_gpu_table_has_parity_with_every_row(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    source = from_random("mu/16", variant_config("mu/16", image_size=(32, 32)))
    images = reference_images(source.spec.preprocess, None)
    rows = benchmarks.studies.gpu.measure(source, images, [1, 4], rounds=2, device=device)
    assert [(row["what"], row["precision"], row["batch"]) for row in rows[:4]] == [
        ("torch eager", "fp32", 1), ("torch eager", "fp32", 4), ("torch eager", "bf16", 1), ("torch eager", "bf16", 4),
    ]  # fmt: skip
    assert rows[0]["relative_error"] == 0
    for row in rows[2:]:
        assert 0 < row["relative_error"] < 3e-2
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["p50_ms"] * 1e3)
    if device == "cpu":
        assert all(row["mfu"] is None for row in rows), "undefined on a CPU"
