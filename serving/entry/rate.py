"""How fast the service works: seconds for an image, over the images it finished last."""

from __future__ import annotations

from typing import Final

MEMORY: Final = 64  # images; what lies twice as far back counts e times less


class ServiceRate:
    """Time with work in the house over the images finished in it, both fading as images are finished.

    It holds for everything an image goes through, several at a time, and so says how long those in the house will take.
    """

    def __init__(self, seconds_per_image: float) -> None:
        self._images = float(MEMORY)
        self._seconds = seconds_per_image * MEMORY
        self._since = 0.0

    @property
    def seconds_per_image(self) -> float:
        """The estimate; before any image was finished, what the warm-up took."""
        return self._seconds / self._images

    def begin(self, now: float) -> None:
        """Work comes into the empty house: the time before it does not count."""
        self._since = now

    def finish(self, images: int, now: float) -> None:
        """So many images are done."""
        kept = (1 - 1 / MEMORY) ** images
        self._images = self._images * kept + images
        self._seconds = self._seconds * kept + (now - self._since)
        self._since = now
