from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from sovit.runtime.mapped import release_mapped

SIZE = 8 * 2**20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/maps is Linux's")


def resident(path: Path) -> int:
    """Resident bytes of a file's mappings in this process."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_pages_are_given_back_and_can_still_be_read(tmp_path: Path) -> None:
    path = tmp_path / "weights with a space"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert len(bytes(mapped)) == SIZE
        assert resident(path) == SIZE
        assert release_mapped(path) == SIZE
        assert resident(path) == 0
        assert mapped[1000:1256] == bytes(range(232, 256)) + bytes(range(232))


def test_what_could_have_been_changed_stays(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(SIZE))
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[0] = 7
        assert release_mapped(path) == 0
        assert mapped[0] == 7
    assert release_mapped(tmp_path / "never mapped") == 0
