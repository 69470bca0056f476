"""Have the C library give back what large images took."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from typing import Final

# M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_LARGE_BYTES: Final = 4 << 20
_KEPT_BYTES: Final = 16 << 20  # of smaller blocks, for each thread: to return and take them again costs more


def give_back_large_blocks() -> None:
    """Take blocks of 4 MB and more from the system one by one, so that each goes back to it when it is freed.

    By itself glibc raises that bound to the largest block it has met, and keeps the memory of a worker's largest images
    for as long as it lives. Other C libraries are left as they are.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # musl has no mallopt
            libc = ctypes.CDLL(None)
            libc.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
            libc.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
