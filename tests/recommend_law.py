"""A law of small shapes on small images, as `sovit shape fit` would write it, with replicates that differ by chance."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from sovit.laws.advice.candidates import Candidate, candidates
from sovit.laws.bootstrap import summarise
from sovit.laws.fit import Fit
from sovit.laws.form import DIMENSIONS, ShapeLaw, Term
from sovit.laws.holdout import EachShape, HoldOut
from sovit.laws.law_file import LawFile, Seen, Setting, Training
from sovit.laws.solvers.solve import Convergence

SETTING = Setting(patch_size=8, image_size=(32, 32), pool="gap", classes=10, data="cifar10", head_dim=16, multiple=8)
CORNERS = tuple(itertools.product((32.0, 128.0), (2.0, 8.0), (64.0, 256.0)))  # of a grid
SEEN = Seen(shapes=CORNERS, compute=(300, 9000), error=(0.2, 0.6), images=1e12)
TRAINING = Training(
    recipe="cifar10", settings=("mup_depth=128,8,256", "ema=0"), batch_size=256, cooldown=0.2, learning_rate=1.5e-3
)
FORWARD = 5e12  # FLOPs in the middle of what was seen
TRAIN = 3 * FORWARD


def small_law(scale: tuple[float, float, float] = (1, 1, 1), eps: float = 0.1) -> ShapeLaw:
    """Its optimum at `FORWARD` is about 80 wide, 4 deep, with an MLP of 128; `scale` multiplies its gains."""
    size, compute, c = (80, 4, 128), FORWARD / 1e9, 0.5
    exponents = ((1.2, 1.3), (0.7, 0.8), (0.5, 0.6))
    terms = {
        name: Term(
            alpha=0.06 * scale[k] * size[k] ** a / a, a=a, beta=0.06 * size[k] ** -b / b * compute**c, b=b
        )
        for k, (name, (a, b)) in enumerate(zip(DIMENSIONS, exponents, strict=True))
    }  # fmt: skip
    return ShapeLaw(**terms, c=c, xi=0.05 * compute**c, eps=eps)


def replicates(count: int = 60, spread: float = 0.15) -> tuple[ShapeLaw, ...]:
    rng = np.random.default_rng(5)
    return tuple(small_law(tuple(np.exp(spread * rng.normal(size=3)).tolist())) for _ in range(count))


def small_candidates(margin: float = 1.5) -> tuple[Candidate, ...]:
    return candidates(SETTING, SEEN, small_law(), margin=margin, multiple=8)


def law_file(**changes: object) -> LawFile:
    laws = replicates()
    convergence = Convergence(objective=1e-3, starts=10, reached=9, gradient_norm=1e-9, condition=100.0, mixed=(0, 1))
    fitted = Fit(
        law=small_law(), method="relative", delta=1e-3, seed=0, points=51, runs=17, parameters=15,
        convergence=convergence, warnings=(),
    )  # fmt: skip
    held_out = HoldOut(
        fitted_points=39, predicted_points=12, compute=3400, largest_compute=9000, mean_error=0.021, max_error=0.05,
        bias=-0.01, warnings=(),
    )  # fmt: skip
    law = LawFile(
        setting=SETTING, training=TRAINING, seen=SEEN, fit=fitted, laws=laws,
        intervals=(summarise("c", 0.5, np.array([law.c for law in laws])),), hold_out=held_out, not_held_out="",
        each_shape=EachShape(shapes=17, median_error=0.013, max_error=0.04),
        warnings=("intervals of 17 runs may be too narrow.",),
    )  # fmt: skip
    return replace(law, **changes)  # type: ignore[arg-type]
