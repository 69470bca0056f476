"""What is told of requests: traces, logs, metrics, Server-Timing and the last minute."""

from __future__ import annotations

import gzip
import http.server
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

import serving.observing.otel
from serving.config import ServeConfig
from serving.observing.log import JsonFormatter
from serving.observing.recent import Recent
from serving.observing.record import STAGES
from sovit.artifact import Artifact
from sovit.errors import ConfigError
from sovit.process import free_port, sovit_serve
from sovit.process import serving as service_process
from sovit.runtime.fake import FakeRuntime
from tests.conftest import jpeg
from tests.served import JPEG, post_in_thread, running, truncated_jpeg, until, worker_of

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@contextmanager
def traced(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, runtime: FakeRuntime | None = None, **changes: Any
) -> Iterator[tuple[TestClient, Any]]:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(serving.observing.otel, "otlp_exporter", lambda endpoint: exporter)
    with running(artifact, runtime, trace_endpoint="http://collector:4318", **changes) as client:

        def spans() -> list[Any]:
            worker_of(client).tracer.flush()  # type: ignore[attr-defined]
            return list(exporter.get_finished_spans())

        yield client, spans


def test_a_request_leaves_a_span_with_its_stages_below(exported: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    with traced(exported, monkeypatch) as (client, spans):
        headers = JPEG | {"traceparent": TRACEPARENT, "x-request-id": "seven"}
        response = client.post("/classify", content=jpeg(), headers=headers)
        found = spans()
    (server,) = [span for span in found if span.name == "POST /classify"]
    stages = [span for span in found if span is not server]
    assert server.kind.name == "SERVER"
    assert server.parent.span_id == int(PARENT, 16)
    assert response.headers["traceparent"] == f"00-{TRACE}-{server.context.span_id:016x}-01"
    assert dict(server.attributes) == {
        "http.request.method": "POST",
        "http.route": "/classify",
        "http.response.status_code": 200,
        "sovit.request_id": "seven",
        "sovit.images": 1,
        "sovit.model": "tiny",
    }
    assert server.resource.attributes["service.name"] == "sovit"
    assert [span.name for span in stages] == ["read", "queue", "decode", "queue", "infer", "encode"]
    assert {span.context.trace_id for span in found} == {int(TRACE, 16)}
    assert {span.parent.span_id for span in stages} == {server.context.span_id}
    slack = 5_000_000  # ns: two clocks
    assert all(
        server.start_time - slack <= span.start_time <= span.end_time <= server.end_time + slack for span in stages
    )
    for earlier, later in pairwise(stages):
        assert earlier.end_time <= later.start_time + slack


def test_the_stages_are_those_of_the_image_that_was_ready_last(exported: Artifact) -> None:
    """Two images, run one after the other: the second waits for the first, and the reply for the second."""
    runtime, seconds = FakeRuntime(exported.manifest.model), 0.2
    with running(exported, runtime, max_batch=1) as client:
        runtime.seconds_per_call = seconds
        reply = client.post("/embed", files=[("images", jpeg()), ("images", jpeg())])
    timing = timings(reply.headers["server-timing"])
    assert timing["queue"] > 1000 * seconds / 2, "most of the first image's run"
    assert timing["infer"] >= 1000 * seconds, "its own run"


def test_a_request_whose_time_ran_out_says_where(exported: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = FakeRuntime(exported.manifest.model)
    with traced(exported, monkeypatch, runtime, max_batch=1) as (client, spans):
        runtime.gate.clear()
        first, threads = post_in_thread(client, 1)
        until(lambda: worker_of(client).models.find(None).engine.running)
        late = client.post("/embed", content=jpeg(), headers=JPEG | {"x-request-timeout": "0.2"})
        assert late.status_code == 504
        timing = timings(late.headers["server-timing"])
        assert timing["queue"] > 150
        assert "infer" not in timing
        runtime.gate.set()
        threads[0].join()
        assert first[0].status_code == 200
        metrics = client.get("/metrics").text
        assert 'sovit_images_total{model="tiny",outcome="failed"} 1.0' in metrics
        assert 'sovit_images_total{model="tiny",outcome="ok"} 1.0' in metrics
        failed = next(span for span in spans() if (span.attributes or {}).get("http.response.status_code") == 504)
        assert failed.status.status_code.name == "ERROR"
        below = [span.name for span in spans() if span.parent and span.parent.span_id == failed.context.span_id]
        assert below == ["read", "queue", "decode", "queue"]


def test_probes_are_no_refusals(exported: Artifact) -> None:
    with running(exported) as client:
        assert client.portal is not None
        client.portal.call(worker_of(client).door.drain)
        assert client.get("/readyz").status_code == 503
        assert "sovit_rejected_total{" not in client.get("/metrics").text
        assert client.post("/embed", content=jpeg(), headers=JPEG).status_code == 503
        assert 'sovit_rejected_total{reason="draining"} 1.0' in client.get("/metrics").text


def test_with_opentelemetry_turned_off_requests_are_answered(
    exported: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with traced(exported, monkeypatch, log_requests=True) as (client, _):
        reply = client.post("/embed", content=jpeg(), headers=JPEG | {"traceparent": TRACEPARENT})
    assert reply.status_code == 200
    assert reply.headers["traceparent"].split("-")[1] == TRACE


def test_a_failed_request_has_a_span_that_says_so(exported: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    with traced(exported, monkeypatch) as (client, spans):
        client.post("/embed", content=truncated_jpeg(), headers=JPEG)
        client.post("/v1/embeddings", json={})
        client.get("/readyz")
        client.get("/nothing")
        found = {span.name: span for span in spans()}
    assert found["POST /embed"].attributes["http.response.status_code"] == 422
    assert found["POST /v1/embeddings"].attributes["http.response.status_code"] == 400
    assert not {name for name in found if "readyz" in name or "other" in name}, "probes leave no trace"


def test_the_ratio_and_the_callers_choice_decide_what_is_sampled(
    exported: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    with traced(exported, monkeypatch, trace_ratio=0.0) as (client, spans):
        reply = client.post("/embed", content=jpeg(), headers=JPEG)
        assert not int(reply.headers["traceparent"][-2:], 16) & 1, "not sampled"
        client.post("/embed", content=jpeg(), headers=JPEG | {"traceparent": TRACEPARENT[:-1] + "0"})
        assert not spans()
        client.post("/embed", content=jpeg(), headers=JPEG | {"traceparent": TRACEPARENT})
        assert [span.name for span in spans() if span.kind.name == "SERVER"] == ["POST /embed"]


@pytest.mark.parametrize(
    "given",
    [
        "",
        "x",
        TRACEPARENT.upper(),
        f"ff{TRACEPARENT[2:]}",
        f"{TRACEPARENT}-more",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
    ],
)
def test_without_an_exporter_a_trace_is_passed_on_or_begun(client: TestClient, given: str) -> None:
    begun = client.post("/embed", content=jpeg(), headers=JPEG | {"traceparent": given}).headers["traceparent"]
    version, trace, span, flags = begun.split("-")
    assert (version, len(trace), len(span), flags) == ("00", 32, 16, "00")
    assert trace not in ("0" * 32, TRACE)
    passed = client.get("/models", headers={"traceparent": TRACEPARENT}).headers["traceparent"].split("-")
    assert passed[1] == TRACE
    assert passed[2] != PARENT
    assert passed[3] == "01"


def timings(header: str) -> dict[str, float]:
    return {name: float(value.removeprefix("dur=")) for name, value in (part.split(";") for part in header.split(", "))}


def test_server_timing_gives_the_stages_in_milliseconds(client: TestClient) -> None:
    for response in (
        client.post("/classify", content=jpeg(), headers=JPEG),
        client.post("/embed", files=[("images", jpeg())] * 5),
    ):
        found = timings(response.headers["server-timing"])
        assert list(found) == [*STAGES, "total"]
        assert all(value >= 0 for value in found.values())
        assert found["decode"] > 0
        assert found["infer"] > 0
        assert sum(found[stage] for stage in STAGES) <= found["total"] + 0.01
    assert "server-timing" not in client.get("/models").headers


def test_every_metric_parses_and_has_the_promised_name(client: TestClient) -> None:
    client.post("/classify", content=jpeg(), headers=JPEG)
    client.post("/embed", files=[("images", jpeg()), ("images", truncated_jpeg())], data={"on_error": "item"})
    client.post("/v2/models/tiny/infer", content=b"{")
    client.get("/" + "x" * 50)
    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    labels = {
        name: {frozenset(sample.labels) - {"le"} for sample in family.samples} for name, family in families.items()
    }
    promised = {
        "sovit_requests": {"route", "code"},
        "sovit_request_seconds": {"route"},
        "sovit_stage_seconds": {"stage"},
        "sovit_batch_images": {"model"},
        "sovit_batch_seconds": {"model"},
        "sovit_queue_images": {"model"},
        "sovit_images": {"model", "outcome"},
        "sovit_inflight": set(),
        "sovit_model_info": {"model", "artifact", "precision", "runtime"},
        "process_resident_memory_bytes": set(),
    }
    for name, expected in promised.items():
        assert labels[name] == {frozenset(expected)}, name
    assert "sovit_rejected" in families
    assert {one.labels["stage"] for one in families["sovit_stage_seconds"].samples} == set(STAGES)
    counted = {
        (one.labels["route"], one.labels["code"]): one.value
        for one in families["sovit_requests"].samples
        if one.name == "sovit_requests_total"
    }
    assert counted["/classify", "200"] == 1
    assert counted["/v2/models/{model}/infer", "400"] == 1
    assert counted["other", "404"] == 1
    outcomes = {
        one.labels["outcome"]: one.value for one in families["sovit_images"].samples if one.name.endswith("_total")
    }
    assert outcomes == {"ok": 2, "invalid": 1}


def test_stats_tell_the_last_minute(client: TestClient) -> None:
    empty = client.get("/stats").json()
    assert empty["requests"] == {"inflight": 0, "per_second": 0.0, "latency_ms": None}
    assert empty["models"] == [{"name": "tiny", "queue_images": 0, "batch_images": None, "ready": True}]
    for _ in range(3):
        client.post("/embed", content=jpeg(), headers=JPEG)
    client.post("/embed", content=truncated_jpeg(), headers=JPEG)
    found = client.get("/stats").json()
    assert found["requests"]["per_second"] == pytest.approx(3 / 60, abs=1e-3), "answers, not errors"
    latency = found["requests"]["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
    assert found["models"][0]["batch_images"] == 1.0


def test_the_last_minute_of_a_busy_service_takes_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("serving.observing.recent.time.monotonic", lambda: now)
    recent = Recent()
    assert recent.requests() == {"per_second": 0.0, "latency_ms": None}
    for number in range(30_000):  # 1,000 a second for half a minute
        recent.on_reply(number / 1e6)
        recent.on_batch("a", 2)
        now += 0.001
    assert len(recent._latencies) + len(recent._batches["a"]) < 10_000
    found = recent.requests()
    assert found["per_second"] == pytest.approx(1000, rel=0.01)
    assert found["latency_ms"]["p99"] == pytest.approx(29.96, abs=0.05), "of the latest"
    assert recent.batch_images("a") == 2
    now += 61
    assert recent.requests()["latency_ms"] is None
    assert recent.batch_images("a") is None


def test_a_request_is_a_line_of_json_with_its_ids_and_nothing_the_client_wrote(
    exported: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "sovit.requests"), running(exported, log_requests=True) as client:
        headers = JPEG | {"x-request-id": "seven", "traceparent": TRACEPARENT}
        client.post("/embed?normalize=true", content=jpeg(), headers=headers)
        client.post("/embed", files={"images": ("secret-name.jpg", truncated_jpeg())})
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records if record.name == "sovit.requests"]
    assert len(lines) == 2
    first, second = lines
    assert first["message"] == "POST /embed 200"
    assert (first["request_id"], first["trace_id"]) == ("seven", TRACE)
    assert (first["status"], first["images"], first["bytes"], first["model"]) == (200, 1, len(jpeg()), "tiny")
    assert list(first["stages"]) == list(STAGES)
    assert second["status"] == 422
    assert "secret-name" not in json.dumps(second)


def test_a_log_line_is_one_line_whatever_is_in_it() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        found = logging.LogRecord(
            "a", logging.ERROR, "f", 1, "went %s", ("wrong\n\x1b[31m",), (type(error), error, None)
        )
    found.request_id = "seven"
    text = JsonFormatter().format(found)
    assert "\n" not in text
    line = json.loads(text)
    assert line["message"] == "went wrong\n\x1b[31m"
    assert line["request_id"] == "seven"
    assert "ValueError: two" in line["traceback"]


class Collector(http.server.BaseHTTPRequestHandler):
    """An OTLP collector that keeps what it is sent."""

    received: ClassVar[list[ExportTraceServiceRequest]] = []

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            content = gzip.decompress(content)
        assert self.path == "/v1/traces"
        self.received.append(ExportTraceServiceRequest.FromString(content))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_real_service_sends_its_spans_and_logs_as_json(exported: Artifact, tmp_path: Path) -> None:
    collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    port, log = free_port(), tmp_path / "log"
    endpoint = f"http://127.0.0.1:{collector.server_port}"
    url = f"http://127.0.0.1:{port}"
    options = ("--trace-endpoint", endpoint, "--log-requests")
    with service_process(sovit_serve(exported.folder, port, *options), url, log):
        for number in range(3):
            headers = JPEG | {"x-request-id": f"r{number}"}
            assert httpx.post(f"{url}/embed", content=jpeg(), headers=headers).status_code == 200
        scraped = {one.name: one for one in text_string_to_metric_families(httpx.get(f"{url}/metrics").text)}
    collector.shutdown()
    counted = [one for one in scraped["sovit_requests"].samples if one.labels.get("route") == "/embed"]
    assert [(one.labels["code"], one.value) for one in counted if one.name.endswith("_total")] == [("200", 3)]
    assert scraped["process_resident_memory_bytes"].samples[0].value > 1e7
    names = [
        span.name
        for request in Collector.received
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert names.count("POST /embed") == 3, "those of the last seconds are sent before the end"
    assert names.count("infer") == 3
    lines = [json.loads(line) for line in log.read_text().splitlines() if line]  # all of them
    assert [line["request_id"] for line in lines if line["logger"] == "sovit.requests"] == ["r0", "r1", "r2"]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)


def test_settings_of_traces_that_make_no_sense_are_refused(exported: Artifact) -> None:
    artifacts = {"tiny": str(exported.folder)}
    with pytest.raises(ConfigError, match="trace_ratio is 2"):
        ServeConfig(artifacts=artifacts, trace_ratio=2)
    with pytest.raises(ConfigError, match="must be a URL such as"):
        serving.observing.otel.otlp_exporter("collector:4318")
