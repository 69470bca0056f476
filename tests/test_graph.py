"""The graph: its operators by precision, its numbers for every trait of a model, its files."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import export.builder
from benchmarks.studies.outliers import add_outliers
from export.calibrate import calibrate
from export.graph import write_graph
from export.quantize import Quantization, quantization
from export.reference import reference_images
from export.to_onnx import ExportOptions, Source, export_onnx
from sovit.artifact import Artifact, Precision, open_artifact, output_tensors
from sovit.config import ViTConfig
from sovit.errors import ConfigError, ParityError
from sovit.model import ViT
from sovit.parity import measure_parity, relative_error
from sovit.predict import Predictor
from sovit.preprocess import Preprocess
from sovit.runtime.open import open_runtime, parity_runtimes
from sovit.runtime.pytorch import TorchRuntime
from sovit.spec import ModelSpec
from tests.conftest import random_model, tiny_spec

PRECISIONS = get_args(Precision)
# Deep enough for errors to add up, with attention that looks at something.
DEEP = {
    "width": 192, "depth": 12, "mlp_dim": 480, "num_heads": 4, "patch_size": 8, "image_size": (64, 64),
    "num_classes": 4,
}  # fmt: skip
QUANTISED: tuple[Precision, ...] = ("int8", "int8-bf16", "fp8-bf16")


def exported(model: ViT, spec: ModelSpec, folder: Path, precision: Precision = "fp32", **options: Any) -> Artifact:
    images = reference_images(spec.preprocess, None)
    source = Source(name="x", model=model, spec=spec, sha256="", provenance={})
    options = {"precision": precision, **options}
    return export_onnx(source, folder, images, ExportOptions(**options), list(images))


def operators(graph: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(graph, load_external_data=False).graph.node)


# What one block consists of. Growth here is a decision, not an accident.
PLAIN = {"LayerNormalization": 2, "MatMul": 4, "Add": 6, "Split": 1, "Attention": 1, "Gelu": 1}
BLOCK: dict[str, dict[str, int]] = {
    "fp32": PLAIN,
    "fp16": {**PLAIN, "Cast": 6},
    "bf16": {**PLAIN, "Cast": 6},
    # Attention in its parts, so that a CPU takes q, k and v as int8.
    "int8": {
        "LayerNormalization": 2, "MatMul": 6, "Add": 6, "Split": 1, "Softmax": 1, "Reshape": 4,
        "Transpose": 4, "Gelu": 1, "QuantizeLinear": 7, "DequantizeLinear": 11,
    },
    "int8-bf16": {**PLAIN, "Cast": 6, "QuantizeLinear": 4, "DequantizeLinear": 8},
    "fp8-bf16": {**PLAIN, "Cast": 6, "QuantizeLinear": 7, "DequantizeLinear": 11},  # q, k and v of attention too
}  # fmt: skip


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_operators_of_a_block(precision: Precision, tmp_path: Path) -> None:
    counts = []
    for depth in (1, 2):
        spec = tiny_spec(depth=depth, pool="gap")
        counts.append(operators(exported(random_model(spec.model), spec, tmp_path / str(depth), precision).graph))
    assert counts[1] - counts[0] == Counter(BLOCK[precision])
    outside = counts[0] - Counter(BLOCK[precision])
    assert outside["Transpose"] == 2  # pixels to channels first, patches to tokens
    assert not {"Resize", "Loop", "If", "Erf", "Tanh", "Pow", "Sqrt"} & set(counts[1])


@pytest.mark.parametrize("pool", ["map", "gap", "tok"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_graph_is_valid_onnx_without_a_cast_too_many(pool: str, precision: Precision, tmp_path: Path) -> None:
    spec = tiny_spec(pool=pool, registers=1)
    outputs = ("pre_logits", "logits", "tokens")
    artifact = exported(random_model(spec.model), spec, tmp_path / "a", precision, outputs=outputs)
    onnx.checker.check_model(str(artifact.graph), full_check=True)
    graph = onnx.shape_inference.infer_shapes(onnx.load(artifact.graph)).graph
    types = {v.name: v.type.tensor_type.elem_type for v in [*graph.value_info, *graph.input, *graph.output]}
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    for output, source in casts.items():
        assert types[source] != types[output], f"{output} casts to the type it has"
        assert source not in casts, f"{output} casts what has just been cast"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("pool", ["map", "gap", "tok"])
@pytest.mark.parametrize(
    "traits",
    [
        {},
        {"registers": 2, "layer_scale": True, "qkv_bias": False, "fc_norm": True, "gelu": "erf"},
        {"position_embedding": "sincos2d", "num_classes": 0, "layer_norm_eps": 1e-3},
        {"image_size": (18, 30), "num_heads": 4},
    ],
    ids=["plain", "traits", "sincos", "rectangle"],
)
def test_every_trait_of_a_model_is_in_the_graph(
    pool: str, traits: dict[str, Any], precision: Precision, tmp_path: Path
) -> None:
    spec = tiny_spec(pool=pool, **traits)
    spec = replace(spec, preprocess=replace(spec.preprocess, mean=(0.1, 0.5, 0.7), std=(0.2, 0.3, 0.4)))
    model = random_model(spec.model)
    outputs = ("pre_logits", "tokens", *(["logits"] if spec.model.num_classes else []))
    artifact = exported(model, spec, tmp_path / "a", precision, outputs=outputs)
    assert [parity.runtime for parity in artifact.manifest.parity] == parity_runtimes(precision)
    _, reference = open_artifact(artifact.folder).reference()
    assert reference["tokens"].shape == (16, spec.model.num_tokens, 32)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_any_batch_gives_what_each_image_gives_alone(precision: Precision, tmp_path: Path) -> None:
    spec = tiny_spec()
    artifact = exported(random_model(spec.model), spec, tmp_path / "a", precision)
    images, reference = artifact.reference()
    for name in parity_runtimes(precision):
        runtime = open_runtime(artifact, name)
        alone = np.concatenate([runtime.run(image[None])["pre_logits"] for image in images])
        for batch in (1, 3, 64):
            rows = np.arange(batch) % 16
            found = runtime.run(images[rows])["pre_logits"]
            # In half precision the order of a sum may change with the batch.
            assert relative_error(found, alone[rows]) < (1e-5 if precision in ("fp32", "int8") else 2e-2)
        assert measure_parity(runtime, images, reference).require().precision == precision
        runtime.close()


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "int8-bf16"])
def test_outlier_channels_stay_within_the_tolerance(precision: Precision, tmp_path: Path) -> None:
    """LayerNorm channels 30 times and value channels 60 times as large as the others: the same fp32 function."""
    spec = tiny_spec(**DEEP)
    plain = random_model(spec.model)
    changed = add_outliers(random_model(spec.model))
    images = reference_images(spec.preprocess, None)
    one, other = (TorchRuntime(model, spec.preprocess).run(images)["logits"] for model in (plain, changed))
    assert relative_error(other, one) < 1e-5
    artifact = exported(changed, spec, tmp_path / "a", precision)
    assert [parity.runtime for parity in artifact.manifest.parity] == parity_runtimes(precision)


def test_without_smoothing_the_outliers_would_be_out_of_the_tolerance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsmoothed(config: ViTConfig, weights: Any, largest: Any, tokens: bool) -> Quantization:
        return quantization(config, weights, largest, 0.0, tokens=tokens)

    monkeypatch.setattr("export.to_onnx.quantization", unsmoothed)
    spec = tiny_spec(**DEEP)
    with pytest.raises(ParityError, match="int8 is off its fp32 reference"):
        exported(add_outliers(random_model(spec.model)), spec, tmp_path / "a", "int8")
    assert not (tmp_path / "a").exists()


@given(
    st.sampled_from(["map", "gap", "tok"]), st.booleans(), st.booleans(), st.floats(0, 1), st.integers(0, 2),
)  # fmt: skip
def test_smoothing_keeps_the_function(
    pool: str, qkv_bias: bool, fc_norm: bool, strength: float, registers: int
) -> None:
    spec = tiny_spec(pool=pool, qkv_bias=qkv_bias, fc_norm=fc_norm, registers=registers, layer_scale=True)
    model = add_outliers(random_model(spec.model))
    images = list(reference_images(spec.preprocess, None)[:4])
    weights = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    chosen = quantization(spec.model, weights, calibrate(model, spec.preprocess, images), strength)
    other = ViT(spec.model).eval()
    other.load_state_dict({name: torch.from_numpy(array) for name, array in chosen.weights.items()})
    expected, found = (TorchRuntime(m, spec.preprocess).run(np.stack(images)) for m in (model, other))
    assert relative_error(found["logits"], expected["logits"]) < 1e-4
    for name, tensor in model.state_dict().items():
        assert np.array_equal(tensor.numpy(), weights[name]), "the model itself is left as it is"


def test_tokens_of_a_smoothed_model_are_the_models_own() -> None:
    """The last LayerNorm makes them: where they are an output it cannot take the factors of the MAP head."""
    spec = tiny_spec()
    model = random_model(spec.model)
    largest = calibrate(model, spec.preprocess, list(reference_images(spec.preprocess, None)))
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    for tokens in (True, False):
        found = quantization(spec.model, weights, largest, tokens=tokens)
        assert np.array_equal(found.weights["norm.weight"], weights["norm.weight"]) == tokens


def test_ranges_are_the_largest_values_that_were_seen() -> None:
    spec = tiny_spec()
    model = random_model(spec.model)
    images = list(reference_images(spec.preprocess, None))
    seen: dict[str, float] = {}
    for name in ("blocks.1.mlp.fc2", "blocks.0.attn.qkv", "map_head.kv"):
        layer = model.get_submodule(name)
        layer.register_forward_pre_hook(
            lambda _, x, name=name: seen.__setitem__(name, max(seen.get(name, 0.0), float(x[0].abs().max())))
        )
    query = model.map_head.q(model.map_head.probe).abs().max()  # type: ignore[union-attr]
    found = calibrate(model, spec.preprocess, images)
    assert found["map_head.q"].max() == query.item(), "what the layer gives, not what it takes"
    for name, value in seen.items():
        assert found[name].max() == value
    assert {f"blocks.0.attn.{letter}" for letter in "qkv"} | {f"map_head.{letter}" for letter in "qkv"} < found.keys()
    with pytest.raises(ConfigError, match="at least one image"):
        calibrate(model, spec.preprocess, [])


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_a_trained_model_keeps_its_accuracy(
    precision: Precision, trained: tuple[ViT, ModelSpec], tmp_path: Path
) -> None:
    """Within half a point on held-out digits; fp8 within one and a half."""
    from train.data.load import load_dataset
    from train.evaluate import evaluate_classifier

    model, spec = trained
    train_set, test_set = load_dataset("digits", "train"), load_dataset("digits", "test")
    images = np.stack([spec.preprocess(image) for image in test_set.images[:16]])
    calibration = [spec.preprocess(image) for image in train_set.images[::12]]
    source = Source(name="digits", model=model, spec=spec, sha256="", provenance={})
    artifact = export_onnx(source, tmp_path / "a", images, ExportOptions(precision=precision), calibration)
    fp32 = evaluate_classifier(Predictor(TorchRuntime(model, spec.preprocess), spec).classify, spec.labels, test_set)
    assert fp32.top1 > 0.9
    for name in parity_runtimes(precision):
        predictor = Predictor(open_runtime(artifact, name), spec)
        found = evaluate_classifier(predictor.classify, spec.labels, test_set)
        assert abs(found.top1 - fp32.top1) <= (0.015 if precision == "fp8-bf16" else 0.005), name


def test_large_weights_go_to_a_file_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny_spec()
    model = random_model(spec.model)
    inline = exported(model, spec, tmp_path / "inline")
    assert set(inline.manifest.files) == {"model.onnx", "reference.npz"}
    monkeypatch.setattr(export.builder, "EXTERNAL_BYTES", 1000)
    external = exported(model, spec, tmp_path / "external")
    assert set(external.manifest.files) == {"model.onnx", "model.onnx.data", "reference.npz"}
    assert external.graph.stat().st_size < inline.graph.stat().st_size / 2
    for tensor in onnx.load(external.graph, load_external_data=False).graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "offset":
                assert int(entry.value) % 4096 == 0
    images, _ = inline.reference()
    for name in ("onnxruntime", "openvino"):
        one, other = (open_runtime(artifact, name).run(images)["logits"] for artifact in (inline, external))
        np.testing.assert_array_equal(one, other)


def test_outputs_can_be_chosen(tmp_path: Path) -> None:
    spec = tiny_spec()
    model = random_model(spec.model)
    artifact = exported(model, spec, tmp_path / "a", outputs=("pre_logits",))
    assert [tensor.name for tensor in artifact.manifest.outputs] == ["pre_logits"]
    assert (artifact.manifest.labels, artifact.manifest.model.num_classes) == ((), 0)
    headless = tiny_spec(num_classes=0)
    with pytest.raises(ConfigError, match="no classification head, so there can be no logits"):
        exported(random_model(headless.model), headless, tmp_path / "b", outputs=("pre_logits", "logits"))
    with pytest.raises(ConfigError, match="pre_logits must be among the outputs"):
        exported(model, spec, tmp_path / "b", outputs=("logits",))
    with pytest.raises(ConfigError, match="it must be MIN:OPT:MAX"):
        ExportOptions(batch=(4, 2, 8))


def test_quantised_weights_are_within_half_a_step(tmp_path: Path) -> None:
    config = ViTConfig(width=8, depth=1, mlp_dim=12, num_heads=2, patch_size=4, image_size=(8, 8), pool="gap")
    model = random_model(config)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    expected = {name: array.copy() for name, array in weights.items()}
    expected["blocks.0.attn.qkv.weight"][: config.width] /= 2  # 1 / sqrt(4) of attention
    layers = [f"blocks.0.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    ranges = dict.fromkeys(layers, 1.0)
    for precision in QUANTISED:
        path = tmp_path / f"{precision}.onnx"
        write_graph(
            path, config, weights, Preprocess(image_size=(8, 8)), precision, output_tensors(config), ranges
        )  # fmt: skip
        stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
        for layer in layers:
            scale = stored[f"{layer}.weight.scale"].astype(np.float32)
            error = np.abs(stored[f"{layer}.weight"].astype(np.float32) * scale - expected[f"{layer}.weight"].T)
            if precision.startswith("int8"):
                assert scale.shape == (weights[f"{layer}.weight"].shape[0],)
                assert (error <= 0.5 * scale * 1.01).all()
            else:
                assert scale.shape == ()
                assert (error <= np.maximum(np.abs(expected[f"{layer}.weight"].T) / 16, scale / 2**7)).all()
