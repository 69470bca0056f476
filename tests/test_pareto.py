from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cost.accuracy import PUBLISHED, read_accuracies
from benchmarks.cost.pareto import Point, dominates, front, front_of
from benchmarks.cost.pricing import price_machines
from benchmarks.intervals import Estimate
from sovit.config import variant_config
from sovit.errors import ConfigError
from tests.test_compare import measured, row


def exact(cost: float, accuracy: float) -> Point:
    return Point(Estimate(cost, cost, cost), accuracy)


def test_a_front_by_hand() -> None:
    points = [exact(1, 80), exact(2, 85), exact(3, 84), exact(4, 90), exact(4, 89), exact(5, 90)]
    assert front(points) == [True, True, False, True, False, False]
    assert front([]) == []
    assert front([exact(3, 80)]) == [True]


def test_noise_puts_nobody_of_the_same_accuracy_off_the_front() -> None:
    fast, slow = Point(Estimate(10, 9, 11), 88), Point(Estimate(10.5, 9.5, 11.5), 88)
    assert front([fast, slow]) == [True, True]
    assert front([fast, Point(Estimate(12, 11.1, 13), 88)]) == [True, False]
    # A higher accuracy at no higher cost is reason enough, overlap or not.
    assert front([fast, Point(Estimate(9.5, 9, 10), 88.5)]) == [False, True]
    assert front([fast, Point(Estimate(10.5, 9, 12), 88.5)]) == [True, True]


# Few values, so that ties and overlaps are common.
some = st.integers(1, 6).map(float)
points = st.builds(
    Point, st.tuples(some, some, some).map(sorted).map(lambda three: Estimate(three[1], three[0], three[2])), some
)


@given(st.lists(points, max_size=8))
def test_nobody_on_the_front_is_dominated_and_everybody_else_is(all_points: list[Point]) -> None:
    on = [point for point, ahead in zip(all_points, front(all_points), strict=True) if ahead]
    off = [point for point, ahead in zip(all_points, front(all_points), strict=True) if not ahead]
    assert bool(on) == bool(all_points)
    assert not any(dominates(other, point) for point in on for other in all_points)
    assert all(any(dominates(other, point) for other in on) for point in off)  # by one on the front, at that


@given(points, points, points)
def test_dominance_is_an_order(a: Point, b: Point, c: Point) -> None:
    assert not dominates(a, a)
    assert not (dominates(a, b) and dominates(b, a))
    if dominates(a, b) and dominates(b, c):
        assert dominates(a, c)


@given(st.lists(st.tuples(some, some), max_size=8))
def test_without_noise_it_is_the_usual_front(pairs: list[tuple[float, float]]) -> None:
    usual = [
        not any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in pairs)
        for cost, accuracy in pairs
    ]
    assert front([exact(*pair) for pair in pairs]) == usual


def test_the_fronts_of_measured_rows(tmp_path: Path) -> None:
    """SoViT-400m/14 at batch 8 is the cheapest of its accuracy, at batch 1 the fastest."""
    rows = [
        row("g/14", 1000),
        row("So400m/14", 400),
        row("So400m/14", 1600, batch=8),
        row("L/16", 300),
        row("S/16", 20),
        row("L/16", 30, image_size=[64, 64]),
    ]
    (machine,) = price_machines([measured(tmp_path / "a.json", rows)], [])
    accuracies = read_accuracies()
    metric = next(one for one in accuracies.metrics if one.id == "ten-shot")
    found = front_of(machine, metric, accuracies)
    keys = [machine.lines[one.line].row.key for one in found.standings]
    assert {(key.variant, key.batch): one.accuracy.value for key, one in zip(keys, found.standings, strict=True)} == {
        ("L/16", 1): 81.5,
        ("So400m/14", 1): 84.1,
        ("So400m/14", 8): 84.1,
        ("g/14", 1): 84.0,
    }
    by_cost = {(key.variant, key.batch) for key, one in zip(keys, found.standings, strict=True) if one.on_cost_front}
    by_latency = {
        (key.variant, key.batch) for key, one in zip(keys, found.standings, strict=True) if one.on_latency_front
    }
    assert by_cost == {("So400m/14", 8)}  # 200 ms an image: less than L/16 takes, and more accurate
    assert by_latency == {("L/16", 1), ("So400m/14", 1)}
    without = {machine.lines[index].row.key for index in found.without}
    assert {(key.variant, key.image_size) for key in without} == {("S/16", (224, 224)), ("L/16", (64, 64))}


def test_the_published_accuracies_are_of_our_variants_and_cited() -> None:
    found = read_accuracies()
    for one in found.entries:
        variant_config(one.variant, image_size=one.image_size)
        assert found.sources[one.source].url.startswith("https://")
    assert {one.metric for one in found.entries} == {metric.id for metric in found.metrics}
    assert {one.source for one in found.entries} == set(found.sources)


@pytest.mark.parametrize(
    ("variant", "size", "metric", "value", "source"),
    [
        ("L/16", 224, "probe", 86.7, "sovit-table-2"),
        ("So400m/14", 224, "probe", 88.2, "sovit-table-2"),
        ("g/14", 224, "probe", 88.4, "sovit-table-2"),
        ("So400m/14", 518, "fine-tuned", 90.3, "sovit-table-1"),
        ("G/14", 518, "fine-tuned", 90.4, "sovit-table-1"),
        ("g/14", 224, "ten-shot", 84.0, "sovit-table-3"),
        ("So150m/14", 224, "ten-shot-equal-compute", 78.5, "sovit-section-4.1"),
        ("g-opt/16", 384, "siglip2-zero-shot", 85.0, "siglip2"),
    ],
)
def test_numbers_of_the_tables(variant: str, size: int, metric: str, value: float, source: str) -> None:
    one = read_accuracies().of(variant, (size, size), metric)
    assert one is not None
    assert (one.value, one.source) == (value, source)
    assert read_accuracies().of(variant, (size + 1, size), metric) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 2}, "schema_version 2"),
        ({"value": 0.87}, ""),
        ({"value": 870}, "in percent"),
        ({"value": float("nan")}, "finite"),
        ({"source": "nowhere"}, "lacks its metric or its source"),
        ({"metric": "nothing"}, "lacks its metric or its source"),
        ({"twice": True}, "twice"),
    ],
)
def test_a_broken_table_of_accuracies_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    data = json.loads(PUBLISHED.read_text())
    if "schema_version" in change:
        data |= change
    elif "twice" in change:
        data["entries"].append(data["entries"][0])
    else:
        data["entries"][0] |= change
    path = tmp_path / "accuracy.json"
    path.write_text(json.dumps(data))
    if not said:
        read_accuracies(path)
        return
    with pytest.raises(ConfigError, match=said):
        read_accuracies(path)
