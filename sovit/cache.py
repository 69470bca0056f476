"""The machine's cache: compiled plans, timing caches and tuned profiles, which belong to a machine, not to an artifact.

    $XDG_CACHE_HOME/sovit (~/.cache/sovit) / plans | timings | profiles | openvino

What is in it can be deleted at any time; nothing in it is taken from elsewhere.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Literal

from sovit.errors import ConfigError

Kind = Literal["plans", "timings", "profiles", "openvino"]


def cache_folder(kind: Kind) -> Path:
    """Where the cache keeps one kind of thing; made when something is written."""
    # The XDG rule: a relative path in the variable is invalid and is ignored.
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    root = given if given.is_absolute() else Path(os.path.expanduser("~")) / ".cache"
    if not root.is_absolute():
        raise ConfigError("there is no home folder for the cache: set XDG_CACHE_HOME to a folder that can be written.")
    return root / "sovit" / kind


def write_whole(path: Path, content: bytes) -> None:
    """Write a file of the cache whole or not at all: a reader or a kill at any moment finds the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, path)
    finally:
        Path(aside).unlink(missing_ok=True)
