"""The right shape for a budget: the least predicted error, the front before it, and how sure the law is of either."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from sovit.config import ViTConfig, by_number
from sovit.cost import Cost
from sovit.errors import ConfigError
from sovit.jsonio import STRICT
from sovit.laws.advice.budget import Budget, but_latency, keeping, limits
from sovit.laws.advice.candidates import TOGETHER, Candidate
from sovit.laws.bootstrap import Interval, summarise
from sovit.laws.form import DIMENSIONS, ShapeLaw
from sovit.laws.law_file import Seen
from sovit.laws.solvers.powers import Floats
from sovit.laws.table import GFLOP

Axis = Literal["flops", "latency_ms"]
# Shapes of the front that are nearer to a better one in FLOPs are left out: the law cannot tell them apart. Measured
# latencies are few, and all stay.
_FLOPS_STEP: Final = 1.2
_LATENCY_STEP: Final = 1.0
_AGREED: Final = 0.5
_NEIGHBOUR: Final = 1.25  # in each dimension: shapes so near to each other are one to a law
_ROUNDING: Final = 1.01


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What a shape costs and promises under a budget.

    `compute` is what is left for its training in GFLOPs, forward passes, and `images` how many that pays for, repeats
    counted. `error` is None where nothing is left, `latency_ms` where it was not measured. `best_share` is the share of
    the bootstrap's laws to which it, or a neighbour within 25 % of its sizes, is the best of all candidates; None for
    shapes that are not on the front, and where there was no other candidate. `outside` names in what the law was asked
    beyond its runs: dimensions, or all of them `together`; `compute`; and `images` where no run saw as many.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str
    config: ViTConfig
    cost: Cost
    memory_bytes: int
    latency_ms: float | None
    compute: float
    images: float
    error: Interval | None
    best_share: float | None
    outside: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The best shape, which is the last of the front, the front from cheap to good, and known variants beside it.

    `elsewhere` is the share of laws whose best shape is near none of the front. `axis` is what the front trades the
    error against; `candidates` were looked at and `within` of them keep all limits. `unmeasured` is a shape that the
    law gives less error than the best and that may keep the limit of latency: it was not measured.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    budget: Budget
    axis: Axis
    candidates: int
    within: int
    front: tuple[Advice, ...]
    elsewhere: float
    known: tuple[Advice, ...]
    unmeasured: str | None = None

    @property
    def best(self) -> Advice:
        """The shape with the least predicted error."""
        return self.front[-1]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why not to trust it, a sentence each."""
        found = []
        if self.candidates == 1:
            found.append("only one shape was looked at, the one that most runs have: this is its cost, and no advice.")
        sizes = [name for name in self.best.outside if name in DIMENSIONS]
        if sizes:
            found.append(
                f"no run was as small or as large as the best shape in {', '.join(sizes)}: the law is stretched."
            )
        if TOGETHER in self.best.outside:
            found.append(
                "each size of the best shape lies among the runs', and no run changed several so far at once: that "
                "what they do adds up is an assumption of the law, so train this shape, or a grid around it, first."
            )
        if "images" in self.best.outside:
            found.append(
                f"the best shape would see {self.best.images:.2g} images, more than any run did: the law takes "
                "them all for new ones, and what a model gains from seeing the same again is less."
            )
        if "compute" in self.best.outside:
            found.append("no run had as much or as little compute as this budget pays for: the law is stretched.")
        if self.best.best_share is not None and self.best.best_share < _AGREED:
            found.append(
                f"only {self.best.best_share:.0%} of the bootstrap's laws have their best shape near this "
                "one: take the shares for what they are."
            )
        if self.unmeasured is not None:
            found.append(
                f"{self.unmeasured} may be better within the limit and was not measured: the same command with a "
                "larger --measure goes on from here."
            )
        return tuple(found)


def recommend(
    law: ShapeLaw, laws: Sequence[ShapeLaw], candidates: Sequence[Candidate], budget: Budget, *, seen: Seen,
    known: Sequence[Candidate] = (), latency_ms: Mapping[str, float] | None = None,
    expected_ms: Mapping[str, float] | None = None,
) -> Recommendation:  # fmt: skip
    """The best of the candidates that keep to the budget, by `law`, with intervals and shares from its replicates.

    `latency_ms` are measured ones by `by_number`; under a limit of latency, candidates without one are not taken, and
    it is what the front is against. Shares are of all candidates that may keep the limits: of those that were not
    measured, all but the ones of which `expected_ms` says that they are too slow. Raises `ConfigError` where no
    candidate keeps all limits.
    """
    if not candidates or not laws:
        raise ConfigError("a recommendation needs candidates, and replicates of the law.")
    latency_ms = latency_ms or {}
    within_P = keeping(limits(budget, candidates, latency_ms), candidates)
    within = [one for one, kept in zip(candidates, within_P, strict=True) if kept]
    error_P = errors(law, within, budget)
    if not np.isfinite(error_P).all():
        raise ConfigError("the law gives no number for some shapes: its parameters are beyond what can be computed.")
    if budget.max_latency_ms is None:
        axis: Axis = "flops"
        along = front(error_P, np.array([one.cost.flops for one in within], np.float64), _FLOPS_STEP)
    else:
        axis = "latency_ms"
        along = front(error_P, np.array([latency_ms[one.name] for one in within]), _LATENCY_STEP)
    chosen = [within[index] for index in along]
    compared = _compared(candidates, within, budget, latency_ms, expected_ms or {})
    place_of = {one.name: place for place, one in enumerate(compared)}
    places = [place_of[one.name] for one in chosen]
    # Each law is asked once, about all candidates; there may be too many for all answers to be kept.
    asked = _asked(compared, budget)
    least = compared[int(law.predict(*asked).argmin())]
    error_BP, best = np.empty((len(laws), len(chosen))), []
    for row, one in enumerate(laws):
        of_all_P = one.predict(*asked)
        error_BP[row] = of_all_P[places]
        best.append(compared[int(of_all_P.argmin())])
    # Where nothing else was looked at, nothing was compared.
    share_P = _shares(best, chosen).tolist() if len(compared) > 1 else None

    def advice(one: Candidate, error: Interval | None, share: float | None) -> Advice:
        compute = budget.compute(one.cost)
        images = max(0.0, compute * GFLOP / one.cost.flops)
        stretched = [] if seen.compute[0] <= compute <= seen.compute[1] else ["compute"]
        stretched += ["images"] if 0 < seen.images * _ROUNDING < images else []
        return Advice(
            name=one.name, config=one.config, cost=one.cost, memory_bytes=budget.memory(one.cost),
            latency_ms=latency_ms.get(by_number(one.config)), compute=compute,
            images=images,
            error=error, best_share=share, outside=(*one.outside, *stretched),
        )  # fmt: skip

    def interval(one: Candidate) -> Interval | None:
        if budget.compute(one.cost) <= 0:
            return None
        asked = _asked([one], budget)
        said_B = np.array([each.predict(*asked)[0] for each in laws])
        return summarise("error", float(errors(law, [one], budget)[0]), said_B)

    return Recommendation(
        budget=budget,
        axis=axis,
        candidates=len(candidates),
        within=len(within),
        front=tuple(
            advice(one, summarise("error", float(error_P[index]), said_B), share)
            for one, index, said_B, share in zip(
                chosen, along, error_BP.T, share_P or [None] * len(chosen), strict=True
            )
        ),
        elsewhere=0.0 if share_P is None else max(0.0, 1 - sum(share_P)),
        known=tuple(advice(one, interval(one), None) for one in known),
        unmeasured=None if budget.max_latency_ms is None or least.name in latency_ms else least.name,
    )


def _compared(
    candidates: Sequence[Candidate], within: Sequence[Candidate], budget: Budget, latency_ms: Mapping[str, float],
    expected_ms: Mapping[str, float],
) -> list[Candidate]:  # fmt: skip
    """Those that keep the limits, and those that may: which were not measured, and are not expected to be too slow."""
    if budget.max_latency_ms is None:
        return list(within)
    limit = budget.max_latency_ms
    return [
        one
        for one in but_latency(budget, candidates)
        if latency_ms.get(one.name, expected_ms.get(one.name, 0.0)) <= limit
    ]


def _shares(best: Sequence[Candidate], chosen: Sequence[Candidate]) -> Floats:
    """The share of laws whose best of all candidates, one each, is a chosen one or a neighbour nearer to no other."""
    apart_BP3 = np.abs(np.log(_shapes(best))[:, None] - np.log(_shapes(chosen)))
    apart_BP = apart_BP3.max(axis=-1)
    nearest_B = apart_BP.argmin(axis=1)
    is_near_B = apart_BP.min(axis=1) <= math.log(_NEIGHBOUR)
    return np.asarray(np.bincount(nearest_B[is_near_B], minlength=len(chosen)) / len(best))


def _shapes(candidates: Sequence[Candidate]) -> Floats:
    return np.array([[one.config.width, one.config.depth, one.config.mlp_dim] for one in candidates], np.float64)


def _asked(candidates: Sequence[Candidate], budget: Budget) -> tuple[Floats, Floats]:
    """Their shapes [P, 3] and what the budget leaves for their training [P], as a law is asked."""
    return _shapes(candidates), np.array([budget.compute(one.cost) for one in candidates])


def errors(law: ShapeLaw, candidates: Sequence[Candidate], budget: Budget) -> Floats:
    """The predicted error of each candidate, trained with what the budget leaves for it (more than 0)."""
    return law.predict(*_asked(candidates, budget))


def front(error_P: Floats, cost_P: Floats, step: float = 1.0) -> list[int]:
    """Which points nothing is better than in both error and cost, by rising cost; the last has the least error.

    With a `step` above 1 those stay of which each is that many times cheaper than the next, from the last one down.
    """
    order = np.lexsort((error_P, cost_P))
    best_before = np.concatenate([[math.inf], np.minimum.accumulate(error_P[order])[:-1]])
    rising: NDArray[np.intp] = order[error_P[order] < best_before]
    kept = [int(rising[-1])]
    for index in rising[-2::-1].tolist():
        if cost_P[index] * step <= cost_P[kept[-1]]:
            kept.append(index)
    return kept[::-1]
