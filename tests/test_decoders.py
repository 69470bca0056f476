from __future__ import annotations

import threading
from functools import partial

from serving.inference.decoders import Decoders


def test_requests_take_turns() -> None:
    done: list[str] = []
    go_on = threading.Event()

    def wait() -> None:
        go_on.wait(10)

    decoders = Decoders(1)
    decoders.submit([wait])
    decoders.submit([partial(done.append, f"a{number}") for number in range(4)])
    decoders.submit([partial(done.append, "b")])
    decoders.submit([partial(done.append, f"c{number}") for number in range(2)])
    go_on.set()
    decoders.close()
    assert done == ["a0", "b", "c0", "a1", "c1", "a2", "a3"]


def test_a_call_that_fails_ends_no_thread() -> None:
    done: list[int] = []

    def fail() -> None:
        raise ValueError

    decoders = Decoders(2)
    decoders.submit([fail] * 8)
    decoders.submit([partial(done.append, number) for number in range(50)])
    decoders.close()
    assert sorted(done) == [*range(50)]
