"""W3C trace context in and out. Spans are made where an exporter is set (serving/observing/otel.py)."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Final, Protocol

from serving.observing.record import Record

TRACEPARENT: Final = "traceparent"
_HEAD: Final = r"-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})"
_VALID: Final = re.compile(rf"00{_HEAD}")
_LATER: Final = re.compile(rf"(?!00|ff)[0-9a-f]{{2}}{_HEAD}(-.*)?")  # versions that may have more at their end


def pass_on(headers: Mapping[str, str]) -> str:
    """A traceparent with a span id of its own, in the trace that a client takes part in, or in a new one."""
    text = headers.get(TRACEPARENT, "")
    given = _VALID.fullmatch(text) or _LATER.fullmatch(text)
    trace, flags = (given[1], given[2]) if given else (f"{random.getrandbits(128) or 1:032x}", "00")
    return f"00-{trace}-{random.getrandbits(64) or 1:016x}-{flags}"


class Trace(Protocol):
    """The part of a trace that one request is. `traceparent` goes out with its reply."""

    @property
    def traceparent(self) -> str: ...

    def end(self, record: Record, status: int) -> None:
        """The request is over."""


class Tracer(Protocol):
    """Begins traces, or takes part in those that clients have begun."""

    def begin(self, headers: Mapping[str, str], method: str, route: str, began: float) -> Trace:
        """The part of a request that began at this `time.monotonic()`."""

    def close(self) -> None:
        """Send what is left."""


class _PassedOn:
    """A trace that we make no spans for; what stands behind us may."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.traceparent = pass_on(headers)

    def end(self, record: Record, status: int) -> None:
        pass


class PassOn:
    """The tracer without an exporter."""

    def begin(self, headers: Mapping[str, str], method: str, route: str, began: float) -> Trace:
        return _PassedOn(headers)

    def close(self) -> None:
        pass
