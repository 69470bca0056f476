"""Why there is no result: what the service says of a request or an image, as our own errors."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from math import ceil
from typing import Any, Final

import httpx

from sovit.client.retry import Answer, retry_after
from sovit.errors import (
    BadRequest,
    ConfigError,
    DeadlineExceeded,
    Draining,
    Forbidden,
    InvalidImage,
    NotReady,
    QueueFull,
    RateLimited,
    Refused,
    RuntimeFailure,
    ServiceError,
    SoViTError,
    TooLarge,
    Unauthorized,
    UnsupportedImage,
    UnsupportedMediaType,
)

_KINDS: Final = (
    BadRequest, ConfigError, Unauthorized, Forbidden, TooLarge, UnsupportedImage, UnsupportedMediaType, InvalidImage,
    QueueFull, RateLimited, NotReady, Draining, DeadlineExceeded,
)  # fmt: skip
_BY_TITLE: Final[dict[tuple[int, str], type[SoViTError]]] = {
    (kind.status, kind.title): kind for kind in (*_KINDS, RuntimeFailure)
}
# The first of a status is what it means where the title is none of ours.
_BY_STATUS: Final[dict[int, type[SoViTError]]] = {kind.status: kind for kind in reversed(_KINDS)}
# What a proxy before the service may say in its place.
_OF_PROXIES: Final = frozenset({401, 403, 413, 429, 503, 504})
_LONGEST: Final = 300  # characters of what a stranger says
# A request that failed in the model or took too long: the next one may be better.
_OF_THE_IMAGES: Final = frozenset({HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.GATEWAY_TIMEOUT})


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An error to be: `detail` is a sentence without its full stop, `source` says who answered, and what status.

    One that is `of_the_images` says nothing about other requests: with other images they may well succeed.
    """

    kind: type[SoViTError]
    detail: str
    source: str = ""
    status: int = 0
    request_id: str = ""
    retry_after: float | None = None
    of_the_images: bool = False

    def error(self, index: int | None = None) -> SoViTError:
        """The error, of the image with this index where there is one."""
        image = "" if index is None else f"image {index}"
        return self._made(": ".join(filter(None, (self.source, image, self.detail))))

    def own_error(self) -> SoViTError:
        """The error of an image whose name stands beside it."""
        return self._made(self.detail)

    def _made(self, sentence: str) -> SoViTError:
        text = f"{sentence} (request {self.request_id})." if self.request_id else f"{sentence}."
        if issubclass(self.kind, Refused) and self.retry_after is not None:
            return self.kind(text, ceil(self.retry_after))
        return self.kind(text)


def failure_of(url: str, answer: Answer, why: str, timeout_seconds: float) -> Failure:
    """The failure of a request that is not sent again; `why` not, where there is something to say about that."""
    if isinstance(answer, httpx.Response):
        return _of_response(url, answer, why)
    said = _clipped(str(answer) or type(answer).__name__).rstrip(".")
    kind: type[SoViTError] = ServiceError
    if isinstance(answer, (httpx.ConnectError, httpx.ConnectTimeout)):
        detail = f"{url} cannot be reached: {said}"
    elif isinstance(answer, httpx.TimeoutException):
        kind, detail = DeadlineExceeded, f"{url} did not answer within {timeout_seconds:g} s"
    else:
        detail = f"{url} gave no whole answer: {said}"
    return Failure(kind=kind, detail=_with(detail, why))


def not_ours(url: str, response: httpx.Response, what: str) -> Failure:
    """The failure of a reply with the status of a good one and not its form."""
    return Failure(
        kind=ServiceError,
        detail=f"the answer is not in a form that is sovit's: {what}",
        source=f"{url} answered {response.status_code}",
        status=response.status_code,
        request_id=_request_id(response),
    )


def item_failure(url: str, response: httpx.Response, error: Any) -> Failure:
    """The failure of one image among others. Raises `ValueError` where the item has no form of ours."""
    match error:
        case {"status": int(status), "title": str(title), "detail": str(detail)}:
            return Failure(
                kind=_BY_TITLE.get((status, title)) or _BY_STATUS.get(status, ServiceError),
                detail=_clipped(detail).rstrip("."),
                source=f"{url} answered {status}",
                status=status,
                request_id=_request_id(response),
            )
    raise ValueError("an image's error without status, title and detail")


def _of_response(url: str, response: httpx.Response, why: str) -> Failure:
    status = response.status_code
    of_the_images = False
    match _json(response):
        case {"title": str(title), "detail": str(detail)}:
            of_the_images = status in _OF_THE_IMAGES
            kind = _BY_TITLE.get((status, title)) or _BY_STATUS.get(status, ServiceError)
            detail = _clipped(detail).rstrip(".")
        case _:
            kind = ServiceError
            detail = f"the answer is not sovit's, it is {media_type(response)}"
            if status in _OF_PROXIES:
                kind = _BY_STATUS[status]
                detail = f"{kind.title.lower()} ({detail})"
            elif response.has_redirect_location:
                detail = f"it redirects to {_clipped(response.headers['location'])}, which may be the URL to use"
    return Failure(
        kind=kind,
        detail=_with(detail, why),
        source=f"{url} answered {status}",
        status=status,
        request_id=_request_id(response),
        retry_after=retry_after(response),
        of_the_images=of_the_images,
    )


def media_type(response: httpx.Response) -> str:
    """What a reply says that it is."""
    return _clipped(response.headers.get("content-type", "")).partition(";")[0] or "of no content type"


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def _request_id(response: httpx.Response) -> str:
    return _clipped(response.headers.get("x-request-id", ""))


def _with(detail: str, why: str) -> str:
    return f"{detail}; {why}" if why else detail


def _clipped(text: str) -> str:
    """Words of a stranger, short and on one line."""
    return "".join(character if character.isprintable() else "?" for character in text[:_LONGEST])
