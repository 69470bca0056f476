"""Which shapes to measure, when a few may be: only measured ones are recommended."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from sovit.jsonio import to_dict
from sovit.laws.advice.candidates import Candidate
from sovit.laws.advice.device import Device, Measurement, Question, cautions
from sovit.laws.advice.device_model import LEAST_SHAPES, DeviceModel, fit_device
from sovit.laws.advice.recommend import front
from sovit.laws.solvers.powers import Floats

_AT_A_TIME: Final = 3
_TOO_SLOW: Final = 2.0  # times the limit: beyond, what has more FLOPs along the front is left alone
# The best by the device model, and the best if it were so much faster than the device is.
_HEDGES: Final = (1.0, 0.9, 0.8)


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """What is known of one question: milliseconds by shape, how many of them are `new`, and the model of the device.

    `expected` are the model's milliseconds of all candidates, none without a model.
    """

    device: Device
    question: Question
    by_name: Mapping[str, float]
    expected: Mapping[str, float]
    new: int
    model: DeviceModel | None

    @property
    def rows(self) -> list[Measurement]:
        """The measurements."""
        return list(self.device.answers(self.question).values())

    @property
    def cautions(self) -> tuple[str, ...]:
        """What may have disturbed them."""
        return cautions(self.rows, self.device.machine)

    def to_json(self) -> dict[str, Any]:
        """Machine, measurements and model as plain data."""
        return {
            "machine": to_dict(self.device.machine),
            "new": self.new,
            "rows": [to_dict(row) for row in self.rows],
            "model": self.model and to_dict(self.model),
        }


Measure = Callable[[Sequence[str]], Mapping[str, float]]


def measure_towards(
    candidates: Sequence[Candidate], error_P: Floats, limit_ms: float, known: Mapping[str, float], measure: Measure,
    most: int,
) -> dict[str, float]:  # fmt: skip
    """The latencies of `known` and of at most `most` shapes more, those that decide what is best within `limit_ms`.

    First shapes along the front of error and FLOPs, from the cheapest up to where the limit is passed. Then those that
    would be best if the model of the device were right, until one of them is known to be. What is left goes along the
    front of error and expected latency. `measure` gives milliseconds by name, and leaves out what failed.
    """
    search = _Search(candidates, error_P, limit_ms, dict(known), measure, most)
    flops_P = np.array([one.cost.flops for one in candidates], np.float64)
    search.take_along(_along_front(error_P, flops_P, max(LEAST_SHAPES, (most + 1) // 2)))
    search.settle()
    search.fill(most)
    return search.found


def expected_ms(candidates: Sequence[Candidate], model: DeviceModel | None) -> dict[str, float]:
    """Milliseconds of each candidate by the model; nothing without one."""
    if model is None:
        return {}
    said_P = model.predict([one.config for one in candidates]).tolist()
    return {one.name: ms for one, ms in zip(candidates, said_P, strict=True)}


def device_model(candidates: Sequence[Candidate], latency_ms: Mapping[str, float]) -> DeviceModel | None:
    """The model of those candidates that were measured; None where they are too few."""
    measured = [one for one in candidates if one.name in latency_ms]
    if len(measured) < LEAST_SHAPES:
        return None
    return fit_device([one.config for one in measured], [latency_ms[one.name] for one in measured])


def _along_front(error_P: Floats, cost_P: Floats, count: int) -> list[int]:
    """So many of the front of error and cost, the cheapest and the best among them, in equal ratios between."""
    along = front(error_P, cost_P)
    log_cost = np.log(cost_P[along])
    nearest = [int(np.argmin(np.abs(log_cost - at))) for at in np.linspace(log_cost[0], log_cost[-1], count)]
    return [along[place] for place in dict.fromkeys(nearest)]


@dataclass
class _Search:
    """What is known so far, what could not be measured, and how many measurements are `left`."""

    candidates: Sequence[Candidate]
    error_P: Floats
    limit_ms: float
    found: dict[str, float]
    measure: Measure
    left: int
    failed: set[str] = field(default_factory=set)

    def take(self, places: Sequence[int]) -> None:
        """Measure those of a few candidates that are not known."""
        names = dict.fromkeys(self.candidates[place].name for place in places)
        new = [name for name in names if name not in self.found and name not in self.failed][: self.left]
        if new:
            self.left -= len(new)
            told = self.measure(new)
            self.found.update(told)
            self.failed.update(set(new) - set(told))

    def take_along(self, path: Sequence[int]) -> None:
        """Measure what lies on a path of rising cost, until something is too slow by far."""
        for start in range(0, len(path), _AT_A_TIME):
            chunk = path[start : start + _AT_A_TIME]
            self.take(chunk)
            if max(self.found.get(self.candidates[place].name, 0.0) for place in chunk) > _TOO_SLOW * self.limit_ms:
                return

    def settle(self) -> None:
        """Measure what would be best, by what is expected, until that is known."""
        # Where the front is short, the best of the rest are measured until there is a model.
        best_first = np.argsort(self.error_P).tolist()
        for place in [place for place in best_first if self.candidates[place].name not in self.found]:
            if self.left <= 0 or self.expected() is not None:
                break
            self.take([place])
        while self.left > 0 and (expected_P := self.expected()) is not None:
            within = [np.where(expected_P <= self.limit_ms * hedge, self.error_P, np.inf) for hedge in _HEDGES]
            wanted = [int(np.argmin(each_P)) for each_P in within if np.isfinite(each_P).any()]
            if not wanted or self.candidates[wanted[0]].name in self.found:
                return
            self.take(wanted)

    def fill(self, most: int) -> None:
        """Measure along the front within the limit, until `most` candidates are known, earlier ones included."""
        left = min(self.left, most - sum(one.name in self.found for one in self.candidates))
        if left <= 0 or (expected_P := self.expected()) is None:
            return
        within = np.flatnonzero(expected_P <= self.limit_ms)
        if len(within):
            along = _along_front(self.error_P[within], expected_P[within], left)
            self.take_along([int(within[place]) for place in along])

    def expected(self) -> Floats | None:
        """Milliseconds of each candidate: measured, or by the model; infinite for what failed."""
        model = device_model(self.candidates, self.found)
        if model is None:
            return None
        known = expected_ms(self.candidates, model) | self.found | dict.fromkeys(self.failed, math.inf)
        return np.array([known[one.name] for one in self.candidates])
