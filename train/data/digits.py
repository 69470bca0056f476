"""Scikit-learn's handwritten digits."""

from __future__ import annotations

from typing import Final

import numpy as np

from sovit.errors import MissingDependency
from train.data.dataset import DIGITS, Dataset, Split

_HELD_OUT: Final = 360  # of 1,797, a fifth
_SPLIT_SEED: Final = 0


def read_digits(split: Split) -> Dataset:
    """1,797 scans of handwritten digits, 8 x 8 in 17 grey levels; a fixed random fifth is held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependency("the digits ship with scikit-learn: pip install 'sovit[train]'.") from error
    bunch = load_digits()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(bunch.target))
    chosen = np.sort(order[:_HELD_OUT] if split == "test" else order[_HELD_OUT:])
    grey_NYX = np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8)
    return Dataset(
        name=f"{DIGITS} ({split})",
        images=[np.repeat(grey_YX[:, :, None], 3, axis=2) for grey_YX in grey_NYX],
        targets=bunch.target[chosen].astype(np.int64),
        classes=tuple(str(digit) for digit in range(10)),
    )
