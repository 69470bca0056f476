"""Probes: how good are the embeddings, without training the model?

    sovit evaluate CHECKPOINT|ARTIFACT|URL --data DIR --probe fewshot|knn|linear

Each fits on DIR/train and scores DIR/test (or val). All work on numpy arrays: features [N, D] and class indices [N].
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sovit.errors import ConfigError, MissingDependency

Features = NDArray[np.float32]
Targets = NDArray[np.int64]

SHOTS: Final = (1, 5, 10, 25)
SEEDS: Final = (0, 1, 2)
L2: Final = 2.0**10
NEIGHBOURS: Final = 20
TEMPERATURE: Final = 0.07
_BIAS: Final = 100.0  # so large a constant feature is hardly regularised
_STRENGTHS: Final = tuple(10.0**exponent for exponent in range(-5, 3))


@dataclass(frozen=True)
class Ridge:
    """Least squares towards -1 and +1 with an L2 penalty, in closed form for any penalty.

    big_vision's few-shot evaluator (evaluators/fewshot_lsr.py): features are whitened by the training set's mean and
    standard deviation, and one eigendecomposition, of the smaller of the two Gram matrices, serves all penalties.
    """

    mean_1D: NDArray[np.float64]
    std_1D: NDArray[np.float64]
    eigenvalues_R: NDArray[np.float64]
    left_DR: NDArray[np.float64]
    right_RL: NDArray[np.float64]

    @classmethod
    def fit(cls, features_ND: Features, targets_N: Targets, classes: int) -> Ridge:
        """Decompose a training set."""
        x_ND = features_ND.astype(np.float64)
        mean_1D = x_ND.mean(axis=0, keepdims=True)
        std_1D = x_ND.std(axis=0, keepdims=True) + 1e-5
        x_ND = _with_bias((x_ND - mean_1D) / std_1D)
        y_NL = 2.0 * np.eye(classes)[targets_N] - 1.0
        count, dim = x_ND.shape
        if count >= dim:  # (X'X + l2)^-1 X'Y
            eigenvalues, vectors = np.linalg.eigh(x_ND.T @ x_ND)
            return cls(mean_1D, std_1D, eigenvalues, vectors, vectors.T @ (x_ND.T @ y_NL))
        eigenvalues, vectors = np.linalg.eigh(x_ND @ x_ND.T)  # X' (XX' + l2)^-1 Y
        return cls(mean_1D, std_1D, eigenvalues, x_ND.T @ vectors, vectors.T @ y_NL)

    def predict(self, features_ND: Features, l2: float = L2) -> Targets:
        """The class of each row."""
        x_ND = _with_bias((features_ND - self.mean_1D) / self.std_1D)
        weights_DL = (self.left_DR / (self.eigenvalues_R + l2)) @ self.right_RL
        best_N: Targets = np.argmax(x_ND @ weights_DL, axis=1)
        return best_N


def fewshot_indices(
    targets_N: Targets, usable_N: NDArray[np.bool_], classes: int, shots: int, seed: int
) -> NDArray[np.int64]:
    """`shots` usable training images of each class: the first of a permutation per class, as in big_vision."""
    rng = np.random.default_rng(seed)
    permuted = [rng.permutation(np.flatnonzero(targets_N == label)) for label in range(classes)]
    return np.concatenate([indices[usable_N[indices]][:shots] for indices in permuted])


def usable_shots(targets_N: Targets, names: Sequence[str], shots: Sequence[int] = SHOTS) -> list[int]:
    """Those of the shots for which every class has images enough. Raises `ConfigError` when there are none."""
    counts = np.bincount(targets_N, minlength=len(names))
    usable = [count for count in shots if count <= counts.min()]
    if not usable:
        raise ConfigError(f"the class {names[int(counts.argmin())]} has no training image that could be decoded.")
    return usable


def nearest_neighbours(train_ND: Features, train_N: Targets, test_ND: Features, classes: int) -> NDArray[np.float64]:
    """Votes [N, L] of the 20 nearest by cosine, each with the weight exp(cosine / 0.07) (Wu et al. 2018, DINO)."""
    train_ND, test_ND = _unit(train_ND), _unit(test_ND)
    count = min(NEIGHBOURS, len(train_ND))
    votes_NL = np.zeros((len(test_ND), classes))
    for start in range(0, len(test_ND), 1024):
        cosine_NM = test_ND[start : start + 1024] @ train_ND.T
        nearest_NK = np.argpartition(-cosine_NM, count - 1, axis=1)[:, :count]
        weights_NK = np.exp(np.take_along_axis(cosine_NM, nearest_NK, axis=1) / TEMPERATURE)
        for column in range(count):
            rows = np.arange(start, start + len(cosine_NM))
            votes_NL[rows, train_N[nearest_NK[:, column]]] += weights_NK[:, column]
    return votes_NL


@dataclass(frozen=True)
class LinearProbe:
    """Class scores of a linear probe, with how it was fitted."""

    scores_NL: NDArray[np.float64]
    strength: float
    converged: bool


def linear_probe(
    train_ND: Features, train_N: Targets, test_ND: Features, classes: int, *, seed: int = 0, iterations: int = 1000
) -> LinearProbe:
    """Multinomial logistic regression by L-BFGS (scikit-learn) on whitened features.

    The strength of the penalty (scikit-learn's C) is the one of 1e-5 to 100 that does best on a tenth of the training
    images, held out for this; the fit then takes all of them.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingDependency("the linear probe needs scikit-learn: pip install 'sovit[train]'.") from error
    if len(np.unique(train_N)) < 2:
        raise ConfigError("a linear probe needs training images of at least two classes.")
    mean, std = train_ND.mean(axis=0), train_ND.std(axis=0) + 1e-5
    train_ND, test_ND = (train_ND - mean) / std, (test_ND - mean) / std

    def fit(x_ND: Features, y_N: Targets, strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=iterations).fit(x_ND, y_N)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told in the result instead
        held_N = _held_out(train_N, seed)
        strength = (
            max(
                _STRENGTHS,
                key=lambda value: fit(train_ND[~held_N], train_N[~held_N], value).score(
                    train_ND[held_N], train_N[held_N]
                ),
            )
            if held_N.any()
            else 1.0
        )
        model = fit(train_ND, train_N, strength)
    scores_NL = np.full((len(test_ND), classes), -np.inf)
    scores_NL[:, model.classes_] = model.predict_log_proba(test_ND)
    return LinearProbe(scores_NL, strength, bool(model.n_iter_.max() < iterations))


def accuracy(scores_NL: NDArray[np.float64], targets_N: Targets, k: int) -> float:
    """Part of the rows whose target is among the k best classes."""
    best_NK = np.argsort(-scores_NL, axis=1, kind="stable")[:, :k]
    return float((best_NK == targets_N[:, None]).any(axis=1).mean())


def _held_out(targets_N: Targets, seed: int) -> NDArray[np.bool_]:
    """A tenth of each class that can spare an image."""
    rng = np.random.default_rng(seed)
    held_N = np.zeros(len(targets_N), np.bool_)
    for label in np.unique(targets_N):
        members = rng.permutation(np.flatnonzero(targets_N == label))
        held_N[members[: len(members) // 10 or (len(members) > 1)]] = True
    return held_N


def _with_bias(x_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.pad(x_ND, ((0, 0), (0, 1)), constant_values=_BIAS)


def _unit(x_ND: Features) -> Features:
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), np.finfo(np.float32).tiny)  # type: ignore[no-any-return]
