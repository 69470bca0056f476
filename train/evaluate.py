"""Accuracy on labelled images of a checkpoint, an artifact or a service."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from sovit.errors import ConfigError
from sovit.predict import Classification
from sovit.preprocess import ImageSource
from train.data import Dataset

TOP_K: Final = 5
BATCH: Final = 32
Classify = Callable[[Sequence[ImageSource], int], list[Classification]]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found; `per_class` is (label, images, correct) for each class of the data."""

    data: str
    images: int
    top1: float
    top5: float
    images_per_second: float
    per_class: tuple[tuple[str, int, int], ...]


def evaluate_classifier(classify: Classify, labels: Sequence[str], dataset: Dataset) -> Evaluation:
    """Top-1 and top-5 accuracy of anything with `Predictor.classify`'s form.

    Labels are matched by name; a class the model lacks is a `ConfigError`. Shows a progress bar on a terminal.
    """
    missing = sorted(set(dataset.classes) - set(labels))
    if missing:
        raise ConfigError(f"{dataset.name} has classes the model does not know: {', '.join(missing)}.")
    target_names = [dataset.classes[target] for target in dataset.targets]
    ranked: list[tuple[str, ...]] = []
    started = time.perf_counter()
    console = Console(stderr=True)
    starts = range(0, len(dataset), BATCH)
    for start in track(starts, "evaluating", console=console, disable=not console.is_terminal, transient=True):
        for classification in classify(dataset.images[start : start + BATCH], TOP_K):
            ranked.append(tuple(prediction.label for prediction in classification.predictions))
    seconds = time.perf_counter() - started
    correct = np.array([labels[0] == target for labels, target in zip(ranked, target_names, strict=True)])
    within = np.array([target in labels for labels, target in zip(ranked, target_names, strict=True)])
    return Evaluation(
        data=dataset.name,
        images=len(dataset),
        top1=float(correct.mean()),
        top5=float(within.mean()),
        images_per_second=len(dataset) / seconds,
        per_class=_per_class(dataset, correct),
    )


def _per_class(dataset: Dataset, correct: NDArray[np.bool_]) -> tuple[tuple[str, int, int], ...]:
    rows = []
    for index, name in enumerate(dataset.classes):
        chosen = dataset.targets == index
        rows.append((name, int(chosen.sum()), int(correct[chosen].sum())))
    return tuple(rows)
