"""HTTP/1.1 on the socket, under BentoML and under uvicorn alone: one response for each request, whatever it holds."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.wire.connections import ConnectionLimits
from sovit.artifact import Artifact
from sovit.process import free_port, serving, sovit_serve
from tests.conftest import jpeg

IMAGE = jpeg()
INNER = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"  # would be answered with 200 if it were taken for a request
LIMITS = ConnectionLimits()


@pytest.fixture(scope="module", params=["bentoml", "uvicorn"])
def port(request: pytest.FixtureRequest, exported: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port, folder = free_port(), tmp_path_factory.mktemp("protocol")
    command, env = sovit_serve(exported.folder, port), {}
    if request.param == "uvicorn":
        (folder / "serve.json").write_text(json.dumps({"artifacts": {"tiny": str(exported.folder)}}))
        command = ["uvicorn", "serving.app:app", "--port", str(port)]
        env = {"SOVIT_SERVE_CONFIG": str(folder / "serve.json")}
    with serving(command, f"http://127.0.0.1:{port}", folder / "log", env=env):
        yield port
        assert "Traceback" not in (folder / "log").read_text(errors="replace")


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def exchange(port: int, *packets: bytes, pause: float = 0.0, one: bool = False) -> list[Response]:
    """Send packets one by one; every response up to the end of the connection. Interim ones are left out.

    `one` is all that is expected.
    """
    reply = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(ConnectionError):  # what it does not read any more
            for packet in packets:
                client.sendall(packet)
                time.sleep(pause)
        with suppress(ConnectionError):
            while piece := client.recv(65_536):
                reply += piece
                if one:
                    with suppress(OSError):  # closed already
                        client.shutdown(socket.SHUT_WR)  # or the service would wait for us to read it
    return list(responses(reply))


def responses(reply: bytes) -> Iterator[Response]:
    while reply:
        head, _, reply = reply.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        assert first.startswith("HTTP/1.1 "), first
        status = int(first[9:12])
        headers = dict(line.lower().split(": ", 1) for line in lines)
        if status < 200:
            continue
        length = int(headers.get("content-length", "0"))
        assert "transfer-encoding" not in headers
        yield Response(status, headers, reply[:length])
        reply = reply[length:]


def statuses(port: int, *packets: bytes, pause: float = 0.0) -> list[int]:
    return [response.status for response in exchange(port, *packets, pause=pause)]


def post(body: bytes, *headers: bytes, content_type: bytes = b"image/jpeg", chunked: bool = False) -> bytes:
    lines = [b"POST /embed HTTP/1.1", b"host: x", b"content-type: " + content_type, *headers]
    if not chunked:
        return b"\r\n".join([*lines, b"content-length: %d" % len(body), b"", body])
    pieces = [body[start : start + 100] for start in range(0, len(body), 100)]
    content = b"".join(b"%x;name=value\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    trailers = b"0\r\nauthorization: x\r\nx-trailer: 5\r\n\r\n"
    return b"\r\n".join([*lines, b"transfer-encoding: chunked", b"", content + trailers])


OFFERS = [
    (b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAEAAEAAAAIAAAAB"),
    (b"connection: upgrade", b"upgrade: websocket", b"sec-websocket-version: 13", b"sec-websocket-key: dGhl"),
    (b"Upgrade: TLS/1.0, HTTP/1.1", b"Connection: Upgrade"),
    (b"connection: keep-alive", b"connection: upgrade", b"upgrade: anything/1"),
]
LAST = b"GET /nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, int]:
    """A valid request and the status of its response. Every body that can hold a request does."""
    offer = draw(st.sampled_from([(), *OFFERS]))
    kind = draw(st.sampled_from(["image", "inner", "get", "get with body", "expect", "no route", "chunked get"]))
    chunked = draw(st.booleans())
    if kind == "image":
        return post(IMAGE + INNER, *offer, chunked=chunked), 200
    if kind == "inner":
        return post(INNER * draw(st.integers(1, 4)), *offer, chunked=chunked), 415
    if kind == "expect":
        return post(IMAGE, *offer, b"expect: 100-continue", chunked=chunked), 200
    if kind == "no route":
        return post(INNER, *offer).replace(b"/embed", b"/nothing", 1), 404
    lines = [b"GET /models HTTP/1.1", b"host: x", *offer]
    if kind == "get with body":
        return b"\r\n".join([*lines, b"content-length: %d" % len(INNER), b"", INNER]), 200
    return b"\r\n".join([*lines, b"", b""]), 200


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), asked=st.lists(requests(), min_size=1, max_size=5))
def test_each_request_gets_one_response_wherever_it_is_split(
    port: int, data: st.DataObject, asked: list[tuple[bytes, int]]
) -> None:
    content = b"".join(request for request, _ in asked) + LAST + INNER * 3  # nothing is read behind the last
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=4)))
    packets = [content[start:end] for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    pause = data.draw(st.sampled_from([0.0, 0.0, 0.003]))
    assert statuses(port, *packets, pause=pause) == [status for _, status in asked] + [404]


@pytest.mark.parametrize("offer", OFFERS, ids=["h2c", "websocket", "tls", "two headers"])
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
def test_an_offered_upgrade_changes_nothing(port: int, offer: tuple[bytes, ...], chunked: bool) -> None:
    with_offer, without = post(IMAGE, *offer, chunked=chunked), post(IMAGE, chunked=chunked)
    for at in (with_offer.index(b"\r\n\r\n") + 4, with_offer.index(b"pgrade"), len(with_offer) - 1):
        first, second, last = exchange(port, with_offer[:at], with_offer[at:] + without, LAST, pause=0.02)
        assert (first.status, second.status, last.status) == (200, 200, 404)
        assert first.body == second.body


def test_an_offered_upgrade_keeps_the_other_options_of_its_connection(port: int) -> None:
    (only,) = exchange(port, post(IMAGE, b"connection: close, upgrade", b"upgrade: h2c") + INNER)
    assert (only.status, only.headers["connection"]) == (200, "close")


@pytest.mark.parametrize(
    "request_",
    [b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
    ids=["connect", "pri"],
)
def test_other_protocols_are_refused(port: int, request_: bytes) -> None:
    assert statuses(port, request_ + INNER * 3) == [400]
    assert statuses(port, request_, INNER * 3, pause=0.05) == [400]


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_nothing_is_read_behind_a_request_that_closes_the_connection(port: int, version: bytes) -> None:
    closing = b"GET /models HTTP/%b\r\nhost: x\r\nconnection: %b\r\n\r\n"
    closing %= (version, b"keep-alive" if version == b"1.0" else b"close")
    assert statuses(port, closing + INNER * 3) == [200]
    assert statuses(port, closing, INNER * 3) == [200]
    assert statuses(port, closing + b"GARBAGE\x00" * 5_000) == [200]


def test_an_error_is_answered_after_the_requests_before_it(port: int) -> None:
    for garbage in (b"GARBAGE\r\n\r\n", b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\n\r\n", post(b"").replace(b"0", b"-1")):
        got = statuses(port, post(IMAGE) * 3 + garbage + INNER)
        assert got[:3] == [200] * 3
        assert len(got) == 4
        assert got[3] in (400, 414)


def test_a_body_that_breaks_off_gets_one_response(port: int) -> None:
    head = b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\ntransfer-encoding: chunked\r\n\r\n"
    broken = head + b"3\r\nabcX\r\n" + INNER
    assert statuses(port, broken) == [400]
    assert statuses(port, post(IMAGE) * 2 + broken) == [200, 200, 400]
    assert statuses(port, broken.replace(b"/embed", b"/nothing", 1)) in ([400], [404])
    assert statuses(port, broken.replace(b": chunked", b": identity")) == [400]


@pytest.mark.parametrize("count", [17, 18, 60])
def test_pipelined_requests_are_answered_up_to_a_number_and_then_the_connection_ends(port: int, count: int) -> None:
    got = exchange(port, b"GET /models HTTP/1.1\r\nhost: x\r\n\r\n" * count + (LAST if count <= 17 else b""))
    assert [response.status for response in got] == [200] * 17 + [404] * (count <= 16)
    assert got[-1].headers["connection"] == "close"


@pytest.mark.parametrize(
    "trailer", [b"connection: close", b"connection: upgrade\r\nupgrade: h2c", b"content-length: 5"], ids=str
)
@pytest.mark.parametrize("offer", [(), OFFERS[0]], ids=["plain", "upgrade"])
def test_a_trailer_swallows_no_request(port: int, trailer: bytes, offer: tuple[bytes, ...]) -> None:
    chunked = post(IMAGE, *offer, chunked=True).removesuffix(b"x-trailer: 5\r\n\r\n") + trailer + b"\r\n\r\n"
    got = exchange(port, chunked + LAST)
    assert got[0].status in (200, 400)
    assert len(got) == 2 or got[0].headers["connection"] == "close"


def test_a_body_that_breaks_off_after_much_of_it_ends_its_connection(port: int) -> None:
    """Reading had been paused: who does not read sees no client leave."""
    head = b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\ntransfer-encoding: chunked\r\n\r\n"
    for size in (70_000, 100_000, 200_000):
        assert statuses(port, head + b"%x\r\n%b\r\nZZZ\r\nbad" % (size, bytes(size))) == [400]


HUGE = {
    "a long URL": (b"GET /" + b"a" * LIMITS.url_bytes + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414),
    "a long query": (b"GET /models?" + b"a=b&" * 15_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414),
    "many escapes": (b"GET /nothing/" + b"%61" * 401 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414),
    "many options of the connection": (
        post(IMAGE, b"upgrade: h2c", *[b"connection: upgrade" + b"," * 40] * 4, content_type=b"a"),
        431,
    ),
    "fields": (b"POST /embed?" + b"a&" * 64 + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", 414),
    "a long header": (post(IMAGE, b"accept: " + b"a/b, " * 12_000), 431),
    "a header of many parts": (post(IMAGE, b"accept: " + b"a," * 70), 431),
    "many headers": (post(IMAGE, *[b"a: b"] * LIMITS.headers), 431),
    "large headers": (post(IMAGE, *[b"a: " + b"b" * 8_000] * 5), 431),
    "many trailers": (post(IMAGE, chunked=True)[:-2] + b"a: b\r\n" * LIMITS.headers + b"\r\n", 431),
    "an endless trailer": (post(IMAGE, chunked=True)[:-2] + b"a: " + b"b" * 500_000, 431),
    "an endless chunk extension": (post(IMAGE, chunked=True).partition(b"0\r\n")[0] + b"1;" + b"b" * 500_000, 431),
}


@pytest.mark.parametrize("name", HUGE)
def test_heads_are_bounded(port: int, name: str) -> None:
    content, status = HUGE[name]
    closing = content.replace(b"host: x", b"host: x\r\nconnection: close", 1)
    for pieces in ([closing], [closing[start : start + 5_000] for start in range(0, len(closing), 5_000)]):
        got = exchange(port, *pieces, one=True)
        assert [response.status for response in got] == [status]
        document = json.loads(got[0].body)
        assert (got[0].headers["content-type"], document["status"]) == ("application/problem+json", status)
        assert re.fullmatch(r"urn:sovit:problem:[a-z-]+", document["type"])
        assert document["instance"] == f"urn:request:{got[0].headers['x-request-id']}"


def test_what_is_refused_early_is_told_in_the_form_of_its_api(port: int) -> None:
    for path, name in ((b"/v1/embeddings", "type"), (b"/v2/models/tiny/infer", None)):
        (only,) = exchange(port, b"POST " + path + b"?" + b"a" * 9_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", one=True)
        document = json.loads(only.body)
        assert (only.status, only.headers["content-type"]) == (414, "application/json")
        assert isinstance(document["error"] if name is None else document["error"][name], str)


def test_what_people_send_is_far_below_the_bounds(port: int) -> None:
    accept = b"accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
    headers = [b"x-%d: %b" % (number, b"a" * 200) for number in range(60)]
    assert statuses(port, post(IMAGE, accept, *headers, b"cookie: " + b"c" * 4_000, b"connection: close")) == [200]


def test_a_client_that_waits_for_the_go_ahead_and_is_refused_begins_anew(port: int) -> None:
    head = post(b"x" * 500, b"expect: 100-continue").removesuffix(b"x" * 500).replace(b"/embed", b"/nothing", 1)
    (only,) = exchange(port, head, INNER * 3, pause=0.05)  # the body, or the next request: nobody can tell
    assert (only.status, only.headers["connection"]) == (404, "close")
