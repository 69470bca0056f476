"""A runtime without an engine: results are a fixed function of the pixels, so tests can predict them."""

from __future__ import annotations

import threading
import time

import numpy as np
from numpy.typing import NDArray

from sovit.config import ViTConfig
from sovit.errors import RuntimeFailure
from sovit.preprocess import Images

POISON = 77  # an image whose every byte is this makes the whole batch fail, as a broken kernel would


class FakeRuntime:
    """Deterministic stand-in for an engine, with a settable cost per call and image, a gate, and a record of its work.

    `calls` counts runs begun, `batches` holds the size of each run that got through the gate.

    `pre_logits` are the image's mean colour repeated over D and shifted by the position, `logits` the first L of the
    same values (repeated when L exceeds D): two images of different colour differ, and batching changes nothing.
    """

    name = "fake"

    def __init__(self, model: ViTConfig, *, precision: str = "fp32", seconds_per_call: float = 0.0) -> None:
        self.precision = precision
        self.seconds_per_call = seconds_per_call
        self.seconds_per_image = 0.0
        self.calls = 0
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self._width = model.width
        self._classes = model.num_classes

    def run(self, image_BYXC: Images) -> dict[str, NDArray[np.float32]]:
        """See `Runtime.run`. Waits while `gate` is clear."""
        image_BYXC = np.asarray(image_BYXC)
        self.calls += 1
        self.gate.wait()
        time.sleep(self.seconds_per_call + self.seconds_per_image * len(image_BYXC))
        self.batches.append(len(image_BYXC))
        if any(bool((image == POISON).all()) for image in image_BYXC):
            raise RuntimeFailure("the fake runtime met its poison.")
        color_BC = image_BYXC.mean(axis=(1, 2), dtype=np.float64).astype(np.float32) / 255
        pre_logits_BD = np.resize(color_BC.T, (self._width, len(color_BC))).T + np.arange(self._width) / self._width
        outputs = {"pre_logits": np.ascontiguousarray(pre_logits_BD, np.float32)}
        if self._classes:
            repeated = np.resize(outputs["pre_logits"].T, (self._classes, len(color_BC))).T
            outputs["logits"] = np.ascontiguousarray(repeated)
        return outputs

    def close(self) -> None:
        """See `Runtime.close`."""
