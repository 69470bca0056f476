"""Images into requests: in order, each once, within bounds, and only as far ahead as they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeVar

from sovit.client.failures import Failure
from sovit.client.images import Content

T = TypeVar("T")
Batch = list[Content]

MAX_BYTES: Final = 8_000_000  # of the images of a request


def batches(contents: Iterable[Content], most_images: int, most_bytes: int = MAX_BYTES) -> Iterator[Batch]:
    """Lists of at most so many images and bytes. An image that has more bytes alone is alone.

    What is no image has its place like any other, so that results keep the order.
    """
    batch: Batch = []
    size = 0
    for content in contents:
        length = 0 if isinstance(content, Failure) else len(content)
        if batch and size + length > most_bytes:
            yield batch
            batch, size = [], 0
        batch.append(content)
        size += length
        if len(batch) == most_images:  # now, not when the next image is there
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def to_send(batch: Batch) -> list[bytes]:
    """The images of a batch that can be sent."""
    return [content for content in batch if not isinstance(content, Failure)]


def in_place(batch: Batch, outcomes: Sequence[T | Failure]) -> list[T | Failure]:
    """What has become of all images of a batch, given the outcomes of those that were sent."""
    found = iter(outcomes)
    return [content if isinstance(content, Failure) else next(found) for content in batch]
