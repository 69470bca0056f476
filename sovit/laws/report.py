"""A fitted law as one page of HTML: how it fits, what is left over, and what it says of shapes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

import numpy as np

from sovit import __version__
from sovit.cost import TRAINING
from sovit.laws.advice.budget import Budget
from sovit.laws.advice.candidates import candidates, untold
from sovit.laws.advice.options import Options
from sovit.laws.advice.recommend import recommend
from sovit.laws.curves import Curve, Dot, chart
from sovit.laws.form import DIMENSIONS
from sovit.laws.law_file import LawFile
from sovit.laws.solvers.powers import Floats
from sovit.laws.table import GFLOP, Points
from sovit.plot.page import page

_LEVELS: Final = 4  # of compute, that curves are drawn for
_ALONG: Final = 60  # points of a curve
_SIZES: Final = 12  # of each dimension, that the least error is looked for among
_REPLICATES: Final = 200  # are enough for a band


def write_report(path: Path, law: LawFile, points: Points, told: Sequence[str]) -> None:
    """Write the page. `told` are sentences about what the law is worth beyond the points it was fitted to."""
    figures = [
        _fitted(law, points),
        _residuals(law, points),
        *_by_size(law, points),
        _least_by_compute(law),
        _front(law),
    ]
    body = "\n".join([*(f"<p>{escape(one)}.</p>" for one in told), _exponents(law), *figures])
    title = f"The shape law of {law.setting.data}"
    of = (
        f"{law.fit.points} points of {law.fit.runs} runs, {' x '.join(map(str, law.setting.image_size))} px, "
        f"patches of {law.setting.patch_size} px; fitted with sovit {__version__}"
    )
    text = page(title=title, heading=title, of=of, flaws=law.warnings, body=body)
    path.write_text(text, encoding="utf-8")


def _fitted(law: LawFile, points: Points) -> str:
    predicted_P = law.law.predict(points.shapes_PK, points.compute_P)
    ends = [float(min(points.error_P.min(), predicted_P.min())), float(max(points.error_P.max(), predicted_P.max()))]
    dots = [
        Dot(x, y, _label(points, index)) for index, (x, y) in enumerate(zip(predicted_P, points.error_P, strict=True))
    ]
    return _figure(
        chart(
            name="fit", title="Predicted and measured error", x_label="predicted error", y_label="measured error",
            curves=[Curve("equal", ends, ends)], dots=dots,
        ),
        "Every point against what the law says of it. On the line they are equal.",
    )  # fmt: skip


def _residuals(law: LawFile, points: Points) -> str:
    residual_P = 100 * (points.error_P / law.law.predict(points.shapes_PK, points.compute_P) - 1)
    dots = [
        Dot(x, y, _label(points, index)) for index, (x, y) in enumerate(zip(points.compute_P, residual_P, strict=True))
    ]
    ends = [float(points.compute_P.min()), float(points.compute_P.max())]
    return _figure(
        chart(
            name="residuals", title="What is left over", x_label="compute, GFLOPs forward", y_label="residual, %",
            curves=[Curve("none", ends, [0.0, 0.0])], dots=dots, log_y=False,
        ),
        "Measured over predicted error, less one. A law of the right form leaves noise and no bow.",
    )  # fmt: skip


def _by_size(law: LawFile, points: Points) -> Sequence[str]:
    """Curves of equal compute along each dimension, the other two at their largest."""
    found = []
    largest_K = points.shapes_PK.max(axis=0)
    levels = np.geomspace(law.seen.compute[0], law.seen.compute[1], _LEVELS)
    for k, name in enumerate(DIMENSIONS):
        low, high = float(points.shapes_PK[:, k].min()), float(points.shapes_PK[:, k].max())
        sizes = np.geomspace(low, high, _ALONG)
        shapes_PK = np.tile(largest_K, (_ALONG, 1))
        shapes_PK[:, k] = sizes
        curves = [
            Curve(_gflops(level), sizes.tolist(), law.law.predict(shapes_PK, level).tolist())
            for level in levels.tolist()
        ]
        others = [axis for axis in range(len(DIMENSIONS)) if axis != k]
        on_arm = (points.shapes_PK[:, others] == largest_K[others]).all(axis=1)
        dots = [
            Dot(points.shapes_PK[index, k], points.error_P[index], _label(points, index))
            for index in np.flatnonzero(on_arm).tolist()
        ]
        plot = chart(
            name=f"by-{name}", title=f"Error by {name}", x_label=name, y_label="error", curves=curves, dots=dots,
        )  # fmt: skip
        found.append(
            _figure(
                plot,
                f"Curves of equal compute along {name}, the other dimensions at their largest; the dots are the points "
                "there, of any compute. The lowest place of a curve is the best size for its compute.",
            )
        )
    return found


def _least_by_compute(law: LawFile) -> str:
    """The least error that any shape within the sizes seen has at each compute, with its interval."""
    compute = np.geomspace(law.seen.compute[0], law.seen.compute[1] * 4, _ALONG)
    grid_PK = _grid(law)
    best = _least(law.law.predict(grid_PK[:, None, :], compute))
    of_all = np.stack([_least(one.predict(grid_PK[:, None, :], compute)) for one in law.laws[:_REPLICATES]])
    low, high = np.percentile(of_all, (2.5, 97.5), axis=0)
    return _figure(
        chart(
            name="least", title="The least error by compute", x_label="compute, GFLOPs forward", y_label="error",
            curves=[
                Curve("the law", compute.tolist(), best.tolist()), Curve("95 %, low", compute.tolist(), low.tolist()),
                Curve("95 %, high", compute.tolist(), high.tolist()),
            ], dots=[],
        ),
        f"The best shape within the sizes seen, up to four times the compute seen ({_gflops(law.seen.compute[1])} "
        f"forward, {_gflops(TRAINING * law.seen.compute[1])} with the backward pass). Beyond it the law is a guess.",
    )  # fmt: skip


def _front(law: LawFile) -> str:
    """What `sovit shape recommend` says at the largest compute seen, without limits."""
    around = candidates(law.setting, law.seen, law.law, margin=Options().margin, multiple=law.setting.multiple)
    budget = Budget(train_flops=TRAINING * law.seen.compute[1] * GFLOP)
    along = recommend(law.law, law.laws[:_REPLICATES], around, budget, seen=law.seen).front
    told = [(one.cost.flops / GFLOP, one.error, one) for one in along if one.error is not None]
    dots = [
        Dot(flops, error.value or 0.0, f"{one.name}: error {error.value:.4f}{_best(one.best_share)}")
        for flops, error, one in told
    ]
    flops = [one[0] for one in told]
    curves = [
        Curve(name, flops, [getattr(error, field) for _, error, _ in told])
        for name, field in (("the front", "value"), ("95 %, low", "low_95"), ("95 %, high", "high_95"))
    ]
    return _figure(
        chart(
            name="front", title="The front", x_label="GFLOPs of an image, forward", y_label="error", curves=curves,
            dots=dots,
        ),
        f"Shapes that no cheaper one betters, each trained with {_gflops(law.seen.compute[1])} forward, the "
        f"largest compute seen ({_gflops(TRAINING * law.seen.compute[1])} with the backward pass). Larger ones see "
        "fewer images.",
    )  # fmt: skip


def _best(share: float | None) -> str:
    return "" if share is None else f", best, or near it, to {share:.0%} of the bootstrap's laws"


def _grid(law: LawFile) -> Floats:
    # A dimension whose best size is not told stays at what most runs have, as in all advice.
    held = untold(law.law)
    axes = [
        np.array([law.seen.usual(name)]) if name in held else np.geomspace(*law.seen.sizes(name), _SIZES)
        for name in DIMENSIONS
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(DIMENSIONS))


def _least(error_PT: Floats) -> Floats:
    return np.asarray(error_PT.min(axis=0))


def _exponents(law: LawFile) -> str:
    rows = "".join(
        f"<tr><td>{escape(one.name)}</td>"
        + "".join(
            f'<td class="number">{"" if value is None else f"{value:.4g}"}</td>'
            for value in (one.value, one.low_80, one.high_80, one.low_95, one.high_95)
        )
        + f'<td class="number">{one.undefined:.0%}</td></tr>'
        for one in law.intervals
    )
    head = "".join(
        f'<th scope="col" class="number">{text}</th>'
        for text in ("value", "80 % from", "to", "95 % from", "to", "say nothing")
    )
    return (
        '<div class="table"><table><caption>The parameters, and the exponents s of the best sizes by compute, with '
        "intervals of a bootstrap over runs. An empty cell is a value that the points do not tell; the last column is "
        "the share of the bootstrap's laws that say nothing of it, and the intervals are of the others.</caption>"
        f'<thead><tr><th scope="col"></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _figure(plot: str, caption: str) -> str:
    return f"<figure>{plot}<figcaption>{escape(caption)}</figcaption></figure>"


def _label(points: Points, index: int) -> str:
    width, depth, mlp_dim = points.shapes_PK[index]
    return (
        f"width {width:g}, depth {depth:g}, mlp_dim {mlp_dim:g}: error {points.error_P[index]:.4f} at "
        f"{_gflops(points.compute_P[index])}"
    )


def _gflops(value: float) -> str:
    """Three digits and no powers of ten."""
    return f"{float(f'{value:.3g}'):,.10g} GFLOPs"
