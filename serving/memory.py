"""Have the C library give back what large images took."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from typing import Final

_MMAP_THRESHOLD: Final = -3  # M_MMAP_THRESHOLD of malloc.h
_LARGE_BYTES: Final = 4 << 20


def give_back_large_blocks() -> None:
    """Take blocks of 4 MB and more from the system one by one, so that each goes back to it when it is freed.

    By itself glibc raises that bound to the largest block it has met, and keeps the memory of a worker's largest images
    for as long as it lives. Other C libraries are left as they are.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # musl has no mallopt
            ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
