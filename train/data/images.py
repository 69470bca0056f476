"""Images that are read when they are asked for, in whatever process asks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np

from sovit.decode import ImageSource


class LazyImages(Sequence[ImageSource]):
    """A sequence that holds where its images are. Pickled for another process it is small; what it opens is not sent.

    Safe to share between threads and after a fork.
    """

    @abstractmethod
    def read(self, index: int) -> ImageSource:
        """The image at an index in range."""

    def image_name(self, index: int) -> str:
        """The path of an image or its place in a shard; "" where it has none."""
        return ""

    def bytes_to_read(self) -> int:
        """Bytes to read from files to see the content of every image; 0 where they are in memory or unknown."""
        return 0

    @overload
    def __getitem__(self, index: int) -> ImageSource: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[ImageSource]: ...

    def __getitem__(self, index: int | slice) -> ImageSource | Sequence[ImageSource]:
        chosen = range(len(self))[index]
        return _Part(self, chosen) if isinstance(chosen, range) else self.read(chosen)


class _Part(LazyImages):
    """A slice, as lazy as the whole."""

    def __init__(self, whole: LazyImages, chosen: range) -> None:
        self._whole = whole
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def read(self, index: int) -> ImageSource:
        return self._whole.read(self._chosen[index])

    def image_name(self, index: int) -> str:
        return self._whole.image_name(self._chosen[index])

    def bytes_to_read(self) -> int:
        return self._whole.bytes_to_read() * len(self._chosen) // max(1, len(self._whole))


class Names(Sequence[str]):
    """Many strings in one buffer: a million file names cost what their letters do, and are sent in one piece."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self._letters = b"".join(encoded)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            return [self[one] for one in chosen]
        start = int(self._ends[chosen - 1]) if chosen else 0
        return self._letters[start : int(self._ends[chosen])].decode("utf-8", "surrogateescape")
