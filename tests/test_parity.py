from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from benchmarks.opening import TORCH_PRECISIONS
from sovit.artifact import Precision
from sovit.config import ViTConfig
from sovit.errors import ConfigError, ParityError
from sovit.parity import TOLERANCES, compare, measure_parity, min_cosine, relative_error
from sovit.runtime.fake import FakeRuntime
from sovit.runtime.open import RUNTIMES

REFERENCE = {
    "pre_logits": np.array([[3.0, 4.0], [1.0, 0.0]], np.float32),
    "logits": np.array([[1.0, 2.0], [5.0, 1.0]], np.float32),
}


def test_measures_by_hand() -> None:
    assert relative_error(np.array([[3.0, 4.5]]), np.array([[3.0, 4.0]])) == pytest.approx(0.1)
    assert min_cosine(np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[2.0, 0.0], [1.0, 0.0]])) == pytest.approx(0.5**0.5)


def test_equal_outputs_pass() -> None:
    found = compare(REFERENCE, REFERENCE, runtime="onnxruntime", precision="fp32").require()
    assert (found.relative_error, found.top1_agreement, found.images) == (0.0, 1.0, 2)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("pre_logits", 1e-3, "relative error"),
        ("logits", 10.0, "relative error"),
        ("logits", float("nan"), "not finite"),
        ("logits", float("inf"), "not finite"),
    ],
)
def test_outputs_out_of_bounds_fail(name: str, change: float, message: str) -> None:
    outputs = {key: value.copy() for key, value in REFERENCE.items()}
    outputs[name][0, 0] += change
    with pytest.raises(ParityError, match=message):
        compare(outputs, REFERENCE, runtime="onnxruntime", precision="fp32").require()


def test_other_outputs_and_shapes_fail() -> None:
    with pytest.raises(ParityError, match="gives the outputs"):
        compare({"logits": REFERENCE["logits"]}, REFERENCE, runtime="onnxruntime", precision="fp32")
    with pytest.raises(ParityError, match="gives logits"):
        compare({**REFERENCE, "logits": np.zeros((2, 3), np.float32)}, REFERENCE, runtime="x", precision="fp32")


def test_a_pair_without_an_agreed_tolerance_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no tolerance is agreed"):
        compare(REFERENCE, REFERENCE, runtime="abacus", precision="fp32").require()


def test_the_table_is_strict_in_fp32() -> None:
    for (runtime, precision), bound in TOLERANCES.items():
        if precision == "fp32" and runtime in ("torch", "onnxruntime", "openvino"):
            assert bound.max_relative_error <= 1e-5
            assert bound.min_top1_agreement == 1.0


def test_the_table_gets_looser_with_the_precision_and_holds_for_every_pair() -> None:
    runtimes = {runtime for runtime, _ in TOLERANCES}
    assert runtimes == {*RUNTIMES, "torch", "torch-cuda"} - {"auto", "fake"}
    for runtime in runtimes:
        # PyTorch on a GPU computes no quantised layers; the others have a bound for every precision.
        precisions = TORCH_PRECISIONS if runtime == "torch-cuda" else get_args(Precision)
        assert {precision for name, precision in TOLERANCES if name == runtime} == {*precisions}
        bounds = [TOLERANCES[runtime, precision] for precision in get_args(Precision) if precision in precisions]
        errors = [bound.max_relative_error for bound in bounds]
        assert errors == sorted(errors)
        assert [bound.min_cosine for bound in bounds] == sorted((b.min_cosine for b in bounds), reverse=True)


def test_the_reference_runs_in_uneven_batches() -> None:
    model = ViTConfig(width=8, depth=1, mlp_dim=8, num_heads=1, patch_size=4, image_size=(4, 4), num_classes=3)
    images = np.random.default_rng(0).integers(0, 255, (16, 4, 4, 3), dtype=np.uint8)
    expected = FakeRuntime(model).run(images)
    runtime = FakeRuntime(model)
    assert measure_parity(runtime, images, expected).relative_error == 0
    assert runtime.batches == [1, 3, 12]
