"""Prometheus metrics of one worker. Labels are route templates and status codes, never what a client sent."""

from __future__ import annotations

from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The service's counters."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter("sovit_requests", "Requests answered.", ["route", "code"], registry=self._registry)
        self.request_seconds = Histogram(
            "sovit_request_seconds",
            "Time from a request's first byte to its reply.",
            ["route"],
            registry=self._registry,
        )
        self.rejected = Counter(
            "sovit_rejected", "Requests refused at the door, by reason.", ["reason"], registry=self._registry
        )
        self.batch_images = Histogram(
            "sovit_batch_images",
            "Images in one run of the model.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self._registry,
        )
        self.batch_seconds = Histogram("sovit_batch_seconds", "Time of one run of the model.", registry=self._registry)
        self.queue_images = Gauge("sovit_queue_images", "Images waiting for a run.", registry=self._registry)
        self.inflight = Gauge("sovit_inflight", "Requests under way.", registry=self._registry)

    @lru_cache(maxsize=256)  # noqa: B019 - one for the life of the process; its values are few
    def _of(self, route: str, code: int) -> tuple[Counter, Histogram]:
        return self.requests.labels(route, code), self.request_seconds.labels(route)

    def on_request(self, route: str, code: int, seconds: float) -> None:
        """Record one answer."""
        requests, request_seconds = self._of(route, code)
        requests.inc()
        request_seconds.observe(seconds)

    def on_batch(self, images: int, seconds: float) -> None:
        """Record one run of the model."""
        self.batch_images.observe(images)
        self.batch_seconds.observe(seconds)

    def render(self, *, queue_images: int, inflight: int) -> bytes:
        """The text form that Prometheus scrapes."""
        self.queue_images.set(queue_images)
        self.inflight.set(inflight)
        return generate_latest(self._registry)
