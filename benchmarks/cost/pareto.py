"""Which of several models are worth their cost: the Pareto front of accuracy against cost or latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.cost.accuracy import Accuracies, Accuracy, Metric
from benchmarks.cost.pricing import Machine
from benchmarks.intervals import Estimate


@dataclass(frozen=True)
class Point:
    """A model's measured cost, or latency, in any unit (less is better), and its published accuracy (more is)."""

    cost: Estimate
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A row that has a published accuracy (`line` counts in its machine's lines), and whether it is on the fronts."""

    line: int
    accuracy: Accuracy
    on_cost_front: bool
    on_latency_front: bool


@dataclass(frozen=True, kw_only=True)
class Front:
    """What accuracy costs on one machine, in one metric. `without` are the lines that have no accuracy."""

    machine: str
    metric: Metric
    standings: list[Standing]
    without: list[int]


def dominates(one: Point, other: Point) -> bool:
    """Whether nobody has a reason to take `other`.

    `one` is as accurate or more and costs less beyond noise, or is more accurate and costs no more. Costs that
    overlap therefore never put a model of the same accuracy off the front. For costs without noise this is the usual
    definition. It is transitive, so whoever is off the front is dominated by somebody on it.
    """
    cheaper = one.cost.high < other.cost.low
    return (one.accuracy >= other.accuracy and cheaper) or (
        one.accuracy > other.accuracy and one.cost.value <= other.cost.value
    )


def front(points: Sequence[Point]) -> list[bool]:
    """Whether each point is on the front: no other dominates it."""
    return [not any(dominates(other, point) for other in points) for point in points]


def front_of(machine: Machine, metric: Metric, accuracies: Accuracies) -> Front:
    """The fronts of a metric on a machine. A row whose model has no accuracy in it stands on none."""
    known = [
        (index, line, one)
        for index, line in enumerate(machine.lines)
        if (one := accuracies.of(line.row.variant, line.row.image_size, metric.id))
    ]
    by_cost = front([Point(line.machine_hours, one.value) for _, line, one in known])
    by_latency = front([Point(line.row.p50_ms, one.value) for _, line, one in known])
    with_one = {index for index, _, _ in known}
    return Front(
        machine=machine.name,
        metric=metric,
        standings=[
            Standing(line=index, accuracy=one, on_cost_front=cheap, on_latency_front=fast)
            for (index, _, one), cheap, fast in zip(known, by_cost, by_latency, strict=True)
        ],
        without=[index for index in range(len(machine.lines)) if index not in with_one],
    )
