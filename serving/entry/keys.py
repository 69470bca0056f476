r"""Keys of clients: a JSON file with the hash of each key, its rights and its limits.

    [{"name": "shop", "sha256": "<hex>", "requests_per_second": 20, "max_in_flight": 8},
     {"name": "ops", "sha256": "<hex>", "admin": true}]

    openssl rand -hex 32 | tee shop.key | tr -d '\n' | sha256sum

The file is read again when it has changed, so that keys come and go without a restart. Keys must be long and random:
a plain hash protects nothing that can be guessed.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import ClassVar, Final

from pydantic import ConfigDict

from sovit.errors import ConfigError, Forbidden, RateLimited, Unauthorized
from sovit.jsonio import STRICT, from_dict, read_json

logger = logging.getLogger(__name__)

_CHECK_SECONDS: Final = 1.0  # between two looks at the file
_HEX: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True, kw_only=True)
class Key:
    """One client's key. A limit of 0 is none; `requests_per_second` lets through as many at once."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str
    sha256: str
    requests_per_second: float = 0.0
    max_in_flight: int = 0
    admin: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("the name of a key must not be empty.")
        if len(self.sha256) != 64 or not set(self.sha256) <= _HEX:
            raise ConfigError(f"sha256 of the key {self.name!r} must be 64 lower-case hexadecimal digits.")
        if self.sha256 == sha256(b"").hexdigest():
            raise ConfigError(f"sha256 of the key {self.name!r} is the hash of nothing: the key was empty.")
        if self.requests_per_second < 0 or self.max_in_flight < 0:
            raise ConfigError(f"the limits of the key {self.name!r} must be 0 (none) or more.")


class KeyUse:
    """What one key has under way, and a bucket of tokens that fills at its rate."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self._burst = max(1.0, key.requests_per_second)
        self._tokens = self._burst
        self._filled = time.monotonic()
        self._in_flight = 0

    @contextmanager
    def enter(self) -> Iterator[None]:
        """One request of this key, until the block ends. Raises `RateLimited`."""
        key = self.key
        if key.max_in_flight and self._in_flight >= key.max_in_flight:
            raise RateLimited(f"this key has {key.max_in_flight} requests under way, which is its limit.")
        if key.requests_per_second:
            now = time.monotonic()
            self._tokens = min(self._burst, self._tokens + (now - self._filled) * key.requests_per_second)
            self._filled = now
            if self._tokens < 1:
                wait = ceil((1 - self._tokens) / key.requests_per_second)
                raise RateLimited(f"this key is over its {key.requests_per_second:g} requests per second.", wait)
            self._tokens -= 1
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1


class KeyFile:
    """The keys in a file, and what each has under way."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._checked = time.monotonic()
        self._changed = self._stamp()
        self._uses = {key.sha256: KeyUse(key) for key in read_keys(path)}

    def find(self, headers: Mapping[str, str]) -> KeyUse:
        """The key a request came with. Raises `Unauthorized`, which does not say what was wrong with it."""
        self._refresh()
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = headers.get("x-api-key", "")
        # Headers are decoded as latin-1, whatever their bytes were.
        digest = sha256(given.strip().encode("latin-1", "replace")).hexdigest()
        # Every key is compared, whether or not one has matched: the time taken tells nothing.
        found = [use for known, use in self._uses.items() if hmac.compare_digest(known, digest)]
        if not found or not given.strip():
            raise Unauthorized("this service needs a key: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`.")
        return found[0]

    def require_admin(self, headers: Mapping[str, str]) -> KeyUse:
        """The admin key that a request came with. Raises `Unauthorized` or `Forbidden`."""
        use = self.find(headers)
        if not use.key.admin:
            raise Forbidden("this needs an admin key.")
        return use

    def _stamp(self) -> tuple[int, int]:
        try:
            found = self._path.stat()
        except OSError:
            return (0, 0)
        return found.st_mtime_ns, found.st_ino

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._checked < _CHECK_SECONDS:
            return
        self._checked = now
        stamp = self._stamp()
        if stamp == self._changed:
            return
        self._changed = stamp
        try:
            keys = read_keys(self._path)
        except ConfigError as error:
            logger.error("the changed key file is not taken, the old keys stay: %s", error)
            return
        # A key that is as it was keeps its counts.
        self._uses = {
            key.sha256: old if (old := self._uses.get(key.sha256)) and old.key == key else KeyUse(key) for key in keys
        }


def read_keys(path: Path) -> list[Key]:
    """The keys in a file. Raises `ConfigError` for a file that is none, and for a name or key given twice."""
    keys: list[Key] = from_dict(list[Key], read_json(path), str(path))
    if not keys:
        raise ConfigError(f"{path} holds no key.")
    for field in ("name", "sha256"):
        values = [getattr(key, field) for key in keys]
        if len(set(values)) < len(values):
            raise ConfigError(f"{path} gives a {field} twice.")
    return keys
