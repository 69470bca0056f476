"""The photographs of a load: which of a folder's, and how large they are."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from PIL import Image

from benchmarks.load.loops import jpeg_files
from sovit.errors import ConfigError, InvalidImage
from sovit.jpeg import read_jpeg_header

MAX_IMAGES: Final = 512  # kept in memory; of more files, that many are taken at even distances


@dataclass(frozen=True)
class Photographs:
    """Contents of JPEG files; `sizes` are (Y, X) in pixels, `files` is how many there were to choose from."""

    contents: tuple[bytes, ...]
    sizes: tuple[tuple[int, int], ...]
    files: int

    def facts(self) -> dict[str, Any]:
        """What a result says of them."""
        return {
            "files": self.files,
            "used": len(self.contents),
            "bytes": _spread([len(content) for content in self.contents]),
            "pixels": _spread([height * width for height, width in self.sizes]),
            "height": _spread([height for height, _ in self.sizes]),
            "width": _spread([width for _, width in self.sizes]),
        }


def photographs_in(paths: Sequence[Path]) -> Photographs:
    """The JPEG files among these paths and in these folders. Raises `ConfigError` for a missing or broken one."""
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path} does not exist.")
    files = jpeg_files(paths)
    used = (
        [files[index * len(files) // MAX_IMAGES] for index in range(MAX_IMAGES)] if len(files) > MAX_IMAGES else files
    )
    contents = tuple(file.read_bytes() for file in used)
    return Photographs(contents, tuple(map(_size, used, contents)), len(files))


def _size(file: Path, content: bytes) -> tuple[int, int]:
    try:
        header = read_jpeg_header(content)
        with Image.open(io.BytesIO(content)) as image:
            image.draft("RGB", (1, 1))  # an eighth of each side is quick, and reads all of the file
            image.load()
    except (InvalidImage, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"{file} is no photograph to send: {error}") from error
    return header.height, header.width


def _spread(values: Sequence[int]) -> dict[str, float]:
    return {"least": min(values), "median": median(values), "most": max(values)}
