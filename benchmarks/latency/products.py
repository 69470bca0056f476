"""How fast this machine multiplies matrices just now, in this process: the yardstick beside a model's own rate."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Final

import numpy as np

RUNS: Final = 15
_SIDE: Final = 1536
_SIDE_ON_GPU: Final = 8192


def on_cpu() -> float:
    """FLOP/s of a float32 product by numpy's own library, the best of a few."""
    left = np.ones((_SIDE, _SIDE), np.float32)

    def multiply() -> None:
        _ = left @ left

    return _best(multiply, _SIDE)


def on_gpu(precision: str, *, device: str = "cuda", side: int = _SIDE_ON_GPU) -> float | None:
    """FLOP/s of a product by PyTorch, in fp32, fp16 or else bf16; None where there is no PyTorch for the GPU."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return None
    dtype = {"fp32": torch.float32, "fp16": torch.float16}.get(precision, torch.bfloat16)
    left = torch.ones((side, side), dtype=dtype, device=device)

    def multiply() -> None:
        (left @ left)[0, 0].item()  # waits for the product

    return _best(multiply, side)


def _best(multiply: Callable[[], None], side: int) -> float:
    multiply()
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        multiply()
        times.append(time.perf_counter() - began)
    return 2 * side**3 / min(times)
