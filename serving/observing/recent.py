"""The last minute in memory, for the page: latencies of requests and sizes of batches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

WINDOW_SECONDS: Final = 60
_MOST: Final = 4096  # values; of a busier minute its latest part tells


class Recent:
    """Values with their time. Any thread may add and read: a deque does either at once."""

    def __init__(self) -> None:
        self._latencies: deque[tuple[float, float]] = deque(maxlen=_MOST)
        self._batches: dict[str, deque[tuple[float, int]]] = {}

    def on_reply(self, seconds: float) -> None:
        """A request with images was answered well."""
        self._latencies.append((time.monotonic(), seconds))

    def on_batch(self, model: str, images: int) -> None:
        """A lane of a model has run."""
        self._batches.setdefault(model, deque(maxlen=_MOST)).append((time.monotonic(), images))

    def requests(self) -> dict[str, Any]:
        """Requests a second, and percentiles of their latency in milliseconds; None where there were none."""
        values = list(self._latencies)
        seconds = sorted(_within_window(values))
        span = min(WINDOW_SECONDS, time.monotonic() - values[0][0]) if len(values) == _MOST else WINDOW_SECONDS
        return {
            "per_second": round(len(seconds) / span, 3),
            "latency_ms": {f"p{percent}": _percentile(seconds, percent) for percent in (50, 90, 99)}
            if seconds
            else None,
        }

    def batch_images(self, model: str) -> float | None:
        """Mean images of a run."""
        sizes = _within_window(list(self._batches.get(model, ())))
        return round(sum(sizes) / len(sizes), 2) if sizes else None


def _within_window(values: Sequence[tuple[float, Any]]) -> list[Any]:
    oldest = time.monotonic() - WINDOW_SECONDS
    return [value for when, value in values if when >= oldest]


def _percentile(ordered: Sequence[float], percent: int) -> float:
    """In milliseconds, by nearest rank."""
    rank = -(-len(ordered) * percent // 100)
    return round(1000 * ordered[max(rank, 1) - 1], 3)
