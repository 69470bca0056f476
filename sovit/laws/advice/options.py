"""How a law is asked for a shape, where the command line does not say otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sovit.artifact import Precision

PRECISIONS: Final = ("fp32", "fp16", "bf16")  # that weights without calibration have


@dataclass(frozen=True, kw_only=True)
class Options:
    """Images in a measured batch and its precision, how many shapes to measure, and how far beyond the runs' sizes."""

    batch: int = 1
    precision: Precision = "fp32"
    measure: int = 12
    margin: float = 1.5
