"""How good a model's embeddings are, by a probe that is fitted on labelled images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sovit.decode import ImageSource
from train import probes
from train.data.dataset import Dataset
from train.evaluate import TOP_K, by_name, match_labels, nothing_decoded, run_in_batches

Probe = Literal["fewshot", "knn", "linear"]
Row = NDArray[np.float32]
Subsets = dict[tuple[int, int], probes.Targets]  # training images by (shots, seed)
PROBES: Final[tuple[Probe, ...]] = ("fewshot", "knn", "linear")


Rows = tuple[dict[int, Row], dict[int, str]]  # embeddings, and the reasons of images that could not be used, by index


class Embed(Protocol):
    """`Predictor.embed`, or a client's."""

    def __call__(self, images: Sequence[ImageSource], normalize: bool = True) -> NDArray[np.float32]:
        """Embeddings [B, D]."""
        ...


class EmbedIndices(Protocol):
    """Embeds images of a data set, all or those with these indices; `what` they are is shown to those who wait."""

    def __call__(self, what: str, dataset: Dataset, indices: list[int] | None = None) -> Rows:
        """Embeddings [D] by index, and what failed."""
        ...


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found: `scores` by name (top-1 of each number of shots, or top-1 and top-5), and how it was made."""

    probe: str
    data: str
    train_images: int
    images: int
    scores: dict[str, float]
    settings: dict[str, float]
    images_per_second: float
    failed: tuple[tuple[str, str], ...] = ()


def evaluate_probe(kind: Probe, embed: Embed, train_set: Dataset, test_set: Dataset) -> ProbeResult:
    """`run_probe` with the embeddings of a predictor or a service. Shows progress."""

    def rows(what: str, dataset: Dataset, indices: list[int] | None = None) -> Rows:
        return run_in_batches(what, lambda images: list(embed(images, normalize=False)), dataset, indices)

    return run_probe(kind, rows, train_set, test_set)


def run_probe(kind: Probe, rows: EmbedIndices, train_set: Dataset, test_set: Dataset) -> ProbeResult:
    """Fit a probe on the embeddings of `train_set`, score it on those of `test_set`.

    Test classes are matched to the training classes by name. The model is run once for each image that is needed:
    few-shot needs no more training images than it samples.
    """
    classes = train_set.classes
    names = match_labels(test_set.classes, classes, test_set.name, "that have no training images")
    to_train_class = np.array([classes.index(name) for name in names])
    started = time.perf_counter()
    if kind == "fewshot":
        subsets, train, failed_train = _sample(train_set, rows)
    else:
        train, failed_train = rows("training images", train_set)
    test, failed_test = rows("test images", test_set)
    seconds = time.perf_counter() - started
    if not train:
        raise nothing_decoded(train_set, failed_train)
    if not test:
        raise nothing_decoded(test_set, failed_test)
    test_ND = np.stack(list(test.values()))
    truth_N = to_train_class[test_set.targets[np.array(list(test))]]
    if kind == "fewshot":
        scores, settings = _fewshot(train, train_set.targets, subsets, test_ND, truth_N, len(classes))
    else:
        train_ND, train_N = np.stack(list(train.values())), train_set.targets[np.array(list(train))]
        if kind == "knn":
            scores_NL = probes.nearest_neighbours(train_ND, train_N, test_ND, len(classes))
            settings = {"neighbours": min(probes.NEIGHBOURS, len(train_ND)), "temperature": probes.TEMPERATURE}
        else:
            fitted = probes.linear_probe(train_ND, train_N, test_ND, len(classes))
            scores_NL, settings = fitted.scores_NL, {"C": fitted.strength, "converged": fitted.converged}
        scores = {f"top-{k}": probes.accuracy(scores_NL, truth_N, k) for k in (1, TOP_K)}
    return ProbeResult(
        probe=kind,
        data=test_set.name,
        train_images=len(train),
        images=len(test),
        scores=scores,
        settings=settings,
        images_per_second=(len(train) + len(test)) / seconds,
        failed=by_name(train_set, failed_train) + by_name(test_set, failed_test),
    )


def _sample(train_set: Dataset, rows: EmbedIndices) -> tuple[Subsets, dict[int, Row], dict[int, str]]:
    """The few-shot subsets and the embeddings they need. For an image that fails the next of its class is taken."""
    found: dict[int, Row] = {}
    failed: dict[int, str] = {}
    usable_N = np.ones(len(train_set), np.bool_)
    while True:
        subsets = {
            (shots, seed): probes.fewshot_indices(train_set.targets, usable_N, len(train_set.classes), shots, seed)
            for shots in probes.usable_shots(train_set.targets[usable_N], train_set.classes)
            for seed in probes.SEEDS
        }
        needed = sorted(set(np.concatenate(list(subsets.values())).tolist()) - found.keys())
        more, failed_now = rows("training images", train_set, needed)
        found |= more
        failed |= failed_now
        usable_N[list(failed)] = False
        if not failed_now:
            return subsets, found, failed


def _fewshot(
    train: dict[int, Row],
    targets_N: probes.Targets,
    subsets: Subsets,
    test_ND: probes.Features,
    truth_N: probes.Targets,
    classes: int,
) -> tuple[dict[str, float], dict[str, float]]:
    """Top-1 of each number of shots, the mean over the seeds."""
    found: dict[str, list[float]] = {}
    for (shots, _), subset in subsets.items():
        ridge = probes.Ridge.fit(np.stack([train[index] for index in subset.tolist()]), targets_N[subset], classes)
        found.setdefault(f"{shots}-shot", []).append(float((ridge.predict(test_ND) == truth_N).mean()))
    return {name: float(np.mean(values)) for name, values in found.items()}, {
        "l2": probes.L2, "seeds": len(probes.SEEDS),
    }  # fmt: skip
