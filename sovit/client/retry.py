"""Whether a request is sent again, and when."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

import httpx

from sovit.errors import ConfigError

Answer = httpx.Response | httpx.RequestError

# A request only reads, so it may be sent twice. 502 is a connection error that a proxy met in our place.
_STATUSES: Final = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE)
_ERRORS: Final = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)


@dataclass(frozen=True)
class Wait:
    """Send the request again after so many seconds."""

    seconds: float


@dataclass(frozen=True)
class GiveUp:
    """Do not send the request again. `why` goes into its error, and is empty where the answer says enough."""

    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How often a request is tried, and how long is waited between.

    A service that is busy, 429 or 503, is asked up to `busy_attempts` times, and waited for as long as its Retry-After
    says, twice as long each time, as others wait too. One that asks for more than `longest_wait_seconds` ends the
    request at once. After other failures, and without a Retry-After, the waits double from `first_wait_seconds`, up to
    `attempts`. Waits vary by up to a half at random, so that those refused together do not come back together.
    """

    attempts: int = 5
    busy_attempts: int = 8
    first_wait_seconds: float = 0.25
    longest_wait_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("attempts", "busy_attempts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be at least 1.")
        for name in ("first_wait_seconds", "longest_wait_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be 0 or more.")

    def after(self, answer: Answer, attempt: int, chance: Callable[[], float] = random.random) -> Wait | GiveUp:
        """What to do after the answer to the attempt with this number (from 1). `chance` is uniform in 0..1."""
        tried = f"tried {attempt} times" if attempt > 1 else ""
        again = answer.status_code in _STATUSES if isinstance(answer, httpx.Response) else isinstance(answer, _ERRORS)
        asked = retry_after(answer) if isinstance(answer, httpx.Response) else None
        if not again or attempt >= (self.attempts if asked is None else self.busy_attempts):
            return GiveUp(tried)
        doubled = 2.0 ** min(attempt - 1, 64)
        if asked is None:
            return Wait(min(self.longest_wait_seconds, self.first_wait_seconds * doubled) * (1 - chance() / 2))
        if asked > self.longest_wait_seconds:
            longest = (
                f"it asks for a wait of {asked:,.0f} s, and the longest allowed is {self.longest_wait_seconds:g} s"
            )
            return GiveUp(", ".join(filter(None, (tried, longest))))
        return Wait(min(self.longest_wait_seconds, asked * doubled * (1 + chance() / 2)))


DEFAULT_RETRY: Final = Retry()


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that a reply asks to wait, given as such or as a date; None where it does not ask, or asks in no form."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:10])
    until = _date(text)
    if until is None:
        return None
    # By the service's own clock, where it tells the time: ours may differ.
    now = _date(response.headers.get("date", "")) or datetime.fromtimestamp(time.time(), UTC)
    return max(0.0, (until - now).total_seconds())


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
