from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sovit.errors import ConfigError
from sovit.predict import Predictor, to_classifications, to_embeddings, to_scores
from sovit.runtime.fake import FakeRuntime
from tests.conftest import jpeg, tiny_spec

finite = st.floats(-200, 200, width=32)


@given(arrays(np.float32, (3, 4), elements=finite))
def test_softmax_sums_to_one_and_sigmoid_stays_in_range(
    logits: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> None:
    with np.errstate(over="raise", invalid="raise"):
        softmax, sigmoid = to_scores(logits, "softmax"), to_scores(logits, "sigmoid")
    np.testing.assert_allclose(softmax.sum(axis=1), 1, rtol=1e-5)
    assert ((sigmoid >= 0) & (sigmoid <= 1)).all()
    np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-logits.astype(np.float64))), atol=1e-6)


@given(arrays(np.float32, (2, 5), elements=finite), st.integers(1, 9))
def test_predictions_are_the_best_in_order(
    logits: np.ndarray[tuple[int, ...], np.dtype[np.float32]], top_k: int
) -> None:
    for row, found in zip(logits, to_classifications(logits, "abcde", "softmax", top_k), strict=True):
        indices = [prediction.index for prediction in found.predictions]
        assert len(indices) == min(top_k, 5)
        assert indices == sorted(range(5), key=lambda index: (-row[index], index))[:top_k]
        assert [prediction.label for prediction in found.predictions] == ["abcde"[index] for index in indices]


def test_a_zero_vector_stays_zero() -> None:
    assert to_embeddings(np.zeros((1, 4), np.float32), normalize=True).tolist() == [[0, 0, 0, 0]]


def predictor(**changes: object) -> Predictor:
    spec = tiny_spec(**changes)
    return Predictor(FakeRuntime(spec.model), spec, batch_size=4)


@given(st.integers(0, 11))
def test_any_number_of_images_keeps_its_order(count: int) -> None:
    model = predictor()
    images = [np.full((5, 5, 3), 20 * index, np.uint8) for index in range(count)]
    embeddings = model.embed(images, normalize=False)
    assert embeddings.shape == (count, 32)
    np.testing.assert_allclose(embeddings[:, 0], np.arange(count) * 20 / 255, rtol=1e-5)
    assert len(model.classify(images)) == count


def test_a_model_without_a_head_only_embeds() -> None:
    model = predictor(num_classes=0)
    assert model.embed([jpeg()]).shape == (1, 32)
    with pytest.raises(ConfigError, match="no classification head"):
        model.classify([jpeg()])


def test_wrong_calls_are_told() -> None:
    with pytest.raises(ConfigError, match="top_k is 0"):
        predictor().classify([jpeg()], top_k=0)
    with pytest.raises(ConfigError, match="pass a list"):
        predictor().classify(jpeg())  # type: ignore[arg-type]
