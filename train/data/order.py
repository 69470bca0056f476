"""The order of training samples: a shuffle that is computed, not stored.

A position of the endless stream of epochs says which image comes, whatever came before: a run is resumed from one
integer. The shuffle is a keyed bijection in O(1) memory.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sovit.errors import ConfigError

_ROUNDS: Final = 8
_BLOCK: Final = 1 << 15  # positions at a time: what a round works on stays in the cache
_MOST: Final = 1 << 62
_WORD: Final = (1 << 64) - 1
# SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
_GAMMA: Final = 0x9E3779B97F4A7C15
_MIX_1: Final = 0xBF58476D1CE4E5B9
_MIX_2: Final = 0x94D049BB133111EB


class Permutation:
    """A pseudo-random bijection of [0, size), chosen by a 64-bit key.

    A generalised Feistel network on [0, a) x [0, b) with a b just over `size`, whose halves are added to by turns;
    results outside are sent through again until they are inside (cycle walking: Black and Rogaway, "Ciphers with
    arbitrary finite domains", 2002). It shuffles; it keeps no secret.
    """

    def __init__(self, size: int, key: int) -> None:
        if not 1 <= size <= _MOST:
            raise ConfigError(f"the order of {size} images is undefined; it lies outside 1..2^62.")
        self.size = size
        self._left = math.isqrt(size - 1) + 1
        self._right = -(-size // self._left)
        start = np.uint64(key & _WORD)
        self._round_keys = _mix(start + np.arange(1, _ROUNDS + 1, dtype=np.uint64) * np.uint64(_GAMMA))

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where positions in [0, size) go: int64 in the shape of `positions`. Raises `ConfigError` for others."""
        asked = np.asarray(positions, np.int64)
        if asked.size and not (asked.min() >= 0 and asked.max() < self.size):
            raise ConfigError(f"a position lies outside 0..{self.size - 1}.")
        values = asked.astype(np.uint64).reshape(-1)
        for start in range(0, len(values), _BLOCK):
            block = self._once(values[start : start + _BLOCK])
            while len(outside := np.flatnonzero(block >= self.size)):
                block[outside] = self._once(block[outside])
            values[start : start + _BLOCK] = block
        return values.astype(np.int64).reshape(asked.shape)

    def _once(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        width, height = np.uint64(self._left), np.uint64(self._right)
        left, right = values // height, values % height
        for index, key in enumerate(self._round_keys):
            if index % 2:
                right = (right + _mix(left * np.uint64(_GAMMA) + key) % height) % height
            else:
                left = (left + _mix(right * np.uint64(_GAMMA) + key) % width) % width
        return left * height + right


def sample_at(positions: NDArray[np.int64], size: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Epoch and index of the samples at positions of the endless stream, int64 in the shape of `positions`.

    Position p is in epoch p // size, which is a shuffle of all indices of its own.
    """
    from train.randomness import key  # here, as it brings torch

    asked = np.asarray(positions, np.int64)
    if size < 1 or (asked.size and asked.min() < 0):
        raise ConfigError("a stream of samples needs at least one image and begins at position 0.")
    epochs, within = np.divmod(asked.reshape(-1), size)
    indices = np.empty_like(within)
    order = np.argsort(epochs, kind="stable")
    distinct, starts = np.unique(epochs[order], return_index=True)
    for epoch, chosen in zip(distinct.tolist(), np.split(order, starts[1:]), strict=False):
        indices[chosen] = Permutation(size, key(seed, "order", epoch))(within[chosen])
    return epochs.reshape(asked.shape), indices.reshape(asked.shape)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: every bit of a word depends on every other."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_MIX_1)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_MIX_2)
    return values ^ (values >> np.uint64(31))
