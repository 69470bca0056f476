"""Candidates, limits, front and shares: what is recommended is feasible, on the front, and the law's own optimum."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sovit.config import by_number, variant_config
from sovit.cost import cost
from sovit.errors import ConfigError
from sovit.jsonio import from_dict, to_dict
from sovit.laws.advice.budget import Budget
from sovit.laws.advice.candidates import candidates, candidates_of, known_variants, untold
from sovit.laws.advice.recommend import Recommendation, errors, front, recommend
from sovit.laws.form import DIMENSIONS
from tests.recommend_law import SEEN, SETTING, TRAIN, replicates, small_candidates, small_law

CANDIDATES = small_candidates()
LAWS = replicates()
STAR = ((128, 8, 256), (32, 8, 256), (64, 8, 256), (128, 2, 256), (128, 4, 256), (128, 8, 64), (128, 8, 128))
LATENCY = {one.name: 0.05 * one.config.depth + 20 * one.cost.flops / 1e9 for one in CANDIDATES}


def asked(**changes: float) -> Recommendation:
    budget = Budget(**({"train_flops": TRAIN} | changes))  # type: ignore[arg-type]
    latency = LATENCY if budget.max_latency_ms else None
    return recommend(
        small_law(), LAWS, CANDIDATES, budget, seen=SEEN, known=known_variants(SETTING, SEEN), latency_ms=latency
    )


def test_candidates_are_what_the_runs_were_and_a_margin_beyond() -> None:
    widths, depths, mlp_dims = (sorted({getattr(one.config, name) for one in CANDIDATES}) for name in DIMENSIONS)
    assert (widths[0], widths[-1]) == (32, 192)  # 32 / 1.5 is no multiple of 16 within the margin
    assert depths == list(range(2, 13))
    assert (mlp_dims[0], mlp_dims[-1]) == (48, 384)
    assert len(CANDIDATES) == len(widths) * len(depths) * len(mlp_dims) == len({one.name for one in CANDIDATES})
    for one in CANDIDATES:
        assert one.config.head_dim == 16
        assert one.config.mlp_dim % 8 == 0
        assert (one.config.pool, one.config.num_classes, one.config.image_size) == ("gap", 10, (32, 32))
        ranges = {"width": (32, 128), "depth": (2, 8), "mlp_dim": (64, 256)}
        beyond = tuple(name for name, (low, high) in ranges.items() if not low <= getattr(one.config, name) <= high)
        assert one.outside == beyond
        assert replace(variant_config(one.name, image_size=(32, 32)), num_classes=10) == one.config


def test_without_a_margin_nothing_is_outside() -> None:
    found = small_candidates(margin=1)
    assert not any(one.outside for one in found)
    assert {32, 128} <= {one.config.width for one in found}
    assert {64, 256} <= {one.config.mlp_dim for one in found}


def test_sizes_stay_few_however_far_the_runs_lie_apart() -> None:
    found = candidates(
        SETTING,
        replace(SEEN, shapes=tuple(itertools.product((16, 8192), (1, 200), (8, 65536)))),
        small_law(),
        margin=1.5,
        multiple=8,
    )
    assert all(len({getattr(one.config, name) for one in found}) <= 34 for name in DIMENSIONS)


def test_where_the_law_does_not_tell_a_size_stays_at_what_most_runs_have() -> None:
    law, star = small_law(), replace(SEEN, shapes=STAR)
    only_helps = replace(law, depth=replace(law.depth, beta=0.0))
    assert untold(only_helps) == ("depth",)
    found = candidates(SETTING, star, only_helps, margin=1.5, multiple=8)
    assert {one.config.depth for one in found} == {8}
    assert len({one.config.width for one in found}) > 5
    held = replace(law, width=replace(law.width, identified=False))
    assert {one.config.width for one in candidates(SETTING, star, held, margin=1.5, multiple=8)} == {128}
    few = replace(SEEN, shapes=((64, 2, 64), (64, 4, 128), (128, 8, 256)))
    assert {one.config.width for one in candidates(SETTING, few, held, margin=1.5, multiple=8)} == {64}


def test_shapes_far_from_every_run_of_a_star_are_told() -> None:
    """Small in one dimension lies between the runs; small in two at once does not, however small each may be."""
    star = replace(SEEN, shapes=STAR)

    def outside(name: str) -> tuple[str, ...]:
        return candidates_of([name], [variant_config(name, image_size=(32, 32))], star)[0].outside

    for among in ("32,8,256,2/8", "128,2,256,8/8", "128,8,64,8/8", "96,6,208,6/8"):
        assert outside(among) == ()
    assert outside("32,2,256,2/8") == outside("48,6,64,3/8") == ("together",)
    assert outside("128,12,256,8/8") == ("depth",)
    budget = Budget(train_flops=TRAIN)
    far = recommend(small_law(), LAWS, candidates(SETTING, star, small_law(), margin=1, multiple=8), budget, seen=star)
    assert far.best.outside == ("together",)
    assert "train this shape, or a grid around it, first" in far.warnings[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"margin": 0.9}, "the margin is 0.9"),
        ({"margin": math.nan}, "the margin is nan"),
        ({"multiple": 0}, "the multiple of MLP sizes is 0"),
        ({"margin": 1.0, "multiple": 512}, "no mlp_dim from 64 to 256 is a multiple of 512"),
    ],
)
def test_candidates_that_cannot_be(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        candidates(SETTING, SEEN, small_law(), **({"margin": 1.5, "multiple": 8} | changes))  # type: ignore[arg-type]


def test_known_variants_take_the_laws_patches_and_head() -> None:
    found = known_variants(SETTING, SEEN)
    assert [one.name for one in found] == ["So400m/8", "L/8", "H/8", "g/8"]
    so400m = found[0]
    assert (so400m.config.width, so400m.config.patch_size, so400m.config.pool) == (1152, 8, "gap")
    assert (so400m.config.image_size, so400m.config.num_classes) == ((32, 32), 10)
    assert all(one.outside == DIMENSIONS for one in found)


def test_the_best_is_the_optimum_of_the_law() -> None:
    """Of all candidates none is better, and the rounded optimum of equation 4 is no more than a hair better."""
    found = asked()
    budget = found.budget
    assert found.best.error is not None
    assert found.best.error.value == errors(small_law(), CANDIDATES, budget).min()
    optimum = small_law().optimum(TRAIN / 3e9)
    assert found.best.error.value == pytest.approx(float(small_law().predict(optimum, TRAIN / 3e9)), rel=2e-3)
    assert found.best.outside == ()
    assert found.warnings == ()


def test_both_conventions_of_compute() -> None:
    """The law's t counts forward passes, the budget forward and backward: three times as much."""
    best = asked().best
    assert best.compute == TRAIN / 3 / 1e9
    assert best.images * cost(best.config).flops * 3 == pytest.approx(TRAIN)
    served = asked(lifetime_images=1e4)
    flops = cost(served.best.config).flops
    assert served.best.compute == pytest.approx((TRAIN - 1e4 * flops) / 3 / 1e9)
    assert served.best.images * flops * 3 + 1e4 * flops == pytest.approx(TRAIN)


def test_images_to_serve_make_the_best_shape_smaller() -> None:
    flops = [asked(lifetime_images=images).best.cost.flops for images in (0, 1e5, 1e6)]
    assert flops == sorted(flops, reverse=True)
    assert flops[-1] < flops[0]


def test_what_is_beyond_the_runs_is_said() -> None:
    found = asked(train_flops=1000 * TRAIN)
    assert set(found.best.outside) > {"compute"}
    assert "no run was as small or as large as the best shape in width" in found.warnings[0]
    assert "no run had as much or as little compute" in found.warnings[1]
    for known in found.known:
        assert known.outside == (*DIMENSIONS, "compute")
        assert known.best_share is None


def test_known_variants_that_the_budget_does_not_pay_for() -> None:
    found = asked(lifetime_images=1e6)
    assert [one.error for one in found.known] == [None] * 4
    assert [one.images for one in found.known] == [0] * 4


some_budgets = st.fixed_dictionaries(
    {"train_flops": st.floats(-1, 3).map(lambda power: TRAIN * 10**power)},
    optional={
        "lifetime_images": st.floats(0, 1e5),
        "max_params": st.floats(3e5, 2e6),
        "max_memory": st.floats(2e6, 2e7),
        "max_latency_ms": st.floats(0.3, 2),
        "batch": st.integers(1, 8),
    },
)


@settings(max_examples=25)
@given(some_budgets)
def test_the_front_is_feasible_and_nobody_is_better(changes: dict[str, float]) -> None:
    found = asked(**changes)
    budget = found.budget
    axis = [one.latency_ms if budget.max_latency_ms else one.cost.flops for one in found.front]
    values = [one.error.value for one in found.front if one.error]
    assert all(a is not None and b is not None and a < b for a, b in pairwise(axis))
    assert all(a is not None and b is not None and a > b for a, b in pairwise(values))
    assert sum(one.best_share or 0 for one in found.front) + found.elsewhere == pytest.approx(1)
    for one in found.front:
        assert budget.train_flops >= (3 + budget.lifetime_images) * one.cost.flops
        assert one.cost.parameters <= (budget.max_params or math.inf)
        assert one.memory_bytes == one.cost.weight_bytes + budget.batch * one.cost.activation_bytes
        assert one.memory_bytes <= (budget.max_memory or math.inf)
        assert (one.latency_ms or 0) <= (budget.max_latency_ms or math.inf)
        assert one.error is not None
        assert one.error.low_95 is not None
        assert one.error.low_95 <= (one.error.low_80 or 0) <= (one.error.high_80 or 0) <= (one.error.high_95 or 0)
    # Nobody among all candidates dominates one of the front.
    error_P = errors(small_law(), CANDIDATES, replace(budget, lifetime_images=0.0))
    if not budget.lifetime_images:
        kept = [
            index for index, one in enumerate(CANDIDATES)
            if one.cost.parameters <= (budget.max_params or math.inf)
            and budget.memory(one.cost) <= (budget.max_memory or math.inf)
            and LATENCY[one.name] <= (budget.max_latency_ms or math.inf)
        ]  # fmt: skip
        assert found.within == len(kept)
        for at, value in zip(axis, values, strict=True):
            for index in kept:
                other = CANDIDATES[index]
                price = LATENCY[other.name] if budget.max_latency_ms else other.cost.flops
                assert price > (at or 0) or error_P[index] >= (value or 0)


@settings(max_examples=25)
@given(some_budgets, st.floats(1, 100))
def test_more_budget_never_promises_less(changes: dict[str, float], factor: float) -> None:
    less = asked(**changes).best.error
    more = asked(**changes | {"train_flops": changes["train_flops"] * factor}).best.error
    assert less is not None
    assert more is not None
    assert more.value <= less.value  # type: ignore[operator]


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=30),
    st.sampled_from([1.0, 1.2, 2.0]),
)
def test_a_front_of_anything(points: list[tuple[int, int]], step: float) -> None:
    error, price = np.array(points, np.float64).T
    found = front(error, price, step)
    assert error[found[-1]] == error.min()
    assert price[found[-1]] == price[error == error.min()].min()
    for index in found:
        assert not ((error < error[index]) & (price <= price[index])).any()
        assert not ((error <= error[index]) & (price < price[index])).any()
    assert all(price[a] * step <= price[b] and error[a] > error[b] for a, b in pairwise(found))


def test_a_front_keeps_all_where_no_step_is_asked_for() -> None:
    error, price = np.array([5.0, 4.0, 4.0, 3.0, 9.0]), np.array([1.0, 1.1, 1.2, 1.3, 1.0])
    assert front(error, price) == [0, 1, 3]


def test_shares_are_those_of_the_replicates() -> None:
    """Where half of them see no gain in size, the cheapest of the front is their best."""
    law = small_law()
    flat = replace(law, **{name: replace(getattr(law, name), alpha=0.0) for name in DIMENSIONS})
    budget = Budget(train_flops=TRAIN)
    found = recommend(law, [law, flat, law, flat, law], CANDIDATES, budget, seen=SEEN)
    assert found.best.best_share == pytest.approx(0.6)
    assert sum(one.best_share or 0 for one in found.front[:-1]) + found.elsewhere == pytest.approx(0.4)
    assert found.warnings == ()
    doubtful = recommend(law, [law, flat, flat, flat, flat], CANDIDATES, budget, seen=SEEN)
    assert "only 20% of the bootstrap's laws have their best shape near" in doubtful.warnings[0]


def test_more_images_than_any_run_saw_are_told() -> None:
    seen = replace(SEEN, images=1e5)
    found = recommend(small_law(), [small_law()], CANDIDATES, Budget(train_flops=TRAIN), seen=seen)
    assert found.best.images > 1e5
    assert "images" in found.best.outside
    assert any("more than any run did" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_params": 1e4}, r"keeps --max-params 1e\+04: --max-params would have to be [12]\.\d+e\+04"),
        ({"max_memory": 1e4}, "keeps --max-memory 1e.04: --max-memory would have to be"),
        ({"max_latency_ms": 0.01}, r"keeps --max-latency-ms 0.01: --max-latency-ms would have to be 0\.\d+"),
        ({"train_flops": 1e6}, r"keeps --train-flops 1e\+06: --train-flops would have to be"),
        ({"lifetime_images": 1e9}, r"--train-flops would have to be \d.\d+e\+14"),
        ({"max_params": 1e4, "max_memory": 1e4}, "--max-params would have to be .*, and --max-memory would have to be"),
    ],
)
def test_when_nothing_is_left_it_is_said_what_would_be(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        asked(**changes)


def test_the_nearest_value_is_enough() -> None:
    with pytest.raises(ConfigError, match="--max-params would have to be") as raised:
        asked(max_params=1e4)
    value = float(str(raised.value).rpartition("have to be ")[2].partition(" (")[0])
    assert asked(max_params=value).within == 1


def test_limits_that_only_together_leave_nothing() -> None:
    """The small model is slow here, and the fast one large: each limit says what it would have to be."""
    names = ("32,2,64,2/8", "128,8,256,8/8")
    small, large = candidates_of(names, [variant_config(name, image_size=(32, 32)) for name in names], SEEN)
    latency = {small.name: 5.0, large.name: 1.0}
    with pytest.raises(ConfigError) as raised:
        recommend(
            small_law(), LAWS, [small, large], Budget(train_flops=TRAIN, max_params=1e5, max_latency_ms=2.0), seen=SEEN,
            latency_ms=latency,
        )  # fmt: skip
    said = str(raised.value)
    assert "keeps --max-params 1e+05 and --max-latency-ms 2 together: " in said
    assert f"--max-params would have to be 1.22e+06 ({large.name})" in said
    assert f"or --max-latency-ms would have to be 5 ({small.name})" in said


def test_unmeasured_shapes_are_not_recommended() -> None:
    known = {name: LATENCY[name] for name in list(LATENCY)[::50]}
    budget = Budget(train_flops=TRAIN, max_latency_ms=1.0)
    found = recommend(small_law(), LAWS, CANDIDATES, budget, seen=SEEN, latency_ms=known)
    assert {one.name for one in found.front} <= set(known)
    with pytest.raises(ConfigError, match="was measured, as --max-latency-ms needs"):
        recommend(small_law(), LAWS, CANDIDATES, budget, seen=SEEN)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_flops": 0.0}, "--train-flops is 0, it must be above 0"),
        ({"train_flops": -1e15}, r"--train-flops is -1e\+15"),
        ({"train_flops": math.nan}, "--train-flops is nan"),
        ({"train_flops": math.inf}, "--train-flops is inf"),
        ({"lifetime_images": -1.0}, "--lifetime-images is -1"),
        ({"lifetime_images": math.nan}, "--lifetime-images is nan"),
        ({"max_params": 0.0}, "--max-params is 0"),
        ({"max_memory": math.nan}, "--max-memory is nan"),
        ({"max_latency_ms": -2.0}, "--max-latency-ms is -2"),
        ({"batch": 0}, "--batch is 0"),
        ({"batch": 10**6}, "--batch is 1000000"),
    ],
)
def test_a_budget_that_is_none(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Budget(**({"train_flops": TRAIN} | changes))  # type: ignore[arg-type]


def test_shares_are_of_all_that_may_keep_the_limit() -> None:
    """Two measured shapes are not all there are: a law whose best was not measured has it elsewhere."""
    budget = Budget(train_flops=TRAIN, max_latency_ms=100.0)
    best = asked().best
    cheap = min(CANDIDATES, key=lambda one: one.cost.flops)
    known = {best.name: 1.0, cheap.name: 0.5}
    found = recommend(small_law(), LAWS, CANDIDATES, budget, seen=SEEN, latency_ms=known)
    assert found.best.name == best.name
    assert found.best.best_share == best.best_share
    assert found.elsewhere > 0
    # Those that are expected to be too slow are none of them.
    slow = {one.name: 1e9 for one in CANDIDATES}
    alone = recommend(small_law(), LAWS, CANDIDATES, budget, seen=SEEN, latency_ms=known, expected_ms=slow)
    assert sum(one.best_share or 0 for one in alone.front) == 1
    single = [one for one in CANDIDATES if one.name == best.name]
    assert recommend(small_law(), LAWS, single, budget, seen=SEEN, latency_ms=known).best.best_share is None


def test_a_law_beyond_numbers_is_told() -> None:
    law = small_law()
    huge = replace(law, width=replace(law.width, beta=1e308, b=300.0))
    with (
        np.errstate(over="ignore"),
        pytest.raises(ConfigError, match="gives no number for some shapes"),
    ):
        recommend(huge, LAWS, CANDIDATES, Budget(train_flops=TRAIN), seen=SEEN)


def test_nothing_comes_of_nothing() -> None:
    for laws, around in ((LAWS, ()), ((), CANDIDATES)):
        with pytest.raises(ConfigError, match="needs candidates, and replicates"):
            recommend(small_law(), laws, around, Budget(train_flops=TRAIN), seen=SEEN)


def test_json_there_and_back() -> None:
    for found in (asked(), asked(max_latency_ms=1.0, lifetime_images=1e6)):
        assert from_dict(Recommendation, to_dict(found), "x") == found
    assert by_number(found.best.config) == found.best.name
