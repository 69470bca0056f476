"""Names of classes: the 1,000 of ImageNet-1k, a file with one name a line, or numbers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

from sovit.errors import ConfigError

IMAGENET_1K: Final = "imagenet-1k"
_IMAGENET_FILE: Final = Path(__file__).with_name("imagenet1k.txt")


@cache
def imagenet_1k() -> dict[str, str]:
    """WordNet id to name of the ImageNet-1k classes, in the order every public classifier has: that of the ids."""
    lines = _IMAGENET_FILE.read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines)


def numbered(count: int) -> tuple[str, ...]:
    """Names for classes whose names nobody wrote down."""
    return tuple(f"class {index}" for index in range(count))


def read_labels(source: str) -> tuple[str, ...]:
    """`imagenet-1k`, or the lines of a file. Raises `ConfigError` for a missing file, an empty or a repeated name."""
    if source == IMAGENET_1K:
        return tuple(imagenet_1k().values())
    try:
        # Lines end with a line feed: other characters that Python takes for line ends may be part of a name.
        lines = Path(source).read_text(encoding="utf-8-sig").rstrip("\r\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the labels in {source} cannot be read; give a text file, or {IMAGENET_1K}.") from error
    labels = tuple(line.strip() for line in lines)
    seen: set[str] = set()
    for number, label in enumerate(labels, 1):
        if not label:
            raise ConfigError(f"{source}: line {number} is empty, every class needs a name.")
        if label in seen:
            raise ConfigError(f"{source}: line {number} names {label!r} once more; every class needs its own name.")
        seen.add(label)
    return labels
