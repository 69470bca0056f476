"""A hostile corpus: request bodies, each with the one status the service must answer it with.

    for case in corpus(max_body_bytes=4 * 2**20, max_images=8):
        send(case.route, case.query, case.content_type, case.headers, case.body)

The same bytes for the same versions of numpy and Pillow, made in seconds and without a network.
"""

from __future__ import annotations

from tests.hostile import formats, jpeg, options, png, requests
from tests.hostile.case import Case

__all__ = ["Case", "corpus"]


def corpus(*, max_body_bytes: int, max_images: int) -> list[Case]:
    """Every case, for a service with these limits.

    Raises `ValueError` when the body limit is too small for a case that is to fail for another reason, or to pass.
    """
    images = [*jpeg.cases(), *png.cases(), *formats.cases()]
    found = [*images, *options.cases(), *requests.cases(max_body_bytes, max_images)]
    largest = max((case for case in found if case.status != 413), key=lambda case: len(case.body))
    if len(largest.body) > max_body_bytes:
        raise ValueError(f"max_body_bytes must be at least {len(largest.body):,}, for {largest.name}.")
    return found
