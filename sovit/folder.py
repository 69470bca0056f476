"""Folders that are written whole or not at all: aside first, then put in place by one rename."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sovit.errors import ConfigError

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


@contextmanager
def replace_folder(target: Path, kind: str, is_kind: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield an empty folder beside `target` that takes its place when the block ends without an error.

    An existing `target` is replaced only when it is empty or `is_kind` (an older one of the same `kind`), so that a
    wrong path never costs anybody their files. A kill at any moment leaves either the old or the new folder complete.
    """
    target = Path(os.path.abspath(target))
    check_replaceable(target, kind, is_kind)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        aside.chmod(0o755)
        yield aside
        for path in [*aside.rglob("*"), aside]:
            _sync(path)
        if target.exists():
            _exchange(aside, target)
        else:
            aside.rename(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_replaceable(target: Path, kind: str, is_kind: Callable[[Path], bool]) -> None:
    """Raise `ConfigError` for a place that `replace_folder` would refuse: before the work, not after it."""
    if target.exists() and not (target.is_dir() and (not any(target.iterdir()) or is_kind(target))):
        raise ConfigError(f"{target} exists and is no {kind} of sovit's: choose another folder or remove it.")


def _sync(path: Path) -> None:
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
