"""W3C trace context in and out. Spans are made where an exporter is set (serving/observing/otel.py)."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Final, Protocol

from serving.observing.record import Record

TRACEPARENT: Final = "traceparent"
_VALID: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(-.*)?")


class Trace(Protocol):
    """The part of a trace that one request is. `traceparent` goes out with its reply."""

    @property
    def traceparent(self) -> str: ...

    def end(self, record: Record, status: int) -> None:
        """The request is over."""


class Tracer(Protocol):
    """Begins traces, or takes part in those that clients have begun."""

    def begin(self, headers: Mapping[str, str], method: str, route: str) -> Trace: ...

    def close(self) -> None:
        """Send what is left."""


class _PassedOn:
    """A trace that we make no spans for; what stands behind us may."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        given = _VALID.fullmatch(headers.get(TRACEPARENT, ""))
        trace, flags = (given[1], given[2]) if given else (f"{random.getrandbits(128) or 1:032x}", "00")
        self.traceparent = f"00-{trace}-{random.getrandbits(64) or 1:016x}-{flags}"

    def end(self, record: Record, status: int) -> None:
        pass


class PassOn:
    """The tracer without an exporter."""

    def begin(self, headers: Mapping[str, str], method: str, route: str) -> Trace:
        return _PassedOn(headers)

    def close(self) -> None:
        pass


def open_tracer(endpoint: str, ratio: float) -> Tracer:
    """A tracer that sends to an OTLP endpoint, or one that only passes traces on. Raises `MissingDependency`."""
    if not endpoint:
        return PassOn()
    from serving.observing.otel import OpenTelemetryTracer, otlp_exporter

    return OpenTelemetryTracer(otlp_exporter(endpoint), ratio)
