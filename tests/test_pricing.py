from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cost.accuracy import read_accuracies
from benchmarks.cost.prices import PUBLISHED, Range, parse_price, price_of, read_prices
from benchmarks.cost.pricing import claims_of, machine_hours, machines_of, price_machines, usd
from benchmarks.intervals import Estimate, paired_ratio, ranks
from sovit.errors import ConfigError
from tests.test_compare import estimate, measured, row


def exactly(value: float) -> Estimate:
    return Estimate(value, value, value)


@pytest.mark.parametrize(
    ("usd_per_hour", "images_per_second", "expected"),
    [
        (0.36, 1, 100),  # a hundredth of a cent a second, and an image a second
        (3.6, 1000, 1),
        (2.50, 2240, 0.310),
        (2.50, 14_060, 0.0494),
    ],
)
def test_cost_by_hand(usd_per_hour: float, images_per_second: float, expected: float) -> None:
    found = usd(exactly(images_per_second), usd_per_hour)
    assert found.value == pytest.approx(expected, rel=2e-3)
    assert found.low == found.value == found.high


def test_the_slowest_rate_gives_the_dearest_image() -> None:
    found = usd(Estimate(10, 8, 12.5), 3.6)
    assert (found.value, found.low, found.high) == pytest.approx((100, 80, 125))
    hours = machine_hours(Estimate(100, 50, 200))
    assert (hours.value, hours.low, hours.high) == pytest.approx((2.77778, 1.38889, 5.55556), rel=1e-5)


def test_ranks_by_hand() -> None:
    def interval(low: float, high: float) -> Estimate:
        return Estimate((low + high) / 2, low, high)

    assert ranks([]) == []
    assert ranks([interval(5, 6), interval(1, 2), interval(3, 4)]) == [(3, 3), (1, 1), (2, 2)]
    # The first two overlap, and so do the next two, but the first is before the third.
    assert ranks([interval(1, 3), interval(2, 5), interval(4, 6), interval(7, 8)]) == [(1, 2), (1, 3), (2, 3), (4, 4)]
    assert ranks([interval(1, 9), interval(2, 3), interval(8, 10)]) == [(1, 3), (1, 2), (2, 3)]
    assert ranks([interval(1, 2), interval(2, 3)]) == [(1, 2), (1, 2)]  # touching is overlapping
    assert ranks([interval(1, 2), interval(3, 4), interval(5, 6)], [3, 2, 6]) == [
        (1, 2),
        (1, 3),
        (2, 3),
    ]  # two show no noise


intervals = st.tuples(*[st.integers(1, 30)] * 3).map(sorted).map(lambda three: Estimate(three[1], three[0], three[2]))


@given(st.lists(intervals, max_size=9))
def test_who_overlaps_is_not_ranked_and_who_is_ranked_is_apart(all_intervals: list[Estimate]) -> None:
    found = ranks(all_intervals)
    for one, rank in zip(all_intervals, found, strict=True):
        for other, other_rank in zip(all_intervals, found, strict=True):
            if one.high < other.low:
                assert rank < other_rank
                assert rank[1] <= other_rank[1]
            elif one.low <= other.high:
                assert rank[0] <= other_rank[1]
                assert other_rank[0] <= rank[1]


@given(st.lists(intervals, max_size=6))
def test_a_range_of_places_holds_the_place_in_every_order_the_intervals_allow(all_intervals: list[Estimate]) -> None:
    found = ranks(all_intervals)
    for ends in itertools.product((0, 1), repeat=len(all_intervals)):
        values = [(one.low, one.high)[end] for one, end in zip(all_intervals, ends, strict=True)]
        for value, (first, last) in zip(values, found, strict=True):
            below, alike = sum(other < value for other in values), values.count(value)
            assert first <= below + alike
            assert below + 1 <= last


def test_the_published_prices_are_dated_and_cited() -> None:
    prices = read_prices()
    assert {price.machine: (price.usd_per_hour.low, price.usd_per_hour.high) for price in prices} == {
        "NVIDIA A100 80GB": (0.80, 3.00),
        "NVIDIA H100 SXM": (1.99, 5.00),
        "NVIDIA H200 SXM": (2.50, 7.00),
    }
    for price in prices:
        assert price.date == "2026-05"
        assert price.source
        assert price.terms
        assert price.url.startswith("https://")


@pytest.mark.parametrize(
    ("name", "machine"),
    [
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 SXM"),
        ("nvidia  h200", "NVIDIA H200 SXM"),
        ("NVIDIA H100 PCIe", None),  # another product, at another price
        ("NVIDIA H200 NVL", None),
        ("AMD EPYC", None),
    ],
)
def test_a_price_is_only_of_the_machine_it_names(name: str, machine: str | None) -> None:
    found = price_of([name], read_prices())
    assert (found and found.machine) == machine


def test_a_price_on_the_command_line() -> None:
    price = parse_price(" AMD EPYC, 2 cores = 0.10")
    assert price.machine == "AMD EPYC, 2 cores"
    assert price.usd_per_hour == Range(0.1, 0.1)
    assert price.source == "given by the user"
    assert parse_price("A=B=2").names == ("A=B",)


@pytest.mark.parametrize("text", ["", "AMD EPYC", "=1", "X=", "X=-1", "X=0", "X=nan", "X=inf", "X=ten", "X=$1"])
def test_what_is_no_price_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="must be NAME=USD_PER_HOUR with a number above 0"):
        parse_price(text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"usd_per_hour": {"low": -1, "high": 2}}, "must be a range above 0"),
        ({"usd_per_hour": {"low": 0, "high": 2}}, "must be a range above 0"),
        ({"usd_per_hour": {"low": 3, "high": 2}}, "must be a range above 0"),
        ({"usd_per_hour": {"low": float("nan"), "high": 2}}, "finite number"),
        ({"usd_per_hour": 2}, "must be an object"),
        ({"names": []}, "must say whose it is"),
        ({"source": " "}, "must say whose it is"),
        ({"names": ["NVIDIA H200"]}, "has two prices of nvidia h200"),
        ({"url": "javascript:alert(1)"}, "must begin with https"),
        ({"per_minute": 1}, "unknown field"),
    ],
)
def test_a_broken_price_file_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    data = json.loads(PUBLISHED.read_text())
    data["prices"][0] |= change
    path = tmp_path / "prices.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=said) as refused:
        read_prices(path)
    assert str(path) in str(refused.value)


def test_a_price_file_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    path.write_text(json.dumps({"schema_version": 9, "prices": []}))
    with pytest.raises(ConfigError, match="schema_version 9, known is 1"):
        read_prices(path)


def test_rows_are_priced_by_the_machine_they_ran_on(tmp_path: Path) -> None:
    """A file of a machine with a GPU has rows of two machines: the GPU, and the processor with its cores."""
    gpu = "NVIDIA H100 80GB HBM3"
    rows = [row("g/14", 10, runtime="tensorrt"), row("So400m/14", 4, runtime="tensorrt"), row("So400m/14", 400)]
    files = [measured(tmp_path / "a.json", rows, gpu=gpu)]
    assert machines_of(files) == {gpu: (gpu,), "AMD EPYC, 2 cores": ("AMD EPYC", "AMD EPYC, 2 cores")}
    on_gpu, on_cpu = price_machines(files, read_prices())
    assert [line.row.variant for line in on_gpu.lines] == ["So400m/14", "g/14"]  # the cheapest first
    first = on_gpu.lines[0]
    assert first.rank == (1, 1)
    assert first.usd_at_low is not None
    assert first.usd_at_high is not None
    assert first.usd_at_low.value == pytest.approx(1.99 / 3600 / 250 * 1e6)
    assert first.usd_at_high.value == pytest.approx(5.00 / 3600 / 250 * 1e6)
    assert on_cpu.price is None
    assert on_cpu.lines[0].usd_at_low is None
    assert on_cpu.lines[0].machine_hours.value == pytest.approx(1e6 / 3600 / 2.5)
    assert "no price of AMD EPYC, 2 cores is known" in on_cpu.no_price


def test_the_first_price_that_fits_counts(tmp_path: Path) -> None:
    files = [measured(tmp_path / "a.json", [row(runtime="tensorrt")], gpu="NVIDIA H200")]
    (machine,) = price_machines(files, [parse_price("nvidia h200=3"), *read_prices()])
    assert machine.price is not None
    assert machine.price.usd_per_hour == Range(3, 3)


def test_one_name_of_two_machines_is_refused(tmp_path: Path) -> None:
    files = [measured(tmp_path / "a.json", [row()]), measured(tmp_path / "b.json", [row()], cores=64)]
    with pytest.raises(ConfigError, match="AMD EPYC fits AMD EPYC, 2 cores and AMD EPYC, 64 cores"):
        price_machines(files, [parse_price("AMD EPYC=1")])
    small, large = price_machines(files, [parse_price("AMD EPYC, 64 cores=1")])
    assert small.price is None
    assert large.price is not None


def test_a_row_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    files = [measured(tmp_path / "a.json", [row()]), measured(tmp_path / "b.json", [row("g/14"), row()])]
    with pytest.raises(ConfigError, match=r"a\.json and b\.json both hold So400m/14 .*sovit bench compare"):
        price_machines(files, [])


def test_the_claim_by_hand(tmp_path: Path) -> None:
    rows = [
        row(p50_ms=estimate(400, 390, 410), images_per_second=estimate(2.5, 2.4, 2.6)),
        row("g/14", p50_ms=estimate(1000, 980, 1020), images_per_second=estimate(1.0, 0.98, 1.02)),
        row("g/14", 900, batch=8),
        row("So400m/14", 200, precision="int8"),
    ]
    (machine,) = price_machines([measured(tmp_path / "a.json", rows)], [])
    (claim,) = claims_of(machine, read_accuracies())
    # The cost is one over the rate: (1 / 2.5) / (1 / 1), from (1 / 2.6) / (1 / 0.98) to (1 / 2.4) / (1 / 1.02).
    assert claim.share.value == pytest.approx(0.4)
    assert claim.share.low == pytest.approx(0.98 / 2.6)
    assert claim.share.high == pytest.approx(1.02 / 2.4)
    assert (claim.verdict, claim.paired) == ("less than half", 0)
    assert claim.accuracies == [
        ("ImageNet-1k top-1, linear probe", 88.2, 88.4),
        ("ImageNet-1k top-1, 10-shot", 84.1, 84.0),
    ]


def test_passes_in_which_both_took_turns_are_compared_pass_by_pass(tmp_path: Path) -> None:
    """A machine that is twice as slow in some passes makes both intervals wide, and leaves the quotients alone."""
    slow = [1.0, 2.0, 1.0, 2.0, 1.0, 1.5, 1.2]
    rows = [
        row(images_per_second=estimate(2, 1.1, 2.3), process_images_per_second=[1000 / 440 / one for one in slow]),
        row(
            "g/14",
            images_per_second=estimate(0.8, 0.5, 1.0),
            process_images_per_second=[1 / one for one in slow[:-1]] + [1 / 1.25],
        ),
    ]
    (machine,) = price_machines([measured(tmp_path / "a.json", rows)], [])
    (claim,) = claims_of(machine, read_accuracies())
    assert (claim.verdict, claim.paired) == ("less than half", 7)
    assert [claim.share.low, claim.share.value, claim.share.high] == pytest.approx([440 * 1.2 / 1250, 0.44, 0.44])
    apart = [measured(tmp_path / f"{name}.json", [one]) for name, one in zip("bc", rows, strict=True)]
    (machine,) = price_machines(apart, [])
    (claim,) = claims_of(machine, read_accuracies())
    assert (claim.verdict, claim.paired) == ("cannot be told from half", 0), "two files took no turns"


def test_the_interval_of_a_median_of_pairs_by_hand() -> None:
    """Of n fair coins: 2 / 2^6 = 3.1 % is less than 5 %, 2 / 2^5 = 6.3 % is not; of 12, 2 x (1 + 12 + 66) / 2^12 is."""
    assert paired_ratio([1.0] * 5, [2.0] * 5) is None
    assert paired_ratio([6, 1, 2, 3, 4, 5], [1] * 6) == Estimate(3.5, 1, 6)
    assert paired_ratio(list(range(1, 13)), [1.0] * 12) == Estimate(6.5, 3, 10)


@given(st.integers(6, 40), st.integers(0, 10_000))
def test_the_interval_of_a_median_lies_among_the_quotients(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ones, others = rng.uniform(1, 9, count), rng.uniform(1, 9, count)
    found = paired_ratio(list(ones), list(others))
    assert found is not None
    assert (ones / others).min() <= found.low <= found.value <= found.high <= (ones / others).max()


def test_the_interval_of_a_median_covers_it() -> None:
    """At least 95 % of 1,000 sets of pairs, whatever disturbs both alike."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        disturbed = rng.lognormal(0, 1, 9)
        found = paired_ratio(list(0.4 * disturbed * rng.lognormal(0, 0.1, 9)), list(disturbed))
        assert found is not None
        covered += found.low <= 0.4 <= found.high
    assert covered >= 940


@pytest.mark.parametrize(
    ("p50", "verdict"), [(450, "less than half"), (495, "cannot be told from half"), (560, "not less than half")]
)
def test_what_is_said_of_half(tmp_path: Path, p50: float, verdict: str) -> None:
    (machine,) = price_machines([measured(tmp_path / "a.json", [row(p50=p50), row("g/14", 1000)])], [])
    (claim,) = claims_of(machine, read_accuracies())
    assert claim.verdict == verdict


def test_the_claim_is_not_made_across_machines(tmp_path: Path) -> None:
    files = [measured(tmp_path / "a.json", [row()]), measured(tmp_path / "b.json", [row("g/14")], cores=4)]
    assert [claims_of(machine, read_accuracies()) for machine in price_machines(files, [])] == [[], []]
