"""How far outputs may be from the fp32 reference: one tolerance table for the repo, and the measure behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from sovit.errors import ConfigError, ParityError
from sovit.jsonio import STRICT
from sovit.runtime.base import Runtime

Outputs = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Bounds on one output tensor. Relative error is ||out - ref|| / ||ref|| over the whole tensor."""

    max_relative_error: float
    min_cosine: float
    min_top1_agreement: float


# Of random weights and 16 images one near tie may fall the other way: 15 of 16 is 0.9375.
_EXACT: Final = Tolerance(max_relative_error=1e-5, min_cosine=0.999999, min_top1_agreement=1.0)
_GPU: Final = Tolerance(max_relative_error=1e-4, min_cosine=0.99999, min_top1_agreement=0.9)
# The provider's TensorRT takes float32 products in TF32, with 10 bits of 23, and has no option for it.
_TF32: Final = Tolerance(max_relative_error=2e-3, min_cosine=0.9999, min_top1_agreement=0.9)
_HALF: Final = {
    "fp16": Tolerance(max_relative_error=5e-3, min_cosine=0.9999, min_top1_agreement=0.9),
    "bf16": Tolerance(max_relative_error=3e-2, min_cosine=0.998, min_top1_agreement=0.85),
}
_QUANTIZED: Final = {
    "int8": Tolerance(max_relative_error=5e-2, min_cosine=0.997, min_top1_agreement=0.85),
    "int8-bf16": Tolerance(max_relative_error=6e-2, min_cosine=0.996, min_top1_agreement=0.85),
    "fp8-bf16": Tolerance(max_relative_error=0.15, min_cosine=0.97, min_top1_agreement=0.7),
}
TOLERANCES: Final[dict[tuple[str, str], Tolerance]] = {
    **{(runtime, "fp32"): _EXACT for runtime in ("torch", "onnxruntime", "openvino")},
    **{(runtime, "fp32"): _GPU for runtime in ("torch-cuda", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx")},
    ("onnxruntime-tensorrt", "fp32"): _TF32,
    **{("torch-cuda", precision): bound for precision, bound in _HALF.items()},
    **{
        (runtime, precision): bound
        for runtime in (
            "torch",
            "onnxruntime",
            "openvino",
            "onnxruntime-cuda",
            "onnxruntime-tensorrt",
            "tensorrt",
            "tensorrt-rtx",
        )
        for precision, bound in {**_HALF, **_QUANTIZED}.items()
    },
}


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The outcome of one comparison, worst over all outputs.

    `cosine` is the smallest of any image's `pre_logits` or `tokens`; `top1_agreement` is None without logits.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    runtime: str
    precision: str
    images: int
    relative_error: float
    cosine: float
    top1_agreement: float | None

    def require(self) -> Parity:
        """Return itself, or raise `ParityError` when outside the tolerance table."""
        bound = tolerance(self.runtime, self.precision)
        # Written so that a NaN is outside.
        if not (self.relative_error <= bound.max_relative_error and self.cosine >= bound.min_cosine):
            raise ParityError(
                f"{self.runtime} {self.precision} is off its fp32 reference: relative error {self.relative_error:.2e} "
                f"(at most {bound.max_relative_error:.0e}), cosine {self.cosine:.6f} (at least {bound.min_cosine})."
            )
        if self.top1_agreement is not None and self.top1_agreement < bound.min_top1_agreement:
            raise ParityError(
                f"{self.runtime} {self.precision} agrees with its fp32 reference on {self.top1_agreement:.1%} of the "
                f"top-1 classes (at least {bound.min_top1_agreement:.1%})."
            )
        return self


def tolerance(runtime: str, precision: str) -> Tolerance:
    """The table's row for a runtime and a precision."""
    try:
        return TOLERANCES[runtime, precision]
    except KeyError as error:
        raise ConfigError(f"no tolerance is agreed for runtime {runtime!r} at precision {precision!r}.") from error


def compare(outputs: Outputs, reference: Outputs, *, runtime: str, precision: str) -> Parity:
    """Measure `outputs` against `reference`, both [B, ...] float32 by name; names and shapes must be the same."""
    if outputs.keys() != reference.keys():
        raise ParityError(f"{runtime} gives the outputs {sorted(outputs)}, the reference has {sorted(reference)}.")
    errors, cosines = [], []
    for name, expected in reference.items():
        if outputs[name].shape != expected.shape:
            raise ParityError(f"{runtime} gives {name} {outputs[name].shape}, the reference has {expected.shape}.")
        # Each on its own: max() and min() over a list lose a NaN.
        errors.append(_finite(relative_error(outputs[name], expected)))
        if name != "logits":  # nobody compares logits by their angle, and that of three classes says nothing
            cosines.append(_finite(min_cosine(outputs[name], expected)))
    top1 = None
    if "logits" in reference:
        top1 = float(np.mean(outputs["logits"].argmax(axis=1) == reference["logits"].argmax(axis=1)))
    return Parity(
        runtime=runtime,
        precision=precision,
        images=len(next(iter(reference.values()))),
        relative_error=max(errors),
        cosine=min(cosines),
        top1_agreement=top1,
    )


def measure_parity(runtime: Runtime, images_BYXC: NDArray[np.uint8], reference: Outputs) -> Parity:
    """Run the reference images through a runtime in uneven batches and compare with the reference outputs."""
    parts = [runtime.run(images_BYXC[start:stop]) for start, stop in _uneven(len(images_BYXC))]
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return compare(outputs, reference, runtime=runtime.name, precision=runtime.precision)


def _uneven(count: int) -> list[tuple[int, int]]:
    """1, 3 and the rest: a batch axis that an exporter had baked in fails here."""
    bounds = sorted({0, min(1, count), min(4, count), count})
    return list(pairwise(bounds))


def relative_error(output: NDArray[Any], expected: NDArray[Any]) -> float:
    """||output - expected|| / ||expected||, in float64."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # the caller looks at what is not finite
        difference = output.astype(np.float64) - expected
        return float(np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64)))


def min_cosine(output: NDArray[Any], expected: NDArray[Any]) -> float:
    """Smallest cosine between the rows of two [B, ...] tensors, in float64."""
    a = output.reshape(len(output), -1).astype(np.float64)
    b = expected.reshape(len(expected), -1).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # the caller looks at what is not finite
        return float(np.min((a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))))


def _finite(value: float) -> float:
    if not np.isfinite(value):
        raise ParityError("the outputs or the reference hold values that are not finite, or are all zero.")
    return value
