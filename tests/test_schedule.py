from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovit.errors import ConfigError
from tests.golden_models import GOLDEN
from train.schedule import Schedule, ScheduleKind, linear, rsqrt, warmup_cosine

STORED = json.loads((GOLDEN / "big_vision" / "schedules.json").read_text(encoding="utf-8"))
LENGTH, BASE = STORED["total_steps"], STORED["base"]
Lengths = st.tuples(st.integers(1, 300), st.integers(0, 100), st.integers(0, 100))


@pytest.mark.parametrize(
    ("name", "multiplier"),
    [
        ("rsqrt", partial(rsqrt, steps=LENGTH, warmup_steps=50, cooldown_steps=80, timescale=100)),
        ("cosine", partial(warmup_cosine, steps=LENGTH, warmup_steps=50)),
        ("linear", partial(linear, steps=LENGTH, warmup_steps=10, end=0.1 / BASE)),  # theirs ends at a rate of 0.1
    ],
)
def test_values_are_those_of_big_vision(name: str, multiplier: Callable[[int], float]) -> None:
    ours = [BASE * multiplier(step) for step in STORED["steps"]]
    # Theirs are float32 differences: where one nears 0, its last bits are those of the largest value.
    assert ours == pytest.approx(STORED[name], rel=1e-6, abs=1e-7 * max(STORED[name]))


def test_the_schedules_in_closed_form() -> None:
    cosine = Schedule(kind="cosine", steps=110, warmup_steps=10)
    assert [cosine(step) for step in (0, 5, 10, 60, 110)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    straight = Schedule(kind="linear", steps=110, warmup_steps=10, end=0.2)
    assert [straight(step) for step in (0, 5, 10, 60, 110)] == pytest.approx([0, 0.5, 1, 0.6, 0.2])
    root = Schedule(kind="rsqrt", steps=110, warmup_steps=10, cooldown_steps=20, timescale=30)
    assert [root(step) for step in (0, 5, 10, 40, 90)] == pytest.approx([0, 0.5, 1, 0.5**0.5, (11 / 3) ** -0.5])
    assert [root(step) for step in (100, 110)] == pytest.approx([0.5 / 2, 0])


@given(Lengths, st.sampled_from(get_args(ScheduleKind)))
def test_a_schedule_starts_at_0_reaches_1_and_never_rises_after(lengths: tuple[int, int, int], kind: Any) -> None:
    held, warmup, cooldown = lengths
    cooldown = cooldown if kind == "rsqrt" else 0
    schedule = Schedule(
        kind=kind, steps=warmup + held + cooldown, warmup_steps=warmup, cooldown_steps=cooldown, timescale=7
    )
    values = [schedule(step) for step in range(schedule.steps + 1)]
    assert all(0 <= value <= 1 for value in values)
    assert values[warmup] == 1
    assert values[: warmup + 1] == sorted(values[: warmup + 1])
    assert values[warmup:] == sorted(values[warmup:], reverse=True)
    if warmup:
        assert values[0] == 0
    if kind != "rsqrt" or cooldown:
        assert values[-1] == pytest.approx(0, abs=1e-12)
        assert schedule(schedule.steps + 99) == pytest.approx(0, abs=1e-12)


@given(st.integers(0, 900), st.integers(0, 100), st.integers(1, 50))
def test_a_cooldown_branches_off_anywhere(branch: int, warmup: int, cooldown: int) -> None:
    branch = max(branch, warmup)
    long = Schedule(kind="rsqrt", steps=1_000, warmup_steps=warmup, cooldown_steps=100, timescale=40)
    short = dataclasses.replace(long, steps=branch + cooldown, cooldown_steps=cooldown)
    assert [short(step) for step in range(branch + 1)] == [long(step) for step in range(branch + 1)]
    assert short(branch + cooldown) == 0
    for step in range(branch + 1, min(branch + cooldown, 900)):
        assert short(step) == pytest.approx(long(step) * (branch + cooldown - step) / cooldown)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0, it must be at least 1"),
        ({"timescale": 0}, "timescale is 0, it must be at least 1"),
        ({"warmup_steps": -1}, "warmup_steps is -1, it must not be negative"),
        ({"kind": "linear", "end": float("nan")}, "end is nan, it must not be negative"),
        ({"warmup_steps": 60, "cooldown_steps": 41}, "60 steps of warm-up and 41 of cooldown do not fit"),
        ({"kind": "cosine", "cooldown_steps": 1}, "cooldown_steps means nothing to the schedule cosine"),
        ({"end": 0.5}, "end means nothing to the schedule rsqrt: it belongs to linear"),
    ],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Schedule(**{"kind": "rsqrt", "steps": 100, **changes})


def test_warm_up_and_cooldown_may_fill_the_run() -> None:
    schedule = Schedule(kind="rsqrt", steps=100, warmup_steps=60, cooldown_steps=40)
    assert (schedule(60), schedule(100)) == (1, 0)
