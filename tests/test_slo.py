"""The search for the highest rate, on services whose limit is known, in simulated time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count, pairwise

import numpy as np
import pytest

from benchmarks.load.loops import Observed, Tally, load_of
from benchmarks.load.pacing import arrivals
from benchmarks.load.slo import PRECISION, Phase, Slo, Step, Verdict, found, judged, rounded, search
from sovit.errors import ConfigError

SLO = Slo(limit_ms=50)
Probe = Callable[[float, Phase], Step]


def observed(latencies: list[float], *, late: float = 0.0, failed: int = 0, unsent: int = 0) -> Observed:
    """A run with these latencies, in seconds, of its 200s."""
    tally = Tally(limit_seconds=SLO.limit_ms / 1000, connection_failures=failed, unsent=unsent)
    tally.offered = len(latencies) + failed + unsent
    tally.late = [late] * tally.offered
    for latency in latencies:
        tally.add(200, latency)
    return Observed(measured=tally, warmup=Tally(limit_seconds=1), seconds=1.0, cpu_seconds=0.0)


def limited(limit: float, verdict: Verdict = "missed") -> Probe:
    """A service, or a generator, that can do everything up to a limit and nothing above it."""

    def probe(rate: float, phase: Phase) -> Step:
        step = judged(SLO, phase, rate, observed([0.01]))
        return step if rate <= limit else replace(step, verdict=verdict)

    return probe


@pytest.mark.parametrize("first", [0.01, 1.0, 40.0, 77.7])
@pytest.mark.parametrize("limit", [10.0, 33.3, 77.7, 640.0])
def test_the_limit_is_found_to_a_twentieth(limit: float, first: float) -> None:
    steps = list(search(limited(limit), first))
    finding = found(steps)
    assert finding.rate is not None
    assert finding.lowest_unmet is not None
    assert limit / PRECISION * 0.995 <= finding.rate <= limit < finding.lowest_unmet  # rates have three digits
    assert finding.lowest_unmet / finding.rate <= PRECISION
    assert finding.limited_by == "service"
    assert [step.phase for step in steps].count("confirmation") == 1
    assert (steps[-1].phase, steps[-1].rate) == ("confirmation", finding.rate)
    assert all(step.rate == rounded(step.rate) for step in steps)


def test_steps_close_in_on_it() -> None:
    steps = list(search(limited(100), 10))
    doubling = [step.rate for step in steps if step.phase == "doubling"]
    assert doubling == [10, 20, 40, 80, 160]
    low, high = 80.0, 160.0
    for step in steps:
        if step.phase == "bisection":
            assert low < step.rate < high
            low, high = (step.rate, high) if step.verdict == "met" else (low, step.rate)
    assert high / low <= PRECISION
    assert len(steps) == 5 + 4 + 2  # log2(log(2) / log(1.05)) is 3.8; both ends have a second run
    assert [(step.phase, step.rate) for step in steps[-2:]] == [("recheck", high), ("confirmation", low)]


def test_it_goes_down_where_it_began_too_high() -> None:
    steps = list(search(limited(3), 40))
    assert [step.rate for step in steps if step.phase == "doubling"] == [40, 20, 10, 5, 2.5]
    assert found(steps).rate == pytest.approx(3, rel=0.05)


def test_it_gives_up_where_nothing_is_met() -> None:
    steps = list(search(limited(0), 64))
    assert [step.rate for step in steps] == [64, 32, 16, 8, 4]
    finding = found(steps)
    assert (finding.rate, finding.highest_met, finding.lowest_unmet) == (None, None, 4)


def test_it_ends_where_everything_is_met() -> None:
    steps = list(search(limited(float("inf")), 1))
    assert len(steps) == 21 + 1
    finding = found(steps)
    assert finding.rate == steps[-2].rate
    assert finding.lowest_unmet is None
    assert finding.limited_by is None


def test_a_late_generator_is_a_limit_and_is_named() -> None:
    finding = found(list(search(limited(100, "generator"), 10)))
    assert finding.rate is not None
    assert 95 <= finding.rate <= 100
    assert finding.limited_by == "generator"


@pytest.mark.parametrize("misses", [1, 3, 99])
def test_a_rate_that_is_not_confirmed_is_not_reported(misses: int) -> None:
    inner, left = limited(100), misses

    def probe(rate: float, phase: Phase) -> Step:
        nonlocal left
        step = inner(rate, phase)
        if phase == "confirmation" and left:
            left -= 1
            return replace(step, verdict="missed")
        return step

    steps = list(search(probe, 10))
    confirmations = [step for step in steps if step.phase == "confirmation"]
    assert all(1 < high.rate / low.rate < 1.06 for high, low in pairwise(confirmations))
    finding = found(steps)
    if misses < 5:
        assert len(confirmations) == misses + 1
        assert finding.rate == confirmations[-1].rate
        assert finding.lowest_unmet == confirmations[-2].rate
    else:
        assert len(confirmations) == 5
        assert finding.rate is None
        assert finding.highest_met is not None
        assert finding.highest_met < confirmations[-1].rate


@pytest.mark.parametrize("unlucky", [(10,), (40,), (80, 56.6), (40, 80)])
def test_a_rate_that_misses_by_bad_luck_does_not_end_the_search_below_it(unlucky: tuple[float, ...]) -> None:
    inner, left = limited(100), list(unlucky)

    def probe(rate: float, phase: Phase) -> Step:
        step = inner(rate, phase)
        if rate in left:
            left.remove(rate)
            return replace(step, verdict="missed")
        return step

    steps = list(search(probe, 10))
    assert not left
    assert sum(step.phase == "recheck" and step.verdict == "met" for step in steps) == len(unlucky)
    finding = found(steps)
    assert finding.rate is not None
    assert 95 <= finding.rate <= 100


def test_a_service_of_moods_is_not_tried_for_ever() -> None:
    """One that meets every rate, but never at the first time."""
    tried: set[float] = set()

    def probe(rate: float, phase: Phase) -> Step:
        step = limited(float("inf"))(rate, phase)
        first = rate not in tried and rate > 10
        tried.add(rate)
        return replace(step, verdict="missed") if first else step

    steps = list(search(probe, 10))
    assert sum(step.phase == "recheck" for step in steps) == 3
    assert len(steps) < 40
    assert steps[-1].phase == "confirmation"


def test_an_interrupted_search_says_what_it_has() -> None:
    steps = list(search(limited(100), 10))
    finding = found(steps[:6])
    assert (finding.rate, finding.highest_met, finding.lowest_unmet) == (None, 80, 113)
    assert found([]) == found([]).__class__(rate=None, highest_met=None, lowest_unmet=None, limited_by=None)


def queue(rate: float, requests: int, seed: int, service_seconds: float = 0.01) -> list[float]:
    """Latencies of a server that takes one request after the other, `service_seconds` each (M/D/1)."""
    free, found = 0.0, []
    for due in arrivals(rate, 0.0, seed, least=requests):
        free = max(free, due) + service_seconds
        found.append(free - due)
    return found


def test_the_limit_of_a_queue_is_found_with_no_more_requests_than_are_asked_for() -> None:
    """A server of 100 requests a second, whose 99th percentile passes 50 ms at 56.2 of them."""
    truth = 56.2
    assert np.percentile(queue(truth / 1.02, 300_000, seed=99), 99) < 0.05
    assert np.percentile(queue(truth * 1.02, 300_000, seed=99), 99) > 0.05
    rates = []
    for seed in range(15):
        seeds = count(1000 * seed)

        def probe(rate: float, phase: Phase, seeds: count[int] = seeds) -> Step:
            return judged(SLO, phase, rate, observed(queue(rate, SLO.requests, next(seeds))))

        rate = found(list(search(probe, 25))).rate
        assert rate is not None
        rates.append(rate)
    assert np.median(rates) == pytest.approx(truth, rel=0.05)
    assert min(rates) > 0.85 * truth
    assert max(rates) < 1.15 * truth


def test_a_step_is_long_enough_for_its_percentile() -> None:
    """Ten requests beyond it."""
    assert [Slo(limit_ms=1, percentile=p).requests for p in (50, 90, 95, 99, 99.9, 99.99)] == [
        20, 100, 200, 1000, 10_000, 100_000,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("latencies", "more", "verdict"),
    [
        ([0.01] * 990 + [0.2] * 10, {}, "met"),  # the 990th of 1,000 is the 99th percentile
        ([0.01] * 989 + [0.2] * 11, {}, "missed"),
        ([0.05] * 1000, {}, "met"),
        ([0.01] * 999, {"failed": 1}, "met"),
        ([0.01] * 998, {"failed": 2}, "missed"),
        ([], {"failed": 1}, "missed"),
        ([], {}, "missed"),
        ([0.01] * 1000, {"late": 0.0051}, "generator"),  # a tenth of 50 ms
        ([0.01] * 1000, {"late": 0.0049}, "met"),
        ([0.2] * 1000, {"late": 0.1}, "generator"),
        ([0.01] * 1000, {"unsent": 1}, "generator"),
        ([0.2] * 1000, {"unsent": 1}, "missed"),
    ],
)
def test_verdicts(latencies: list[float], more: dict[str, float], verdict: Verdict) -> None:
    run = observed(latencies, **more)  # type: ignore[arg-type]
    step = judged(SLO, "doubling", 10, run)
    assert step.verdict == verdict
    assert step.load == load_of(run)
    assert step.late_ms == 1000 * more.get("late", 0)
    assert 0 <= step.success <= 1


def test_failures_are_no_fast_answers() -> None:
    """A service that answers one in two at once, and the others not at all, misses whatever its latency."""
    step = judged(SLO, "doubling", 10, observed([0.001] * 500, failed=500))
    assert (step.verdict, step.latency_ms, step.success) == ("missed", 1.0, 0.5)
    lenient = judged(replace(SLO, success=0.5), "doubling", 10, observed([0.001] * 500, failed=500))
    assert lenient.verdict == "met"


def test_a_step_is_lost_only_where_it_could_not_be_met_any_more() -> None:
    assert not SLO.is_lost(observed([0.2] * 10).measured, 1000)
    assert SLO.is_lost(observed([0.2] * 11).measured, 1000)
    assert not SLO.is_lost(observed([], failed=1).measured, 1000)
    assert SLO.is_lost(observed([], failed=2).measured, 1000)
    assert not SLO.is_lost(observed([], unsent=5).measured, 1000)
    assert not Slo(limit_ms=50, success=0.9).is_lost(observed([], failed=100).measured, 1000)
    generator = np.random.default_rng(0)
    for _ in range(50):
        latencies = generator.exponential(0.011, 1000).tolist()
        lost = any(SLO.is_lost(observed(latencies[:count]).measured, 1000) for count in range(0, 1001, 100))
        if lost:
            assert judged(SLO, "doubling", 1, observed(latencies)).verdict == "missed"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"limit_ms": 0}, "--slo-ms 0 must be above 0"),
        ({"limit_ms": float("nan")}, "--slo-ms nan"),
        ({"limit_ms": 1, "percentile": 100}, "--percentile 100"),
        ({"limit_ms": 1, "percentile": 0}, "--percentile 0"),
        ({"limit_ms": 1, "success": 0}, "--success 0 is a share"),
        ({"limit_ms": 1, "success": 99.9}, "--success 99.9 is a share"),
    ],
)
def test_terms_that_make_no_sense_are_refused(fields: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Slo(**fields)
