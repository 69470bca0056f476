"""Randomness as a pure function of integers: what a sample or a step draws depends on its own numbers alone.

So the whole state of a run's randomness is the step it has reached, whatever the number of workers and processes.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import torch

# What the numbers are drawn for: two purposes never share a stream.
Purpose = Literal["order", "augment", "mix", "drop", "step"]


def key(seed: int, purpose: Purpose, *numbers: int) -> int:
    """A 64-bit key of a seed, a purpose and any numbers (epoch, step, index, ...)."""
    words = ",".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "little")


def generator(seed: int, purpose: Purpose, *numbers: int) -> np.random.Generator:
    """NumPy's generator for one sample or step (Philox, counter-based)."""
    return np.random.Generator(np.random.Philox(key=key(seed, purpose, *numbers)))


def torch_generator(seed: int, purpose: Purpose, *numbers: int) -> torch.Generator:
    """PyTorch's generator on the CPU for one step."""
    return torch.Generator().manual_seed(key(seed, purpose, *numbers) >> 1)  # a seed is a positive int64
