"""The order of training samples: a shuffle that is computed."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sovit.errors import ConfigError
from train.data.order import Permutation, sample_at

KEYS = st.integers(0, 2**64 - 1)


def whole(size: int, key: int) -> list[int]:
    found: list[int] = Permutation(size, key)(np.arange(size)).tolist()
    return found


def chi_square(counts: np.ndarray, expected: float) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 5000), KEYS)
def test_it_is_a_bijection(size: int, key: int) -> None:
    assert sorted(whole(size, key)) == list(range(size))


@given(st.integers(2, 2**62), KEYS, st.data())
def test_large_sizes_stay_in_range_and_apart(size: int, key: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, size - 1), min_size=2, max_size=40, unique=True))
    found = Permutation(size, key)(np.array(positions))
    assert found.dtype == np.int64
    assert found.min() >= 0
    assert found.max() < size
    assert len(set(found.tolist())) == len(positions)


@given(st.integers(50, 3000), KEYS, st.integers(1, 2**64 - 1))
def test_another_key_gives_another_order(size: int, key: int, other: int) -> None:
    assert whole(size, key) == whole(size, key)
    assert whole(size, key) != whole(size, key ^ other)


@given(st.integers(1, 300), st.lists(st.integers(0, 10_000), max_size=30), st.integers(0, 2**31))
def test_each_position_is_its_own_affair(size: int, positions: list[int], seed: int) -> None:
    """However the stream is cut into batches, and in whatever shape it is asked for."""
    epochs, indices = sample_at(np.array(positions, np.int64), size, seed)
    assert epochs.tolist() == [position // size for position in positions]
    for position, index in zip(positions, indices.tolist(), strict=True):
        assert sample_at(np.array([[position]]), size, seed)[1].tolist() == [[index]]


def test_every_epoch_sees_every_image_once_in_an_order_of_its_own() -> None:
    size = 101
    epochs, indices = sample_at(np.arange(4 * size), size, 7)
    orders = indices.reshape(4, size)
    assert epochs.reshape(4, size)[:, 0].tolist() == [0, 1, 2, 3]
    assert all(sorted(order) == list(range(size)) for order in orders.tolist())
    assert len({tuple(order) for order in orders.tolist()}) == 4
    assert sample_at(np.arange(size), size, 8)[1].tolist() != orders[0].tolist()


@pytest.mark.parametrize("position", [0, 1, 9])
def test_where_a_position_goes_is_uniform_over_keys(position: int) -> None:
    size, keys = 10, 4000
    found = [int(Permutation(size, key)(np.array([position]))[0]) for key in range(keys)]
    assert chi_square(np.bincount(found, minlength=size), keys / size) < 33.7  # 9 degrees of freedom, p = 1e-4


def test_pairs_of_positions_are_uniform_over_keys() -> None:
    size, keys = 5, 4000
    pairs = np.array([Permutation(size, key)(np.arange(2)) for key in range(keys)])
    counts = np.bincount(pairs[:, 0] * size + pairs[:, 1], minlength=size**2).reshape(size, size)
    assert np.diag(counts).sum() == 0
    apart = counts[~np.eye(size, dtype=bool)]
    assert chi_square(apart, keys / 20) < 50.8  # 19 degrees of freedom, p = 1e-4


def test_neighbours_do_not_stay_neighbours() -> None:
    size = 100_000
    found = Permutation(size, 3)(np.arange(size))
    assert abs(np.corrcoef(np.arange(size), found)[0, 1]) < 0.02
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
    assert np.abs(np.diff(found)).mean() == pytest.approx(size / 3, rel=0.02)
    # A batch is a fair sample of all parts of the data: hypergeometric, standard deviation about 15.
    parts = np.bincount(found[:2560] // 10_000, minlength=10)
    assert np.abs(parts - 256).max() < 75


def test_the_order_never_changes_from_release_to_release() -> None:
    assert whole(10, 1) == [1, 0, 6, 9, 4, 8, 7, 5, 3, 2]
    assert sample_at(np.arange(8, 12), 10, 0)[1].tolist() == [4, 6, 8, 7]


def test_a_million_positions_take_less_than_a_second() -> None:
    permutation, positions = Permutation(1_281_167, 5), np.arange(1_000_000)
    permutation(positions[:10])
    started = time.process_time()
    permutation(positions)
    assert time.process_time() - started < 1


def test_nonsense_is_refused() -> None:
    for size in (0, -1, 2**63):
        with pytest.raises(ConfigError, match="lies outside"):
            Permutation(size, 0)
    for position in (-1, 5):
        with pytest.raises(ConfigError, match=r"outside 0\.\.4"):
            Permutation(5, 0)(np.array([position]))
    with pytest.raises(ConfigError, match="begins at position 0"):
        sample_at(np.array([-1]), 5, 0)
    assert Permutation(5, 0)(np.empty(0, np.int64)).tolist() == []
