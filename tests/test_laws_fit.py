"""The shape law: known parameters are found again, whatever the units, the order and the start."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.studies.law_tables import law_of, points_of, scattered, star
from sovit.errors import ConfigError
from sovit.jsonio import from_dict, to_dict
from sovit.laws.fit import Fit, fit
from sovit.laws.form import ShapeLaw
from sovit.laws.holdout import EachShape, each_shape, hold_out
from sovit.laws.solvers.powers import Floats
from sovit.laws.solvers.solve import Method
from sovit.laws.table import Points

METHODS: tuple[Method, ...] = ("relative", "huber")


def agree(one: ShapeLaw, other: ShapeLaw, tolerance: float) -> None:
    for (name, value), expected in zip(one.parameters().items(), other.parameters().values(), strict=True):
        assert value == pytest.approx(expected, rel=tolerance), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shapes", [star(), scattered(60)], ids=["star", "scattered"])
def test_known_parameters_are_found(method: Method, shapes: Floats) -> None:
    truth = law_of()
    found = fit(points_of(truth, shapes), method=method, starts=10)
    agree(found.law, truth, 1e-6)
    assert found.law.exponents == pytest.approx([0.65 / 2.95, 0.65 / 1.44, 0.65 / 1.08], rel=1e-6)
    assert found.convergence.objective < 1e-20
    assert found.convergence.reached >= 5
    assert found.warnings == ()
    assert (found.points, found.runs, found.parameters) == (3 * len(shapes), len(shapes), 15)


some_exponent = st.floats(0.3, 1.8)
some_worth = st.floats(0.01, 0.1)
three_exponents = st.tuples(some_exponent, some_exponent, some_exponent)
three_worths = st.tuples(some_worth, some_worth, some_worth)


@settings(max_examples=25)
@given(
    st.builds(
        law_of,
        a=three_exponents,
        b=three_exponents,
        c=st.floats(0.3, 0.9),
        alpha=three_worths,
        beta=three_worths,
        xi=some_worth,
        eps=st.floats(0.05, 0.3),
    )
)
def test_any_known_parameters_are_found(truth: ShapeLaw) -> None:
    found = fit(points_of(truth, scattered(60)), starts=20)
    agree(found.law, truth, 1e-6)


def test_every_start_ends_in_the_same_place_in_spite_of_noise() -> None:
    points = points_of(law_of(), scattered(150), noise=0.006)
    found = fit(points)
    assert found.convergence.starts == 200
    assert found.convergence.reached > 150
    assert found.convergence.gradient_norm < 1e-8
    other = fit(points, seed=1)
    agree(found.law, other.law, 1e-6)
    assert other.convergence.objective == pytest.approx(found.convergence.objective, rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_the_optimum_is_no_worse_than_the_truth(method: Method) -> None:
    truth, points = law_of(), points_of(law_of(), scattered(60), noise=0.006)
    s = np.log(truth.predict(points.shapes_PK, points.compute_P) / points.error_P)
    size = np.abs(s)
    huber = np.where(size <= 1e-3, s**2 / 2, 1e-3 * (size - 0.5e-3)).sum()
    of_truth = {"relative": (np.expm1(s) ** 2).sum(), "huber": huber}[method]
    assert 0.5 * of_truth < fit(points, method=method, starts=4).convergence.objective < of_truth


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_points_is_nothing(method: Method) -> None:
    points = points_of(law_of(), scattered(60), noise=0.006)
    order = np.random.default_rng(0).permutation(len(points))
    shuffled = Points(
        shapes_PK=points.shapes_PK[order],
        compute_P=points.compute_P[order],
        error_P=points.error_P[order],
        run_P=59 - points.run_P[order],
        runs=points.runs[::-1],
    )
    agree(fit(shuffled, method=method, starts=4).law, fit(points, method=method, starts=4).law, 1e-6)


@settings(max_examples=15)
@given(*[st.floats(1e-6, 1e6)] * 3)
def test_units_only_rescale_coefficients(size: float, compute: float, error: float) -> None:
    points = points_of(law_of(), scattered(40), noise=0.006)
    scaled = replace(
        points, shapes_PK=points.shapes_PK * size, compute_P=points.compute_P * compute, error_P=points.error_P * error
    )
    one, other = fit(points, starts=4).law, fit(scaled, starts=4).law
    x, t = np.array([[1152.0, 27, 4304], [880, 18, 2320]]), np.array([1e11, 1e10])
    assert other.predict(x * size, t * compute) == pytest.approx(error * one.predict(x, t), rel=1e-7)
    assert other.optimum(t * compute) == pytest.approx(size * one.optimum(t), rel=1e-5)
    assert other.exponents == pytest.approx(one.exponents, rel=1e-6)


def test_dimensions_are_alike() -> None:
    points = points_of(law_of(), scattered(40), noise=0.006)
    turned = replace(points, shapes_PK=points.shapes_PK[:, [2, 0, 1]])
    one, other = fit(points, starts=8).law, fit(turned, starts=8).law
    assert other.exponents == pytest.approx(one.exponents[[2, 0, 1]], rel=1e-6)


# What the points cannot tell.


def test_two_sizes_have_no_exponent_and_are_passed_through() -> None:
    shapes = scattered(78)[18:]
    shapes[:, 0] = np.where(np.arange(60) % 2, 768, 1536)
    points = points_of(law_of(), shapes)
    found = fit(points, starts=10)
    assert found.warnings[0] == "width exponent not identified: 2 distinct widths; it takes 3 or more."
    assert not found.law.width.identified
    assert np.isnan(found.law.exponents[0])
    assert np.isnan(found.law.optimum(1e10)[0])
    assert found.law.exponents[1:] == pytest.approx([0.65 / 1.44, 0.65 / 1.08], rel=1e-6)
    assert found.law.predict(points.shapes_PK, points.compute_P) == pytest.approx(points.error_P, rel=1e-9)
    assert found.parameters == 13


def test_one_size_has_no_terms() -> None:
    shapes = scattered(78)[18:]
    shapes[:, 1] = 12
    points = points_of(law_of(), shapes)
    found = fit(points, starts=10)
    assert found.warnings[0] == "depth exponent not identified: all runs have the same depth; it takes 3 or more."
    assert (found.law.depth.alpha, found.law.depth.beta, found.parameters) == (0, 0, 11)
    assert found.law.exponents == pytest.approx([0.65 / 2.95, np.nan, 0.65 / 1.08], rel=1e-6, nan_ok=True)
    assert found.law.predict(points.shapes_PK, points.compute_P) == pytest.approx(points.error_P, rel=1e-9)


def test_dimensions_that_move_together_are_named() -> None:
    shapes = scattered(78)[18:]
    shapes[:, 2] = 4 * shapes[:, 0]
    warnings = fit(points_of(law_of(), shapes, noise=0.006), starts=4).warnings
    assert "width exponent not identified: width moves together with depth and mlp_dim." in warnings
    assert "mlp_dim exponent not identified: mlp_dim moves together with width and depth." in warnings


def test_a_dimension_without_effect_is_named() -> None:
    truth = law_of(alpha=(0.03, 0, 0.04))
    found = fit(points_of(truth, scattered(60)), starts=10)
    assert found.warnings[0] == "depth exponent not identified: the points show no gain of its size."
    assert np.isnan(found.law.exponents[1])
    assert found.law.width.a == pytest.approx(1.4, rel=1e-6)


def test_two_levels_of_compute_hardly_tell_c() -> None:
    points = points_of(law_of(), scattered(60))
    level = np.where(np.arange(180) % 3, 1e9, 1e11)
    two = replace(points, compute_P=level + np.arange(180), error_P=law_of().predict(points.shapes_PK, level))
    assert two.compute_levels == 2
    warned = "data exponent c hardly identified: 2 levels of compute; it takes 3 or more."
    assert warned in fit(two, starts=4).warnings


def test_too_few_points_and_too_few_shapes() -> None:
    with pytest.raises(ConfigError, match=r"There are 15 points for 15 parameters: add runs.* 16 points or more"):
        fit(points_of(law_of(), scattered(23)[18:]))
    shapes = star()[[0, 1, 2, 3, 4, 6]]
    shapes[:3, 1:] = [[10, 2000], [12, 2500], [16, 3000]]
    with pytest.raises(ConfigError, match=r"There are 6 shapes, and width, depth, mlp_dim vary: .* takes 7 shapes"):
        fit(points_of(law_of(), shapes))


@pytest.mark.parametrize(("field", "value"), [("starts", 0), ("delta", 0.0), ("delta", float("nan"))])
def test_settings_that_make_no_sense(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{field} is"):
        fit(points_of(law_of(), star()), **{field: value})  # type: ignore[arg-type]


def test_a_fit_is_json() -> None:
    found = fit(points_of(law_of(), star(), noise=0.006), starts=4)
    assert from_dict(Fit, to_dict(found), "fit") == found


# Beyond what was fitted.


@pytest.mark.parametrize("method", METHODS)
def test_more_compute_is_foretold(method: Method) -> None:
    held = hold_out(points_of(law_of(), scattered(60)), method=method, starts=8)
    assert held.fitted_points == 135
    assert held.predicted_points == 45
    assert held.max_error < 1e-6
    assert held.compute < held.largest_compute
    noisy = hold_out(points_of(law_of(), scattered(60), noise=0.006), method=method, starts=8)
    assert 0.003 < noisy.mean_error < 0.02
    assert noisy.mean_error < noisy.max_error < 0.06


def test_a_law_that_ends_is_seen_to() -> None:
    points = points_of(law_of(), scattered(60))
    limit = np.quantile(points.compute_P, 0.75)
    worse = replace(points, error_P=points.error_P * np.where(points.compute_P > limit, 1.2, 1))
    held = hold_out(worse, starts=8)
    assert held.mean_error == pytest.approx(1 - 1 / 1.2, rel=1e-3)
    assert held.bias == pytest.approx(-held.mean_error)


def test_nothing_to_hold_out() -> None:
    with pytest.raises(ConfigError, match="Without the quarter of the points that has most compute: There are "):
        hold_out(points_of(law_of(), scattered(25)[18:]))
    points = points_of(law_of(), scattered(60))
    first = np.arange(180) % 3 == 0
    top = replace(points, compute_P=np.where(first, 1e11, 1e12), run_P=np.arange(180), runs=tuple(map(str, range(180))))
    with pytest.raises(ConfigError, match="No quarter of the points has more compute than the rest"):
        hold_out(top)


# Where parabolas fail.


def parabola_exponent(law: ShapeLaw, levels: Floats, factors: Floats, drift: float) -> float:
    """s_width as IsoFLOP profiles have it: a parabola in log width at each compute, a line through their minima."""
    minima = []
    for step, t in enumerate(levels):
        centre = law.optimum(t)
        widths = centre[0] * factors * drift**step
        errors = law.predict(np.column_stack([widths, np.full((len(widths), 2), centre[1:])]), t)
        square, linear, _ = np.polyfit(np.log(widths), errors, 2)
        minima.append(-linear / (2 * square))
    return float(np.polyfit(np.log(levels), minima, 1)[0])


def test_a_biased_design_deceives_parabolas_and_not_the_law() -> None:
    """No noise; the widths tried are mostly above the best, and more so the more compute."""
    truth = law_of()
    levels, factors, drift = np.geomspace(1e8, 1e11, 4), np.geomspace(0.7, 4, 7), 1.25
    by_parabola = parabola_exponent(truth, levels, factors, drift)
    assert abs(by_parabola / truth.exponents[0] - 1) > 0.1
    # Even, centred and without drift it is another matter: the parabolas themselves are right.
    assert parabola_exponent(truth, levels, np.geomspace(0.5, 2, 7), 1) == pytest.approx(truth.exponents[0], rel=0.03)
    shapes, compute = [], []
    for step, t in enumerate(levels):
        for k in range(3):
            for factor in factors * drift**step:
                shape = truth.optimum(t)
                shape[k] *= factor
                shapes.append(shape)
                compute.append(t)
    shapes_PK, compute_P = np.array(shapes), np.array(compute)
    points = Points(
        shapes_PK=shapes_PK,
        compute_P=compute_P,
        error_P=truth.predict(shapes_PK, compute_P),
        run_P=np.arange(len(shapes)),
        runs=tuple(map(str, range(len(shapes)))),
    )
    for method in METHODS:
        assert fit(points, method=method, starts=8).law.exponents == pytest.approx(truth.exponents, rel=1e-6)


def left_out(points: Points) -> EachShape:
    found = each_shape(points, fit(points, starts=4))
    assert found is not None
    return found


def test_each_shape_is_predicted_by_the_others() -> None:
    assert left_out(points_of(law_of(), scattered(40))).max_error < 1e-5
    points = points_of(law_of(), scattered(40), noise=0.006)
    found = left_out(points)
    assert found.shapes == 40
    assert 0.004 < found.median_error < 0.02
    # One of them by hand, from many starts of its own.
    last_P = points.run_P == 39
    law = fit(points.subset(~last_P), starts=20).law
    by_hand = np.abs(law.predict(points.shapes_PK[last_P], points.compute_P[last_P]) / points.error_P[last_P] - 1)
    assert by_hand.max() <= found.max_error * (1 + 1e-4)
    # A run that the law does not hold for is seen, while a fit that has it bends to it.
    odd = replace(points, error_P=points.error_P * np.where(points.run_P == 5, 1.2, 1.0))
    assert left_out(odd).max_error > 0.12


def test_a_shape_is_left_out_with_all_of_its_runs() -> None:
    """Were a run of the same shape still fitted, the odd shape would be predicted well."""
    shapes = scattered(40)
    points = points_of(law_of(), np.concatenate([shapes, shapes]))
    odd_P = (points.run_P == 5) | (points.run_P == 45)
    found = left_out(replace(points, error_P=points.error_P * np.where(odd_P, 1.2, 1.0)))
    assert found.shapes == 40
    assert found.max_error > 0.12


def test_without_some_shapes_a_dimension_would_have_too_few_sizes() -> None:
    """Three widths, one of which a single shape has: it cannot be left out."""
    shapes = scattered(78)[18:]
    shapes[:, 0] = np.where(np.arange(60) % 2, 768, 1536)
    shapes[0, 0] = 1000
    assert left_out(points_of(law_of(), shapes)).shapes == 59
    small = star()[[0, 1, 6, 7, 12, 13]]
    points = points_of(law_of(), np.concatenate([small, np.array([[1968.0, 40.0, 6144.0]])]))
    assert each_shape(points, fit(points, starts=4)) is None
