"""Accuracy on labelled images of a checkpoint, an artifact or a service."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import numpy as np

from sovit.decode import ImageSource
from sovit.errors import ConfigError, DeadlineExceeded, InvalidImage, TooLarge, UnsupportedImage
from sovit.labels import imagenet_1k
from sovit.predict import Classification
from sovit.progress import progress
from train.data.dataset import Dataset

TOP_K: Final = 5
BATCH: Final = 8  # also of a request to a service: more photographs may be over its limits
# What splitting a batch can help against.
_ABOUT_IMAGES: Final = (InvalidImage, UnsupportedImage, TooLarge, DeadlineExceeded)
Classify = Callable[[Sequence[ImageSource], int], list[Classification]]
T = TypeVar("T")


@dataclass(frozen=True)
class ClassResult:
    """Images of one class of the data, and how many had it first and among the first five."""

    name: str
    images: int
    top1: int
    top5: int


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found. `failed` are images that could not be decoded, with the reason; nothing counts them.

    `agreement` is the part of the images that another model puts into the same class.
    """

    data: str
    images: int
    top1: float
    top5: float
    images_per_second: float
    per_class: tuple[ClassResult, ...]
    failed: tuple[tuple[str, str], ...] = ()
    agreement: float | None = None


def evaluate_classifier(
    classify: Classify, labels: Sequence[str], dataset: Dataset, against: Classify | None = None
) -> Evaluation:
    """Top-1 and top-5 accuracy of anything with `Predictor.classify`'s form, and its agreement with another.

    Classes are matched to labels by name, ImageNet's also by WordNet id; classes the model lacks are a `ConfigError`
    that lists them. Shows progress.
    """
    if not labels:
        raise ConfigError("this model has no classification head; evaluate its embeddings with --probe.")
    wanted = match_labels(dataset.classes, labels, dataset.name)
    started = time.perf_counter()
    results, failed = run_in_batches("evaluating", lambda images: classify(images, TOP_K), dataset)
    seconds = time.perf_counter() - started
    if len(labels) > 1 and results and all(len({p.score for p in f.predictions}) == 1 for f in results.values()):
        raise ConfigError("the model gives all classes the same score for every image: its head was never trained.")
    ranked = {index: [prediction.label for prediction in found.predictions] for index, found in results.items()}
    found = evaluation_of(dataset, wanted, ranked, failed, seconds)
    if against is None:
        return found
    others, _ = run_in_batches("comparing", lambda images: against(images, 1), dataset, list(ranked))
    same = [ranked[index][0] == other.predictions[0].label for index, other in others.items()]
    return replace(found, agreement=float(np.mean(same)) if same else None)


def evaluation_of(
    dataset: Dataset,
    wanted: Sequence[str],
    ranked: Mapping[int, Sequence[str]],
    failed: Mapping[int, str],
    seconds: float,
) -> Evaluation:
    """What the best labels of each image, by its index and the best first, come to. `wanted` has each class's label."""
    if not ranked:
        raise nothing_decoded(dataset, failed)
    targets = dataset.targets[np.array(list(ranked))]
    pairs = list(zip(ranked.values(), targets, strict=True))
    first = np.array([names[:1] == [wanted[target]] for names, target in pairs])
    within = np.array([wanted[target] in names for names, target in pairs])
    return Evaluation(
        data=dataset.name,
        images=len(ranked),
        top1=float(first.mean()),
        top5=float(within.mean()),
        images_per_second=len(ranked) / seconds,
        per_class=tuple(
            ClassResult(name, int(chosen.sum()), int(first[chosen].sum()), int(within[chosen].sum()))
            for index, name in enumerate(dataset.classes)
            for chosen in [targets == index]
        ),
        failed=by_name(dataset, failed),
    )


def nothing_decoded(dataset: Dataset, failed: Mapping[int, str]) -> ConfigError:
    """The error for a data set of which no image could be used."""
    name, reason = by_name(dataset, failed)[0]
    return ConfigError(f"none of the {len(failed)} images could be decoded; the first, {name}: {reason}")


def match_labels(
    classes: Sequence[str], labels: Iterable[str], data: str, owner: str = "the model does not know"
) -> list[str]:
    """The model's label of each class of a data set. Raises `ConfigError` that lists the classes without one."""
    known = set(labels)
    by_id = imagenet_1k()
    found = [name if name in known else by_id.get(name, "") for name in classes]
    missing = [name for name, label in zip(classes, found, strict=True) if label not in known]
    if missing:
        raise ConfigError(f"{data} has classes {owner}: {', '.join(missing)}.")
    return found


def run_in_batches(
    what: str,
    run: Callable[[Sequence[ImageSource]], Sequence[T]],
    dataset: Dataset,
    indices: Sequence[int] | None = None,
) -> tuple[dict[int, T], dict[int, str]]:
    """Results by index, and the reasons of the images that could not be used: the others go on without them."""
    results: dict[int, T] = {}
    failed: dict[int, str] = {}
    wanted = range(len(dataset)) if indices is None else indices
    with progress(what, len(wanted)) as advance:
        for start in range(0, len(wanted), BATCH):
            batch = wanted[start : start + BATCH]
            try:
                results |= zip(batch, run([dataset.images[index] for index in batch]), strict=True)
            except _ABOUT_IMAGES:
                for index in batch:
                    try:
                        results[index] = run([dataset.images[index]])[0]
                    except (InvalidImage, UnsupportedImage, TooLarge) as error:
                        failed[index] = str(error)
            advance(len(batch))
    return results, failed


def by_name(dataset: Dataset, failed: Mapping[int, str]) -> tuple[tuple[str, str], ...]:
    """(name, reason) of images by index."""
    return tuple((dataset.image_name(index), reason) for index, reason in failed.items())


def not_decoded(failed: Sequence[tuple[str, str]]) -> str:
    """The end of a sentence about results that some images have no part in; "" where all have."""
    return f"; {len(failed)} more could not be decoded and are not counted" if failed else ""
