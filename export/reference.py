"""The real images an artifact carries with their fp32 outputs, so that anyone can check parity anywhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sovit.decode import SUFFIXES
from sovit.errors import ConfigError, InvalidImage, MissingDependency, SoViTError, UnsupportedImage
from sovit.preprocess import Preprocess
from sovit.progress import progress

COUNT: Final = 16
CALIBRATION: Final = 128


def reference_images(preprocess: Preprocess, folder: Path | None) -> NDArray[np.uint8]:
    """`COUNT` preprocessed images, uint8 [16, Y, X, 3], evenly spaced over `folder`.

    Without a folder they are cut from the two photographs that scikit-learn ships. Raises `ConfigError` when the
    folder has too few images, and the image's own error, with its name, when one cannot be decoded.
    """
    if folder is None:
        return np.stack([preprocess(crop) for crop in _sample_photographs()])
    paths = image_paths(folder)
    if len(paths) < COUNT:
        raise ConfigError(f"{folder} holds {len(paths)} images, the reference needs {COUNT}.")
    chosen = [paths[i * len(paths) // COUNT] for i in range(COUNT)]
    images = []
    for path in chosen:
        try:
            images.append(preprocess(path))
        except SoViTError as error:
            raise type(error)(f"{path}: {error}") from error
    return np.stack(images)


def calibration_images(preprocess: Preprocess, folder: Path, other_BYXC: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Up to `CALIBRATION` preprocessed images of a folder, evenly spaced, without those in `other_BYXC`.

    Images that cannot be decoded are named on standard error and left out. Raises `ConfigError` when none is left.
    """
    paths = image_paths(folder)
    chosen = paths if len(paths) <= CALIBRATION else [paths[i * len(paths) // CALIBRATION] for i in range(CALIBRATION)]
    known = {image.tobytes() for image in other_BYXC}
    images = []
    with progress("reading calibration images", len(chosen)) as advance:
        for path in chosen:
            advance(1)
            try:
                image = preprocess(path)
            except (InvalidImage, UnsupportedImage) as error:
                print(f"{path}: {error}", file=sys.stderr)
                continue
            if image.tobytes() not in known:
                images.append(image)
    if not images:
        raise ConfigError(f"{folder} holds no image to calibrate on besides the reference images.")
    return images


def image_paths(folder: Path) -> list[Path]:
    """All image files below a folder, sorted by path."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder of images.")
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _sample_photographs() -> list[NDArray[np.uint8]]:
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise MissingDependency(
            "the default reference images need scikit-learn: pip install 'sovit[export]', or pass --reference IMAGES."
        ) from error
    rng = np.random.default_rng(0)
    crops = []
    for photo in load_sample_images().images:
        for _ in range(COUNT // 2):
            side = int(rng.integers(160, 400))
            top, left = (int(rng.integers(0, extent - side)) for extent in photo.shape[:2])
            crops.append(np.ascontiguousarray(photo[top : top + side, left : left + side]))
    return crops
