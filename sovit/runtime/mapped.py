"""Give back the pages of a mapped weights file once an engine has packed the weights its own way (Linux).

The pages stay in the system's cache and come back when they are touched; but they count as this process's memory as
long as nobody says that they are no longer needed.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Final

_MAPS: Final = Path("/proc/self/maps")
_DONTNEED: Final = 4  # <sys/mman.h>


def release_mapped(file: Path) -> int:
    """Release every read-only mapping of a file; returns their bytes.

    A writable mapping is left alone: it could hold what the file does not.
    """
    if not _MAPS.is_file():
        return 0
    wanted, released = str(file.resolve()), 0
    madvise = ctypes.CDLL(None).madvise
    for line in _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        # address range, permissions, offset, device, inode, path
        fields = line.split(maxsplit=5)
        if len(fields) < 6 or fields[5] != wanted or "w" in fields[1]:
            continue
        begin, end = (int(side, 16) for side in fields[0].split("-"))
        if madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _DONTNEED) == 0:
            released += end - begin
    return released
