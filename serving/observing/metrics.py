"""Prometheus metrics of one worker. Labels are route templates, status codes and served models' names.

Nothing that a client sends becomes a label.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

from serving.observing.record import STAGES, Outcome, Record

# BentoML has its workers keep their counters in files, to add them up: read when the package is imported. There is one
# worker, and memory does.
os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class ModelState(NamedTuple):
    """A served model at the time of a scrape."""

    name: str
    artifact: str
    precision: str
    runtime: str
    queue_images: int


class Connections(Protocol):
    """What is counted of one port's connections: those open, how many there may be, and those closed by reason."""

    @property
    def limit(self) -> int: ...

    @property
    def closed(self) -> Mapping[str, int]: ...

    def __len__(self) -> int: ...


class _ConnectionCollector(Collector):
    """Reads the tables of connections, by the port they belong to, when a scrape asks."""

    def __init__(self, tables: Mapping[str, Connections]) -> None:
        self._tables = tables

    def collect(self) -> Iterator[Metric]:
        connections = GaugeMetricFamily("sovit_connections", "Open connections.", labels=["port"])
        limit = GaugeMetricFamily(
            "sovit_connections_limit", "Connections that the limit of open files leaves room for.", labels=["port"]
        )
        closed = CounterMetricFamily(
            "sovit_connections_closed", "Connections that the service closed, by reason.", labels=["port", "reason"]
        )
        for port, table in self._tables.items():
            connections.add_metric([port], len(table))
            limit.add_metric([port], table.limit)
            for reason, count in list(table.closed.items()):
                closed.add_metric([port, reason], count)
        yield from (connections, limit, closed)


class Metrics:
    """The service's counters. `tables` are those of its open connections, by port."""

    def __init__(self, tables: Mapping[str, Connections]) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(_ConnectionCollector(tables))
        self.requests = Counter("sovit_requests", "Requests answered.", ["route", "code"], registry=registry)
        self.request_seconds = Histogram(
            "sovit_request_seconds",
            "Time from a request's first byte to its reply.",
            ["route"],
            registry=registry,
            buckets=_SECONDS,
        )
        stage_seconds = Histogram(
            "sovit_stage_seconds",
            "Time of a request's stages, on the way of its image that was ready last.",
            ["stage"],
            registry=registry,
            buckets=_SECONDS,
        )
        self._stages = {stage: stage_seconds.labels(stage) for stage in STAGES}
        self.rejected = Counter(
            "sovit_rejected", "Requests with images that were refused, by reason.", ["reason"], registry=registry
        )
        self.images = Counter("sovit_images", "Images by what became of them.", ["model", "outcome"], registry=registry)
        self.batch_images = Histogram(
            "sovit_batch_images",
            "Images in one run of the model.",
            ["model"],
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "sovit_batch_seconds", "Time of one run of the model.", ["model"], registry=registry, buckets=_SECONDS
        )
        self.queue_images = Gauge("sovit_queue_images", "Images waiting for a run.", ["model"], registry=registry)
        self.inflight = Gauge("sovit_inflight", "Requests under way.", registry=registry)
        self.decode_bytes = Gauge(
            "sovit_decode_bytes", "Memory reserved for images that are being decoded.", registry=registry
        )
        self.decode_bytes_limit = Gauge(
            "sovit_decode_bytes_limit", "The most that may be reserved for images being decoded.", registry=registry
        )
        self.model_info = Gauge(
            "sovit_model_info", "What is served.", ["model", "artifact", "precision", "runtime"], registry=registry
        )

    @lru_cache(maxsize=256)  # noqa: B019 - one for the life of the process; its values are few
    def _of(self, route: str, code: int) -> tuple[Counter, Histogram]:
        return self.requests.labels(route, code), self.request_seconds.labels(route)

    def on_request(self, route: str, code: int, seconds: float, record: Record) -> None:
        """Record one answer."""
        requests, request_seconds = self._of(route, code)
        requests.inc()
        request_seconds.observe(seconds)
        for stage, took in record.seconds().items():
            self._stages[stage].observe(took)

    def on_images(self, model: str, outcome: Outcome, count: int) -> None:
        """Record what became of some of a request's images."""
        if count:
            self.images.labels(model, outcome).inc(count)

    def on_batch(self, model: str, images: int, seconds: float) -> None:
        """Record one run of a model."""
        self.batch_images.labels(model).observe(images)
        self.batch_seconds.labels(model).observe(seconds)

    def render(self, models: Iterable[ModelState], *, inflight: int, decode_bytes: int) -> bytes:
        """The text form that Prometheus scrapes."""
        self.inflight.set(inflight)
        self.decode_bytes.set(decode_bytes)
        self.model_info.clear()
        for model in models:
            self.queue_images.labels(model.name).set(model.queue_images)
            self.model_info.labels(model.name, model.artifact, model.precision, model.runtime).set(1)
        return generate_latest(self._registry)
