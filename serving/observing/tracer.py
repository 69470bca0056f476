"""Which tracer a service has: one that sends spans, where it was told where to, or one that only passes traces on."""

from __future__ import annotations

from serving.observing.trace import PassOn, Tracer


def open_tracer(endpoint: str, ratio: float) -> Tracer:
    """A tracer that sends to an OTLP endpoint, or one that only passes traces on. Raises `MissingDependency`."""
    if not endpoint:
        return PassOn()
    from serving.observing.otel import OpenTelemetryTracer, otlp_exporter

    return OpenTelemetryTracer(otlp_exporter(endpoint), ratio)
