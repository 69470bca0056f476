"""An answer as it comes in: bounded in bytes and in time, whoever sends it."""

from __future__ import annotations

import time
from typing import Final

import httpx

MAX_BYTES: Final = 256_000_000  # unpacked; far above any answer of a service
_OF_THE_WIRE: Final = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})


class AnswerTooLong(httpx.RequestError):
    """An answer that is longer than any of a service."""


class Receiving:
    """Gathers the body of an answer. `timeout_seconds` are for all of it, from now on."""

    def __init__(self, timeout_seconds: float) -> None:
        self._until = time.monotonic() + timeout_seconds
        self._pieces: list[bytes] = []
        self._size = 0

    def take(self, piece: bytes) -> None:
        """The next piece. Raises `AnswerTooLong` and `httpx.ReadTimeout`."""
        self._size += len(piece)
        if self._size > MAX_BYTES:
            raise AnswerTooLong(f"it is longer than {MAX_BYTES:,} bytes")
        if time.monotonic() > self._until:
            raise httpx.ReadTimeout("it did not end in time")
        self._pieces.append(piece)

    def whole(self, response: httpx.Response) -> httpx.Response:
        """The answer with its body."""
        headers = [(name, value) for name, value in response.headers.raw if name.lower() not in _OF_THE_WIRE]
        return httpx.Response(response.status_code, headers=headers, content=b"".join(self._pieces))


def no_url() -> httpx.RequestError:
    """What httpx says of an answer that redirects to something that is none, as an error like the others."""
    return httpx.UnsupportedProtocol("it redirects to what is no URL")
