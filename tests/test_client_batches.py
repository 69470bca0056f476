"""How the client cuts images into requests: their bounds and order, what it looks ahead, and what a failure costs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovit.client.batches import batches
from sovit.client.failures import Failure
from sovit.errors import DeadlineExceeded, InvalidImage, SoViTError, TooLarge
from tests.standing_in import CLIENTS, Asked, Reply, Script, labels, labels_of, problem, standing_in


@pytest.fixture(params=CLIENTS)
def connect(request: pytest.FixtureRequest) -> Any:
    """Either client."""
    return request.param


@pytest.mark.parametrize("reply", [problem(500, "Internal error"), problem(504, DeadlineExceeded.title), Reply(413)])
def test_a_request_that_fails_costs_its_own_images_alone(connect: Callable[..., Any], reply: Reply) -> None:
    def answer(asked: Asked) -> Reply:
        return reply if b"bad" in asked.images else labels_of(asked)

    images = [b"0", b"1", b"2", b"bad", b"4", b"5"]
    with standing_in(answer) as url, connect(url, batch_size=2) as client:
        found = list(client.classify_each(images))
    failed = [index for index, one in enumerate(found) if isinstance(one, SoViTError)]
    assert failed == ([3] if reply.status == 413 else [2, 3])
    assert {one.status for one in found if isinstance(one, SoViTError)} == {reply.status}


def test_requests_are_bounded_and_go_on_side_by_side(connect: Callable[..., Any]) -> None:
    """Nobody gets an answer before three are there, and there never are four."""
    together, lock = threading.Barrier(3), threading.Lock()
    inside = peak = 0

    def answer(asked: Asked) -> Reply:
        nonlocal inside, peak
        with lock:
            inside += 1
            peak = max(peak, inside)
        together.wait(30)
        with lock:
            inside -= 1
        return labels_of(asked)

    images = [str(index).encode() for index in range(48)]
    with standing_in(answer) as url, connect(url, batch_size=2, concurrency=3) as client:
        assert labels(client.classify(images)) == [image.decode() for image in images]
    assert peak == 3


def test_images_are_taken_as_they_are_needed(connect: Callable[..., Any]) -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            yield str(taken).encode()
            taken += 1

    with standing_in(labels_of) as url, connect(url, batch_size=2, concurrency=3) as client:
        assert taken == 0
        found = client.classify_each(endless())
        assert taken == 0
        for index in range(100):
            assert labels([next(found)]) == [str(index)]
            assert taken <= index + 2 * 2 * 3 + 2
        found.close()


def test_a_slow_answer_does_not_hold_up_those_after_it(connect: Callable[..., Any]) -> None:
    later = threading.Event()

    def answer(asked: Asked) -> Reply:
        if asked.images == [b"0"]:
            later.wait(30)
        if asked.images == [b"3"]:
            later.set()
        return labels_of(asked)

    with standing_in(answer) as url, connect(url, batch_size=1, concurrency=2) as client:
        assert labels(client.classify([b"0", b"1", b"2", b"3", b"4"])) == list("01234")


def test_an_error_of_the_images_themselves_comes_out(connect: Callable[..., Any]) -> None:
    def broken() -> Iterator[bytes]:
        yield b"a"
        raise RuntimeError("no more")

    with standing_in(labels_of) as url, connect(url) as client, pytest.raises(RuntimeError, match="no more"):
        client.classify(broken())


def test_bytes_of_a_request_are_bounded(connect: Callable[..., Any]) -> None:
    script = Script()
    images = [b"a" * size for size in (3_000_000, 3_000_000, 3_000_000, 9_000_000, 10)]
    with standing_in(script) as url, connect(url, concurrency=1) as client:
        assert [len(label) for label in labels(client.classify(images))] == [len(image) for image in images]
    assert [[len(image) for image in asked.images] for asked in script.asked] == [
        [3_000_000, 3_000_000], [3_000_000], [9_000_000], [10],
    ]  # fmt: skip


def test_too_large_a_request_is_halved_and_too_large_an_image_named(connect: Callable[..., Any]) -> None:
    def answer(asked: Asked) -> Reply:
        # As a proxy says it.
        return Reply(413, b"<html>") if sum(map(len, asked.images)) > 3 else labels_of(asked)

    images = [b"a", b"b", b"cccc", b"d", b"e", b"ff", b"g"]
    with standing_in(answer) as url, connect(url) as client:
        found = list(client.classify_each(images))
        assert isinstance(found.pop(2), TooLarge)
        assert labels(found) == ["a", "b", "d", "e", "ff", "g"]
        with pytest.raises(TooLarge, match="answered 413: image 2: request too large"):
            client.classify(images)


@given(
    st.lists(st.binary(max_size=30) | st.just(Failure(kind=InvalidImage, detail="bad"))),
    st.integers(1, 6),
    st.integers(1, 60),
)
def test_batches_hold_every_image_once_in_order_and_within_bounds(
    contents: list[bytes | Failure], most_images: int, most_bytes: int
) -> None:
    found = list(batches(iter(contents), most_images, most_bytes))
    assert [content for batch in found for content in batch] == contents

    def size(batch: Sequence[bytes | Failure]) -> int:
        return sum(len(content) for content in batch if isinstance(content, bytes))

    for batch in found:
        assert 1 <= len(batch) <= most_images
        alone = sum(bool(size([content])) for content in batch) == 1
        assert size(batch) <= most_bytes or alone
    for batch, following in pairwise(found):  # none could have held one more
        assert len(batch) == most_images or size(batch) + size(following[:1]) > most_bytes
