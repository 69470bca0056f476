"""OpenTelemetry spans: one of the server for a request, and below it one for each of its stages.

Needs the extra `tracing`. Spans are made when a request is over, from its record: the way itself knows nothing of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from serving.observing.record import Record
from serving.observing.trace import TRACEPARENT, pass_on
from sovit import __version__
from sovit.errors import ConfigError, MissingDependency

try:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise MissingDependency("tracing needs OpenTelemetry: pip install 'sovit[tracing]'.") from error

_SERVER_FAULT: Final = 500
_LAST_SECONDS: Final = 3.0
_PROPAGATOR: Final = TraceContextTextMapPropagator()


def otlp_exporter(endpoint: str) -> SpanExporter:
    """Sends to a collector over HTTP. `endpoint` is its address, without the path of the protocol."""
    if not endpoint.startswith(("http://", "https://")) or not urlsplit(endpoint).hostname:
        raise ConfigError(f"trace_endpoint is {endpoint!r}; it must be a URL such as http://collector:4318.")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise MissingDependency("tracing needs an exporter: pip install 'sovit[tracing]'.") from error
    return OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")


class OpenTelemetryTracer:
    """Makes spans of a share of the traces that begin here, and of those that clients sample."""

    def __init__(self, exporter: SpanExporter, ratio: float) -> None:
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "sovit", "service.version": __version__}),
            sampler=ParentBased(TraceIdRatioBased(ratio)),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("sovit", __version__)

    def begin(self, headers: Mapping[str, str], method: str, route: str, began: float) -> OpenTelemetryTrace:
        """Start the span of a request."""
        # Stages are told by the monotonic clock, spans by that of the wall.
        offset = time.time_ns() - time.monotonic_ns()
        # Not the tracestate: it is the makers' of other tools, and what cannot be read of it would be logged.
        parent = _PROPAGATOR.extract({TRACEPARENT: headers.get(TRACEPARENT, "")})
        start = int(began * 1e9) + offset
        span = self._tracer.start_span(f"{method} {route}", parent, SpanKind.SERVER, start_time=start)
        if span.is_recording():
            span.set_attributes({"http.request.method": method, "http.route": route})
        return OpenTelemetryTrace(self._tracer, span, headers, offset)

    def flush(self) -> None:
        """Send what has ended."""
        self._provider.force_flush()

    def close(self) -> None:
        """Send what is left, if the collector takes it soon: a stop does not wait for one that is gone."""
        last = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        last.start()
        last.join(_LAST_SECONDS)


class OpenTelemetryTrace:
    """One request."""

    def __init__(self, tracer: Tracer, span: Span, headers: Mapping[str, str], offset: int) -> None:
        self._tracer = tracer
        self._span = span
        self._offset = offset  # ns from one clock to the other
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, set_span_in_context(span))
        # Where the user's environment turns OpenTelemetry off, there is none.
        self.traceparent = carrier.get(TRACEPARENT) or pass_on(headers)

    def end(self, record: Record, status: int) -> None:
        """End the span and make those of the stages."""
        span = self._span
        if span.is_recording():
            span.set_attributes(
                {
                    "http.response.status_code": status,
                    "sovit.request_id": record.request_id,
                    "sovit.images": record.images,
                    "sovit.model": record.model,
                }
            )
            if status >= _SERVER_FAULT:
                span.set_status(Status(StatusCode.ERROR))
            inside = set_span_in_context(span)
            for name, began, ended in record.stages:
                stage = self._tracer.start_span(name, inside, start_time=int(began * 1e9) + self._offset)
                stage.end(int(ended * 1e9) + self._offset)
        span.end()
