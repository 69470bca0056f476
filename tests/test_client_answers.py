"""What the client makes of answers: problems become errors of ours, and what is not sovit's one sentence."""

from __future__ import annotations

import gzip
import os
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sovit.client import Retry
from sovit.client.failures import Failure
from sovit.errors import (
    BadRequest,
    ConfigError,
    DeadlineExceeded,
    Draining,
    Forbidden,
    InvalidImage,
    NotReady,
    QueueFull,
    RateLimited,
    Refused,
    RuntimeFailure,
    ServiceError,
    SoViTError,
    Unauthorized,
    UnsupportedImage,
    UnsupportedMediaType,
)
from tests.standing_in import CLIENTS, Asked, Reply, Script, labels, of, prediction, problem, standing_in


@pytest.fixture(params=CLIENTS)
def connect(request: pytest.FixtureRequest) -> Any:
    """Either client."""
    return request.param


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (problem(400, BadRequest.title), BadRequest),
        (problem(400, ConfigError.title), ConfigError),
        (problem(401, Unauthorized.title), Unauthorized),
        (problem(403, Forbidden.title), Forbidden),
        (problem(404, "Not Found"), ServiceError),
        (problem(415, UnsupportedImage.title), UnsupportedImage),
        (problem(415, UnsupportedMediaType.title), UnsupportedMediaType),
        (problem(422, InvalidImage.title), InvalidImage),
        (problem(429, QueueFull.title), QueueFull),
        (problem(429, RateLimited.title), RateLimited),
        (problem(503, NotReady.title), NotReady),
        (problem(503, Draining.title), Draining),
        (problem(503, "Something else"), NotReady),
        (problem(500, RuntimeFailure.title), RuntimeFailure),
        (problem(500, "Internal error"), ServiceError),
        (problem(504, DeadlineExceeded.title), DeadlineExceeded),
    ],
)
def test_each_problem_is_an_error_of_ours(connect: Callable[..., Any], reply: Reply, kind: type[SoViTError]) -> None:
    script = Script(reply)
    with standing_in(script) as url, connect(url, retry=Retry(attempts=1)) as client:
        with pytest.raises(kind, match=f"^{url} answered {reply.status}: (image 0: )?it is as it is.$") as caught:
            client.classify([b"a"])
        assert type(caught.value) is kind
        assert len(script.asked) == 1


HTML = Reply(200, b"<html></html>", {"content-type": "text/html; charset=utf-8", "x-request-id": "abc"})


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (HTML, r"answered 200: the answer is not in a form that is sovit's: text/html that is no JSON \(request abc\)"),
        (Reply(404, HTML.body, HTML.headers), "answered 404: the answer is not sovit's, it is text/html"),
        (Reply(404, b"", {}), "answered 404: the answer is not sovit's, it is of no content type"),
        (Reply(308, b"", {"location": "https://other/"}), "answered 308: it redirects to https://other/, which may be"),
        (Reply(200, b"\xff\xfe", {}), "no JSON"),
        (Reply(200, b"[" * 100_000, {}), "no JSON"),
        (of([]), "no results"),
        (of({"results": {}}), "no results"),
        (of({"results": []}), "0 results for 1 images"),
        (of({"results": [{}, {}]}), "2 results for 1 images"),
        (of({"results": [7]}), "a result without"),
        (of({"results": [{"embedding": [1.0], "predictions": 3}]}), "a result without"),
        (of({"results": [{"error": "bad"}]}), "an image's error without status, title and detail"),
        (of({"results": [{"error": {"status": "422", "title": "x", "detail": "y"}}]}), "an image's error without"),
    ],
)  # fmt: skip
def test_what_is_no_sovit_is_one_sentence(connect: Callable[..., Any], reply: Reply, words: str) -> None:
    with standing_in(lambda _: reply) as url, connect(url) as client:
        for call in (client.classify, client.embed):
            with pytest.raises(ServiceError, match=words) as caught:
                call([b"a"])
            assert "\n" not in str(caught.value)


def test_results_of_the_wrong_form_are_refused(connect: Callable[..., Any]) -> None:
    row = np.ones(1, "<f4").tobytes()
    embeddings: list[tuple[dict[str, Any], str]] = [
        ({"dim": 1, "results": [{"embedding": b64encode(row + row).decode()}]}, "of another length than"),
        ({"dim": 0, "results": [{"embedding": ""}]}, "of another length than"),
        ({"dim": {}, "results": [{"embedding": b64encode(row).decode()}]}, "of another length than"),
        ({"results": [{"embedding": b64encode(row).decode()}]}, "of another length than"),
        ({"dim": 1, "results": [{"embedding": "*"}]}, "answered 200"),
    ]
    for document, words in embeddings:
        with (
            standing_in(lambda _, document=document: of(document)) as url,  # type: ignore[misc]
            connect(url) as client,
            pytest.raises(ServiceError, match=words),
        ):
            client.embed([b"a"])
    predictions: list[Any] = [{}, prediction("a") | {"label": 3}, prediction("a") | {"score": "b"}, 7]
    for one in predictions:
        with (
            standing_in(lambda _, one=one: of({"results": [{"predictions": [one]}]})) as url,  # type: ignore[misc]
            connect(url) as client,
            pytest.raises(ServiceError, match="without label, index and score"),
        ):
            client.classify([b"a"])
    models: list[dict[str, Any]] = [{}, {"models": []}, {"models": [3]}, {"models": [{"name": "a"}]}]
    for document in models:
        with (
            standing_in(lambda _, document=document: of(document)) as url,  # type: ignore[misc]
            connect(url) as client,
            pytest.raises(ServiceError, match="not in a form that is sovit's"),
        ):
            client.labels()


def test_embeddings_of_two_models_are_no_array(connect: Callable[..., Any]) -> None:
    def answer(asked: Asked) -> Reply:
        row = b64encode(np.ones(len(asked.images[0]), "<f4").tobytes()).decode()
        return of({"dim": len(asked.images[0]), "results": [{"embedding": row}]})

    with standing_in(answer) as url, connect(url, batch_size=1) as client:
        assert [len(row) for row in client.embed_each([b"a", b"bb"])] == [1, 2]
        with pytest.raises(ServiceError, match="of different lengths"):
            client.embed([b"a", b"bb"])


def test_what_a_stranger_says_is_short_and_on_one_line(connect: Callable[..., Any]) -> None:
    reply = problem(400, BadRequest.title, "a\nb\x1b[31m" + "c" * 10_000)
    with (
        standing_in(lambda _: reply) as url,
        connect(url) as client,
        pytest.raises(BadRequest, match=r"a\?b\?\[31mc") as caught,
    ):
        client.classify([b"a"])
    assert len(str(caught.value)) < 400


def test_an_answer_without_bounds_is_given_up(connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sovit.client.receiving.MAX_BYTES", 1_000_000)
    bomb = Reply(200, gzip.compress(bytes(50_000_000)), {"content-encoding": "gzip"})
    script = Script(Reply(200, bytes(2_000_000)), bomb)
    with standing_in(script) as url, connect(url) as client:
        for _ in range(2):
            with pytest.raises(ServiceError, match="no whole answer: it is longer than 1,000,000 bytes"):
                client.classify([b"a"])
        assert labels(client.classify([b"a"])) == ["a"]
    assert {asked.headers["accept-encoding"] for asked in script.asked} == {"identity"}


@pytest.mark.parametrize("location", ["javascript:alert(1)", "http://xn--/", "http://[", "//"])
def test_a_redirect_to_nowhere_is_a_sentence(connect: Callable[..., Any], location: str) -> None:
    script, said = Script(Reply(302, b"", {"location": location})), pytest.raises(ServiceError, match="redirect")
    with standing_in(script) as url, connect(url) as client, said:
        client.classify([b"a"])


def test_a_number_beyond_all_numbers_is_no_score(connect: Callable[..., Any]) -> None:
    body = b'{"results": [{"predictions": [{"label": "a", "index": 0, "score": 1' + b"0" * 400 + b"}]}]}"
    said = pytest.raises(ServiceError, match="not in a form that is sovit's")
    with standing_in(Script(Reply(200, body))) as url, connect(url) as client, said:
        client.classify([b"a"])


def test_refusals_keep_what_they_ask_for() -> None:
    error = Failure(kind=QueueFull, detail="full", retry_after=2.5).error()
    assert isinstance(error, Refused)
    assert error.retry_after == 3
    assert os.linesep not in str(error)
