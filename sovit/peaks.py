"""Peak rates of dense matrix products by GPU, for MFU. Where a GPU or precision is not listed, MFU is undefined."""

from __future__ import annotations

import re
from typing import Final

# TFLOP/s without sparsity, from NVIDIA's data sheets (A100 2021, H100 and H200 2024).
_PEAKS: Final[tuple[tuple[str, dict[str, float]], ...]] = (
    ("H100 NVL", {}),  # slower than the SXM modules, by how much is not in those sheets
    ("H200 NVL", {}),
    ("A100", {"fp16": 312, "bf16": 312, "int8-bf16": 624}),
    ("H100 PCIe", {"fp16": 756, "bf16": 756, "int8-bf16": 1513, "fp8-bf16": 1513}),
    ("H100", {"fp16": 989, "bf16": 989, "int8-bf16": 1979, "fp8-bf16": 1979}),
    ("H200", {"fp16": 989, "bf16": 989, "int8-bf16": 1979, "fp8-bf16": 1979}),
)


def peak_flops(gpu: str, precision: str) -> float | None:
    """FLOP/s that a GPU reaches at most, None where that is not known."""
    for name, peaks in _PEAKS:
        if re.search(rf"\b{name}\b", gpu):  # an A1000 is no A100
            return peaks[precision] * 1e12 if precision in peaks else None
    return None
