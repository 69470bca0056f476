"""Look at a service before it is put under load: that it is there, what it serves, and that it answers an image."""

from __future__ import annotations

from http import HTTPStatus
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx

from benchmarks.load.loops import Target
from sovit.client.failures import failure_of, not_ours
from sovit.client.models import ModelInfo, chosen, read_models
from sovit.client.settings import Settings
from sovit.errors import ConfigError


def look(target: Target, image: bytes) -> ModelInfo | None:
    """What /models says of the model that will answer; None for a server without /models that answers all the same.

    Raises `ConfigError` for a URL that is none or not http://, and the error, in one sentence, of a service that cannot
    be reached, is not ready, or does not answer the image with 200.
    """
    if urlsplit(target.url).scheme.lower() == "https":
        raise ConfigError("the load generator speaks http:// only: give the http:// URL of the service itself.")
    settings = Settings(
        url=target.url, api_key=target.api_key, model=target.model, timeout_seconds=target.timeout_seconds
    )
    with httpx.Client(**settings.http_options()) as client:
        answer = _ask(client, settings, "GET", "/models")
        served: ModelInfo | None = None
        if answer.status_code != HTTPStatus.NOT_FOUND:
            try:
                served = chosen(read_models(_good(settings, answer).json()), target.model)
            except ValueError as error:
                raise not_ours(settings.url, answer, str(error)).error() from error
        params = {"model": target.model} if target.model else {}
        headers = {"content-type": "image/jpeg", "accept": target.accept}
        _good(settings, _ask(client, settings, "POST", target.path, params=params, headers=headers, content=image))
    return served


def is_loopback(url: str) -> bool:
    """Whether the service is on this machine: the generator then shares its cores."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _ask(client: httpx.Client, settings: Settings, method: str, path: str, **options: Any) -> httpx.Response:
    try:
        return client.request(method, path, **options)
    except httpx.RequestError as error:
        raise failure_of(settings.url, error, "", settings.timeout_seconds).error() from error


def _good(settings: Settings, answer: httpx.Response) -> httpx.Response:
    if answer.status_code != HTTPStatus.OK:
        raise failure_of(settings.url, answer, "", settings.timeout_seconds).error()
    return answer
