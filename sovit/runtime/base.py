"""The protocol every runtime keeps."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sovit.preprocess import Images


class Runtime(Protocol):
    """One lane: one device, one stream, one call at a time.

    `name` is the tolerance table's; `precision` the model's.
    """

    name: str
    precision: str

    def run(self, image_BYXC: Images) -> dict[str, NDArray[np.float32]]:
        """Resized uint8 images to `pre_logits` [B, D] and, with a head, `logits` [B, L].

        A NaFlex model takes a list of images [Y, X, C] of different sizes. Raises `RuntimeFailure` when the engine
        fails.
        """
        ...

    def close(self) -> None:
        """Free the engine. The runtime must not be used again."""
        ...
