"""Tables of images: which columns hold the images and the labels, and what classes the labels are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from sovit.errors import ConfigError

_USUAL: Final[dict[Literal["image", "label"], tuple[str, ...]]] = {
    "image": ("image", "img", "jpg", "png", "picture"),
    "label": ("label", "labels", "fine_label", "cls", "target", "class"),
}


def choose_column(
    what: Literal["image", "label"],
    fitting: Sequence[str],
    columns: Sequence[str],
    where: str,
    likely: Sequence[str] = (),
) -> str:
    """The column with a usual name among those whose type fits, else the only `likely` one, else the only fitting one.

    Raises `ConfigError` that lists all columns.
    """
    for name in _USUAL[what]:
        if name in fitting:
            return name
    for only in (likely, fitting):
        if len(only) == 1:
            return only[0]
    many = f"more than one {what} column" if fitting else f"no {what} column"
    raise ConfigError(f"{where} has {many} among {', '.join(columns)}; call it one of {', '.join(_USUAL[what])}.")


def index_labels(
    labels: NDArray[np.int64] | Sequence[str], names: Sequence[str] | None, row: Callable[[int], str]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Targets int64 [N] and the classes' names.

    `names` are those of integer labels, or the names that text labels may be. Without them the classes are the labels
    that occur, sorted. Raises `ConfigError` for a label that is none of the classes; `row(index)` says where it is.
    """
    if isinstance(labels, np.ndarray):
        if names is None:
            distinct, targets = np.unique(labels, return_inverse=True)
            return targets.astype(np.int64), tuple(str(label) for label in distinct.tolist())
        outside = np.flatnonzero((labels < 0) | (labels >= len(names)))
        if len(outside):
            raise ConfigError(
                f"{row(int(outside[0]))} has label {labels[outside[0]]}, which is none of the {len(names)} classes; "
                "a split without labels is no use here."
            )
        return labels.astype(np.int64), tuple(names)
    classes = tuple(names) if names is not None else tuple(sorted(set(labels)))
    number = {name: index for index, name in enumerate(classes)}
    for index, label in enumerate(labels):
        if label not in number:
            raise ConfigError(f"{row(index)} has label {label!r}, which is none of the {len(classes)} classes.")
    return np.fromiter((number[label] for label in labels), np.int64, len(labels)), classes
