"""Whether two data sets are the same one, wherever they lie: a run goes on with the images it began with."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import numpy as np

from sovit.decode import DecodeOptions, decode
from sovit.errors import InvalidImage, UnsupportedImage
from train.data.dataset import Dataset

_LOOKED_AT: Final = 32  # images


def identity(dataset: Dataset) -> dict[str, Any]:
    """Name, number of images, classes, all labels as a hash, and the pixels of some images by index.

    An image that cannot be used has no hash: it may be mended before the run goes on.
    """
    looked_at = np.unique(np.linspace(0, len(dataset) - 1, _LOOKED_AT).astype(np.int64)).tolist()
    pixels = {str(index): _pixels(dataset, index) for index in looked_at}
    return {
        "name": dataset.name,
        "images": len(dataset),
        "classes": list(dataset.classes),
        "labels": _short(dataset.targets.tobytes()),
        "pixels": {index: found for index, found in pixels.items() if found},
    }


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What tells them apart, as `images 100, not 200`; "" for the same data. The name may change, as by a move."""
    for name in ("images", "classes"):
        if old.get(name) != new[name]:
            return f"{name} {old.get(name)}, not {new[name]}"
    if old.get("labels") != new["labels"]:
        return "other labels of these images"
    known = old.get("pixels") or {}
    other = next((index for index, found in new["pixels"].items() if known.get(index, found) != found), None)
    return "" if other is None else f"another image {other} of {old.get('name')}"


def _pixels(dataset: Dataset, index: int) -> str:
    try:
        image = decode(dataset.images[index], DecodeOptions())
    except (InvalidImage, UnsupportedImage, OSError):
        return ""
    return _short(repr(image.size).encode() + image.tobytes())


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
