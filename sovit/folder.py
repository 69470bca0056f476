"""Folders that are written whole or not at all: aside first, then put in place by one rename."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sovit.errors import ConfigError

# The names of the files a folder of this kind may hold, or None for a folder that is none.
OwnFiles = Callable[[Path], Collection[str] | None]
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


@contextmanager
def replace_folder(target: Path, kind: str, own_files: OwnFiles) -> Iterator[Path]:
    """Yield an empty folder beside `target` that takes its place when the block ends without an error.

    An existing `target` is replaced only when it is empty or an older one of the same `kind` with no file that is not
    its own, so that a wrong path never costs anybody their files. A symbolic link is followed. A kill at any moment
    leaves either the old or the new folder complete.
    """
    target = Path(os.path.realpath(target))
    check_replaceable(target, kind, own_files)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        aside.chmod(0o777 & ~_umask())
        yield aside
        for path in aside.iterdir():
            path.chmod(0o666 & ~_umask())  # some writers leave files that only their owner can read
        for path in [*aside.iterdir(), aside]:
            sync(path)
        check_replaceable(target, kind, own_files)  # somebody may have put something there meanwhile
        if target.exists():
            _exchange(aside, target)
        else:
            aside.rename(target)
        sync(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_replaceable(target: Path, kind: str, own_files: OwnFiles) -> None:
    """Raise `ConfigError` for a place that `replace_folder` would refuse: before the work, not after it."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    known = own_files(target) if target.is_dir() else None
    if known is None:
        raise ConfigError(f"{target} exists and is no {kind} of sovit's: choose another folder or remove it.")
    others = sorted(path.name for path in target.iterdir() if path.name not in known)
    if others:
        raise ConfigError(
            f"{target} is an older {kind} and also holds {', '.join(others[:3])}, which would be lost: move it away or "
            "choose another folder."
        )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync(path: Path) -> None:
    """Have a file or a folder's entries on the disk, so that a power cut leaves what was written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders in one step (Linux); elsewhere the old one steps aside first."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    paths = (_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old))
    if renameat2 is not None and renameat2(*paths, _RENAME_EXCHANGE) == 0:
        return
    beside = new.with_name(new.name + ".old")
    old.rename(beside)
    new.rename(old)
    beside.rename(new)
