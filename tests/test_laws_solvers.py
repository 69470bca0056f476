"""The solvers of sums of powers: their derivatives, their inner problem, and that they agree with each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import approx_fprime, nnls  # type: ignore[import-untyped]

from benchmarks.studies.law_tables import law_of, points_of, scattered
from sovit.laws.design import design_of
from sovit.laws.solvers.descent import descend, objective
from sovit.laws.solvers.losses import Huber, Loss, Relative
from sovit.laws.solvers.newton import derivatives, refine
from sovit.laws.solvers.nonnegative import nonnegative
from sovit.laws.solvers.powers import PowerSum, Solutions
from sovit.laws.solvers.projection import coefficients, project
from sovit.laws.solvers.solve import solve

Floats = NDArray[np.float64]
LOSSES: tuple[Loss, ...] = (Relative(), Huber(1e-3), Huber(0.1))


def model_of(noise: float = 0.006, runs: int = 40) -> PowerSum:
    points = points_of(law_of(), scattered(runs), noise=noise)
    return design_of(points).model(points)


def somewhere(seed: int) -> Floats:
    """Coefficients and exponents that are no optimum."""
    return np.exp(np.random.default_rng(seed).uniform(np.log(0.1), 0, 15))


@given(st.integers(0, 1000), st.sampled_from([1e-3, 0.1]))
def test_the_gradient_of_the_descent(seed: int, delta: float) -> None:
    model, z_Z = model_of(), somewhere(seed)
    value, gradient = objective(model, Huber(delta), z_Z)
    step = np.concatenate([z_Z, z_Z]) * 1e-6 * np.repeat([1, -1], 15)
    rows = [objective(model, Huber(delta), z_Z + np.eye(15)[index % 15] * step[index])[0] for index in range(30)]
    central = (np.array(rows[:15]) - rows[15:]) / (2e-6 * z_Z)
    assert gradient == pytest.approx(central, rel=1e-5, abs=1e-6 * value)


@pytest.mark.parametrize("loss", LOSSES, ids=["relative", "huber", "wide-huber"])
@pytest.mark.parametrize("seed", range(5))
def test_first_and_second_derivatives(loss: Loss, seed: int) -> None:
    model, z_Z = model_of(), somewhere(seed)
    weights = np.random.default_rng(seed).integers(0, 3, (1, model.offset_JP.shape[1])).astype(np.float64)
    at = derivatives(model, loss, weights, z_Z[None])

    def value(z: Floats) -> float:
        return float(derivatives(model, loss, weights, z[None]).objective_B[0])

    def gradient(z: Floats) -> Floats:
        found: Floats = derivatives(model, loss, weights, z[None]).gradient_BZ[0]
        return found

    assert at.gradient_BZ[0] == pytest.approx(approx_fprime(z_Z, value, 1e-7), rel=1e-3, abs=1e-4 * at.objective_B[0])
    step = 1e-6
    columns = [(gradient(z_Z + step * axis) - gradient(z_Z - step * axis)) / (2 * step) for axis in np.eye(15)]
    assert at.hessian_BZZ[0] == pytest.approx(np.array(columns), rel=1e-3, abs=1e-4 * np.abs(columns).max())
    assert at.hessian_BZZ[0] == pytest.approx(at.hessian_BZZ[0].T)


@pytest.mark.parametrize("loss", LOSSES, ids=["relative", "huber", "wide-huber"])
def test_losses(loss: Loss) -> None:
    s = np.linspace(-0.5, 0.5, 1001) + 1e-5
    at, after = loss(s), loss(s + 1e-7)
    assert at.slope == pytest.approx((after.value - at.value) / 1e-7, abs=1e-5)
    assert at.curvature == pytest.approx((after.slope - at.slope) / 1e-7, abs=1e-5)
    assert (at.safe_curvature > 0).all()
    assert (at.value >= 0).all()


@given(st.integers(0, 10_000), st.integers(1, 8), st.booleans())
def test_non_negative_least_squares(seed: int, size: int, is_degenerate: bool) -> None:
    """As scipy's, problem by problem, however wrong the first guess; with two equal columns the same residual."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(6, 12, size)) + rng.choice([0, 2])
    if is_degenerate:
        features[:, :, -1] = features[:, :, 0]
    target = rng.normal(size=(6, 12))
    gram = features.transpose(0, 2, 1) @ features
    moment = (features.transpose(0, 2, 1) @ target[:, :, None])[:, :, 0]
    found, positive = nonnegative(gram, moment, rng.random((6, size)) < 0.5)
    assert (found >= 0).all()
    assert (found[~positive] == 0).all()
    for row in range(6):
        expected, residual = nnls(features[row], target[row])
        assert np.linalg.norm(features[row] @ found[row] - target[row]) == pytest.approx(residual, rel=1e-6, abs=1e-9)
        if not is_degenerate:
            assert found[row] == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_coefficients_for_given_exponents() -> None:
    model, exps_BQ = model_of(), np.random.default_rng(0).uniform(0.1, 2, (5, 7))
    for found, features in zip(coefficients(model, exps_BQ), model.features(exps_BQ), strict=True):
        expected, _ = nnls(features.T, np.ones(features.shape[1]))
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_projection_and_newton_agree() -> None:
    """Two roads to the least relative error, under other weights each, from where the weights were equal."""
    model = model_of()
    best = solve(model, Relative(), starts=8, seed=0)
    weights = np.random.default_rng(0).integers(0, 3, (20, model.offset_JP.shape[1])).astype(np.float64)
    start = Solutions(np.tile(best.coefs_J, (20, 1)), np.tile(best.exps_Q, (20, 1)), np.zeros(20))
    projected, refined = project(model, weights, start.exps_BQ), refine(model, Relative(), weights, start)
    assert projected.objective_B == pytest.approx(refined.objective_B, rel=1e-9)
    assert projected.exps_BQ == pytest.approx(refined.exps_BQ, rel=1e-3, abs=1e-3)


def test_two_roads_to_the_least_huber_loss() -> None:
    """From afar by L-BFGS and then Newton, and by Newton alone from the least relative error."""
    model, huber = model_of(), Huber(1e-3)
    equal = np.ones((4, model.offset_JP.shape[1]))
    start = Solutions(np.full((4, 8), 0.1), np.linspace(0.4, 1.2, 28).reshape(4, 7), np.full(4, np.inf))
    far = descend(model, huber, start)
    from_afar = refine(model, huber, equal, far)
    best = solve(model, Relative(), starts=8, seed=0)
    near = refine(model, huber, equal[:1], Solutions(best.coefs_J[None], best.exps_Q[None], np.full(1, np.inf)))
    assert from_afar.objective_B == pytest.approx(near.objective_B[0], rel=1e-9)
    assert from_afar.exps_BQ == pytest.approx(np.tile(near.exps_BQ, (4, 1)), rel=1e-5)
    # The descent has gone most of the way.
    begun = derivatives(model, huber, equal, np.concatenate([start.coefs_BJ, start.exps_BQ], axis=1)).objective_B
    assert (far.objective_B - near.objective_B < 0.05 * (begun - near.objective_B)).all()


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    model = model_of()
    weights = np.random.default_rng(0).integers(0, 3, (6, model.offset_JP.shape[1])).astype(np.float64)
    starts = np.random.default_rng(1).uniform(0.3, 1.5, (6, 7))
    together = project(model, weights, starts)
    for row in range(6):
        alone = project(model, weights[row : row + 1], starts[row : row + 1])
        assert alone.objective_B[0] == pytest.approx(together.objective_B[row], rel=1e-9)


def test_convergence_says_what_is_mixed() -> None:
    """Two features that hardly differ cannot be told apart, and are named."""
    logs_JQP = np.zeros((3, 2, 50))
    logs_JQP[0, 0] = np.linspace(-1, 1, 50)
    logs_JQP[1, 1] = logs_JQP[0, 0] + 1e-4 * np.sin(9 * logs_JQP[0, 0])
    target = np.log(np.exp(0.7 * logs_JQP[0, 0]) + np.exp(0.75 * logs_JQP[1, 1]) + 0.5)
    convergence = solve(PowerSum(logs_JQP, np.tile(-target, (3, 1))), Relative(), starts=4, seed=0).convergence
    assert convergence.condition > 1e4
    assert set(convergence.mixed) <= {0, 1, 3, 4}
