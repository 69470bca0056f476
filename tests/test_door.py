from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.entry.door import Door, Ticket
from serving.entry.keys import Key, KeyUse
from serving.entry.line import Line
from serving.entry.rate import MEMORY, ServiceRate
from sovit.errors import Draining, QueueFull, RateLimited

LONG = 1e9


class OneModel:
    """A door, and the line of the only model."""

    def __init__(self, max_images: int, max_bytes: int, seconds_per_image: float) -> None:
        self.door = Door(max_images=max_images, max_bytes=max_bytes)
        self.line = Line(seconds_per_image)

    def enter(self, declared: int, seconds: float, use: KeyUse | None) -> Ticket:
        return self.door.enter(declared, seconds, [self.line], use)

    @property
    def images(self) -> int:
        assert self.door.images == self.line.images
        return self.door.images


def door(max_images: int = 4, max_bytes: int = 100, seconds_per_image: float = 0.0) -> OneModel:
    return OneModel(max_images, max_bytes, seconds_per_image)


def inside(place: OneModel) -> tuple[int, int, int]:
    return place.door.requests, place.images, place.door.bytes


def test_a_ticket_holds_what_has_come_until_its_block_ends() -> None:
    place = door()
    with place.enter(60, LONG, None) as ticket:
        assert inside(place) == (1, 0, 0), "what is announced takes no room"
        ticket.read(30)
        ticket.read(30)
        ticket.hold(place.line, 3, LONG)
        assert inside(place) == (1, 3, 60)
        with pytest.raises(QueueFull, match="fill the memory"):
            place.enter(41, LONG, None)
        with place.enter(40, LONG, None) as other:
            other.hold(place.line, 1, LONG)
            with pytest.raises(QueueFull, match="queue is full"):
                place.enter(0, LONG, None)
    assert inside(place) == (0, 0, 0)


def test_a_body_that_outgrows_the_room_is_refused_as_it_grows() -> None:
    place = door()
    with pytest.raises(QueueFull, match="fill the memory"), place.enter(0, LONG, None) as ticket:
        ticket.read(90)
        assert place.door.bytes == 90
        ticket.read(20)
    assert inside(place) == (0, 0, 0)


def test_a_request_with_more_images_than_there_is_place_for_is_refused() -> None:
    place = door()
    with place.enter(0, LONG, None) as first, pytest.raises(QueueFull), place.enter(0, LONG, None) as second:
        first.hold(place.line, 1, LONG)
        second.hold(place.line, 4, LONG)
    assert inside(place) == (0, 0, 0)


def test_who_would_wait_longer_than_its_time_is_told_at_once_and_when_to_come_back() -> None:
    place = door(max_images=100, seconds_per_image=2.0)
    with place.enter(0, 0.1, None) as ticket:
        with place.enter(0, 0.1, None):
            pass  # nobody's body is whole yet: there is no wait
        ticket.hold(place.line, 10, LONG)
        with pytest.raises(QueueFull, match="longer than the request's time") as caught:
            place.enter(0, 28.0, None)
        assert 20 <= caught.value.retry_after <= 25
        with place.enter(0, 29.0, None):
            pass
    with place.enter(0, 0.1, None):
        pass


def test_draining_lets_nobody_in_and_waits_for_those_inside() -> None:
    async def run() -> None:
        place = door()
        ticket = place.enter(0, LONG, None)
        drained = asyncio.create_task(place.door.drain())
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            place.enter(0, LONG, None)
        assert not drained.done()
        with ticket:
            pass
        await asyncio.wait_for(drained, 5)
        await asyncio.wait_for(place.door.drain(), 5)  # asked for again

    asyncio.run(run())


def test_a_key_has_its_own_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("serving.entry.keys.time.monotonic", lambda: now)
    place, use = door(max_images=100), KeyUse(Key(name="a", sha256="0" * 64, requests_per_second=2, max_in_flight=1))
    with place.enter(0, LONG, use), pytest.raises(RateLimited, match="1 requests under way"):
        place.enter(0, LONG, use)
    with place.enter(0, LONG, use):
        pass
    with pytest.raises(RateLimited, match="over its 2 requests per second") as caught:
        place.enter(0, LONG, use)
    assert caught.value.retry_after == 1
    now += 0.5
    with place.enter(0, LONG, use):
        pass
    with pytest.raises(RateLimited):
        place.enter(0, LONG, use)
    assert inside(place) == (0, 0, 0)
    with place.enter(0, LONG, None):
        pass


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 60), st.booleans()), max_size=30))
def test_no_order_of_coming_and_going_breaks_the_bounds(visits: list[tuple[int, int, bool]]) -> None:
    place, tickets = door(), list[Ticket]()
    for images, size, leaves in visits:
        try:
            ticket = place.enter(size, LONG, None)
        except QueueFull:
            assert place.images == 4 or place.door.bytes + size > 100
        else:
            tickets.append(ticket)
            try:
                ticket.read(size)
                ticket.hold(place.line, images, LONG)
            except QueueFull:
                assert place.images + images > 4
        assert place.images <= 4
        assert place.door.bytes <= 100
        if leaves and tickets:
            with tickets.pop(0):
                pass
    for ticket in tickets:
        with ticket:
            pass
    assert inside(place) == (0, 0, 0)


@given(st.floats(1e-4, 10), st.integers(1, 8))
def test_the_rate_follows_what_is_finished_and_forgets_the_time_without_work(seconds: float, together: int) -> None:
    rate = ServiceRate(1.0)
    now = 0.0
    for _ in range(10 * MEMORY):
        now += 1000.0
        rate.begin(now)
        for _ in range(3):  # batches in a row
            now += seconds * together
            rate.finish(together, now)
    assert rate.seconds_per_image == pytest.approx(seconds, rel=0.01)


def test_the_rate_starts_with_the_warm_up() -> None:
    assert ServiceRate(0.25).seconds_per_image == 0.25
