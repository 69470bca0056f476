from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovit.errors import ConfigError
from tests.golden_models import GOLDEN
from train.probes import (
    Features,
    Ridge,
    Targets,
    accuracy,
    fewshot_indices,
    linear_probe,
    nearest_neighbours,
    usable_shots,
)


def clusters(per_class: int, seed: int, classes: int = 3, dim: int = 8) -> tuple[Features, Targets]:
    """Points around as many centres as there are classes."""
    rng = np.random.default_rng(seed)
    centres = 4 * np.eye(classes, dim)
    targets = np.repeat(np.arange(classes), per_class)
    return (centres[targets] + rng.normal(size=(len(targets), dim)) * 0.5).astype(np.float32), targets


def test_the_ridge_is_big_visions() -> None:
    """Both of its closed forms: more points than dimensions, and fewer."""
    with np.load(GOLDEN / "big_vision" / "fewshot_ridge.npz") as golden:
        classes = int(golden["y_train"].max()) + 1
        for count, name in ((60, "acc"), (10, "acc_first10")):
            ridge = Ridge.fit(golden["x_train"][:count], golden["y_train"][:count], classes)
            found = [(ridge.predict(golden["x_test"], l2) == golden["y_test"]).mean() for l2 in golden["l2"]]
            np.testing.assert_allclose(found, golden[name], atol=1e-6)


@given(st.integers(1, 40), st.integers(1, 12), st.floats(0.1, 1e4))
def test_the_ridge_is_the_least_squares_solution(count: int, dim: int, l2: float) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(count, dim)), rng.integers(0, 3, count)
    ridge = Ridge.fit(x.astype(np.float32), y, 3)
    whitened = (x.astype(np.float32) - ridge.mean_1D) / ridge.std_1D
    whitened = np.pad(whitened, ((0, 0), (0, 1)), constant_values=100.0)
    wanted = np.linalg.solve(whitened.T @ whitened + l2 * np.eye(dim + 1), whitened.T @ (2.0 * np.eye(3)[y] - 1.0))
    found = (ridge.left_DR / (ridge.eigenvalues_R + l2)) @ ridge.right_RL
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)


def test_shots_are_drawn_from_every_class_and_grow_without_changing() -> None:
    targets = np.array([2, 0, 1, 2, 0, 1, 2, 0, 1, 2])
    usable = np.ones(10, np.bool_)
    few, many = (fewshot_indices(targets, usable, 3, shots, seed=1) for shots in (1, 3))
    assert np.bincount(targets[few]).tolist() == [1, 1, 1]
    assert np.bincount(targets[many]).tolist() == [3, 3, 3]
    assert set(few) < set(many)
    assert not np.array_equal(few, fewshot_indices(targets, usable, 3, 1, seed=2))
    # An image that cannot be used is replaced by the next of its class, and nothing else changes.
    usable[few[0]] = False
    other = fewshot_indices(targets, usable, 3, 1, seed=1)
    assert other[0] == many[1]
    assert np.array_equal(other[1:], few[1:])


def test_shots_that_a_class_cannot_fill_are_left_out() -> None:
    targets = np.repeat([0, 1], [7, 30])
    assert usable_shots(targets, ["cat", "dog"]) == [1, 5]
    with pytest.raises(ConfigError, match="the class dog has no training image"):
        usable_shots(np.zeros(9, np.int64), ["cat", "dog"])


def test_every_probe_tells_clusters_apart_and_noise_not() -> None:
    (train_x, train_y), (test_x, test_y) = clusters(30, 0), clusters(20, 1)
    assert (Ridge.fit(train_x, train_y, 3).predict(test_x) == test_y).mean() == 1.0
    assert accuracy(nearest_neighbours(train_x, train_y, test_x, 3), test_y, 1) == 1.0
    fitted = linear_probe(train_x, train_y, test_x, 3)
    assert fitted.converged
    assert accuracy(fitted.scores_NL, test_y, 1) == 1.0
    noise = np.random.default_rng(2).normal(size=(300, 8)).astype(np.float32)
    targets = np.random.default_rng(3).integers(0, 3, 300)
    assert accuracy(nearest_neighbours(noise[:200], targets[:200], noise[200:], 3), targets[200:], 1) < 0.55


def test_neighbours_vote_with_their_cosine() -> None:
    train = np.array([[1, 0], [0.9, 0.1], [0, 1]], np.float32)
    votes = nearest_neighbours(train, np.array([0, 0, 1]), np.array([[2, 0]], np.float32), 3)
    cosine = 0.9 / np.hypot(0.9, 0.1)
    np.testing.assert_allclose(votes[0], [np.exp(1 / 0.07) + np.exp(cosine / 0.07), 1, 0], rtol=1e-5)


def test_a_linear_probe_with_a_class_missing_in_training() -> None:
    train_x, train_y = clusters(20, 0, classes=2)
    fitted = linear_probe(train_x, train_y, train_x, 3)
    assert np.isneginf(fitted.scores_NL[:, 2]).all()
    assert accuracy(fitted.scores_NL, train_y, 1) == 1.0
    with pytest.raises(ConfigError, match="at least two classes"):
        linear_probe(train_x, np.zeros(len(train_x), np.int64), train_x, 3)


def test_accuracy_within_k() -> None:
    scores = np.array([[3.0, 2, 1], [1, 2, 3]])
    assert [accuracy(scores, np.array([1, 1]), k) for k in (1, 2, 3)] == [0.0, 1.0, 1.0]
