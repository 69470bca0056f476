"""What a client is told once."""

from __future__ import annotations

import math
import ssl
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from sovit import __version__
from sovit.client.retry import DEFAULT_RETRY, Retry
from sovit.errors import ConfigError

_MAX_PORT: Final = 65_535
# Of its time, a request tells the service this share: the service's own 504 then comes before we stop waiting.
_TOLD: Final = 0.9
_MOST_TOLD: Final = 1e6  # seconds; a longer number would be refused


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where the service is, and how it is asked.

    `model` is one of the served models, the first when left out. A request takes at most `timeout_seconds` to connect,
    and as long until its answer is whole. It holds at most `batch_size` images; up to `concurrency` requests are under
    way. `ca_file` holds the certificates to trust in place of the public ones.
    """

    url: str
    api_key: str = field(default="", repr=False)
    model: str = ""
    timeout_seconds: float = 60.0
    batch_size: int = 16
    concurrency: int = 4
    retry: Retry = DEFAULT_RETRY
    ca_file: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self.url.rstrip("/"))
        _check_url(self.url)
        if not all("!" <= character <= "~" for character in self.api_key):
            raise ConfigError("the API key holds spaces or characters that are not ASCII; a key is one word.")
        if not 0 < self.timeout_seconds < math.inf:
            raise ConfigError(f"timeout_seconds is {self.timeout_seconds}, it must be above 0.")
        for name in ("batch_size", "concurrency"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be at least 1.")

    def http_options(self) -> dict[str, Any]:
        """What httpx's clients, of either kind, are made with."""
        headers = {
            "accept": "application/json",
            "accept-encoding": "identity",  # numbers in base64 hardly get shorter
            "user-agent": f"sovit/{__version__}",
            "x-request-timeout": f"{min(max(_TOLD * self.timeout_seconds, 0.001), _MOST_TOLD):.3f}",
        }
        if self.api_key:
            headers["authorization"] = f"Bearer {self.api_key}"
        return {
            "base_url": self.url,
            "headers": headers,
            "timeout": self.timeout_seconds,
            # `concurrency` bounds the requests: nobody waits for a connection besides.
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=self.concurrency),
            # No proxy and no password from the environment: what is asked for is the service itself.
            "trust_env": False,
            **({"verify": _trusting(self.ca_file)} if self.ca_file else {}),
        }


def _trusting(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigError(f"ca_file {ca_file} holds no certificates that can be read: {error}.") from error


def _check_url(url: str) -> None:
    try:
        found = httpx.URL(url)
        found.host.encode("idna")
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ConfigError(f"{url!r} is no URL: {error}.") from error
    if found.userinfo:  # which is not repeated
        raise ConfigError("the URL of a service holds a user or a password, which it does not take; give a key.")
    if found.scheme not in ("http", "https") or not found.host or not 0 < (found.port or 1) <= _MAX_PORT:
        raise ConfigError(f"{url!r} is no URL of a service such as http://127.0.0.1:3000.")
    if found.query or found.fragment:
        raise ConfigError(f"{url!r} holds more than the address of a service, such as http://127.0.0.1:3000.")
