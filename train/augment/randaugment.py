"""RandAugment: a few random operations of one common strength on one image, through Pillow.

The operations, with their strength at magnitude m of 0..10, s = m / 10:

    autocontrast, equalize, invert              no strength
    posterize                                   keeps 8 - 4 s bits
    solarize                                    inverts values from 256 (1 - s) up
    solarize_add                                adds 110 s to values below 128
    color, contrast, brightness, sharpness      blends with a factor of 1 +- 0.9 s
    rotate                                      +- 30 s degrees
    shear_x, shear_y                            +- 0.3 s pixels per pixel
    translate_x, translate_y                    +- 0.45 s of the side

The ranges are those of AutoAugment (Cubuk et al. 2018, arXiv:1805.09501, table 6: translations of up to 150 of 331
pixels), and 110 for solarize_add, which came with its EfficientNet code. Every range begins where the operation changes
nothing, as in timm's "inc" set, so that a larger magnitude is always a stronger change. The paper's "identity" gives
way to invert and solarize_add, as in big_vision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from sovit.errors import ConfigError

Operation = Literal[
    "autocontrast", "equalize", "invert", "posterize", "solarize", "solarize_add", "color", "contrast", "brightness",
    "sharpness", "rotate", "shear_x", "shear_y", "translate_x", "translate_y",
]  # fmt: skip
OPERATIONS: Final[tuple[Operation, ...]] = get_args(Operation)
MAX_MAGNITUDE: Final = 10
_GREY: Final = (128, 128, 128)  # what comes in from outside


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """`count` operations, drawn uniformly and with replacement (Cubuk et al. 2019, arXiv:1909.13719).

    Each has the strength `magnitude`, 0 to 10, and where its range has two sides a random sign.
    """

    count: int = 2
    magnitude: int = MAX_MAGNITUDE

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ConfigError(f"RandAugment's count is {self.count}, it must not be negative.")
        if not 0 <= self.magnitude <= MAX_MAGNITUDE:
            raise ConfigError(f"RandAugment's magnitude is {self.magnitude}, it must lie in 0..{MAX_MAGNITUDE}.")

    def __call__(self, image_YXC: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """One image, uint8 [Y, X, 3], to one of the same size."""
        if not self.count:
            return image_YXC
        image = Image.fromarray(image_YXC)
        for number in rng.integers(len(OPERATIONS), size=self.count):
            sign = 1 if rng.random() < 0.5 else -1
            image = operated(image, OPERATIONS[number], sign * self.magnitude / MAX_MAGNITUDE)
        return np.asarray(image)


def operated(  # noqa: PLR0911, PLR0912 - the table above
    image: Image.Image, operation: Operation, strength: float
) -> Image.Image:
    """An RGB image after one operation. `strength` is -1..1; its sign counts where a range has two sides.

    A positive rotation is counter-clockwise, a positive translation goes right or down.
    """
    size = abs(strength)
    match operation:
        case "autocontrast":
            return ImageOps.autocontrast(image)
        case "equalize":
            return ImageOps.equalize(image)
        case "invert":
            return ImageOps.invert(image)
        case "posterize":
            return ImageOps.posterize(image, 8 - round(4 * size))
        case "solarize":
            return ImageOps.solarize(image, round(256 * (1 - size)))
        case "solarize_add":
            added = round(110 * size)
            return image.point([min(255, value + added) if value < 128 else value for value in range(256)] * 3)
        case "color":
            return ImageEnhance.Color(image).enhance(1 + 0.9 * strength)
        case "contrast":
            return ImageEnhance.Contrast(image).enhance(1 + 0.9 * strength)
        case "brightness":
            return ImageEnhance.Brightness(image).enhance(1 + 0.9 * strength)
        case "sharpness":
            return ImageEnhance.Sharpness(image).enhance(1 + 0.9 * strength)
        case "rotate":
            return image.rotate(30 * strength, Image.Resampling.BILINEAR, fillcolor=_GREY)
        case "shear_x":
            return _moved(image, (1, 0.3 * strength, 0, 0, 1, 0))
        case "shear_y":
            return _moved(image, (1, 0, 0, 0.3 * strength, 1, 0))
        case "translate_x":
            return _moved(image, (1, 0, -round(0.45 * strength * image.width), 0, 1, 0))
        case "translate_y":
            return _moved(image, (1, 0, 0, 0, 1, -round(0.45 * strength * image.height)))


def _moved(image: Image.Image, to_source: tuple[float, float, float, float, float, float]) -> Image.Image:
    """Pillow's affine transform: pixel (x, y) comes from (a x + b y + c, d x + e y + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, to_source, Image.Resampling.BILINEAR, fillcolor=_GREY)
