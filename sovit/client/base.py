"""What both clients are: settings, and a connection that is open or closed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

from sovit.client.retry import Retry
from sovit.client.settings import Settings
from sovit.errors import ServiceError

READY_SECONDS: Final = 2.0  # a service that is starting may accept the connection and not answer
_AHEAD: Final = 2  # times as many requests as may be under way: one that takes long does not hold up those after it


class ClientBase(ABC):
    """Settings and a state; what carries the requests is a client's own."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str = Settings.api_key,
        model: str = Settings.model,
        timeout_seconds: float = Settings.timeout_seconds,
        batch_size: int = Settings.batch_size,
        concurrency: int = Settings.concurrency,
        retry: Retry = Settings.retry,
        ca_file: str = Settings.ca_file,
    ) -> None:
        self.settings = Settings(
            url=url,
            api_key=api_key,
            model=model,
            timeout_seconds=timeout_seconds,
            batch_size=batch_size,
            concurrency=concurrency,
            retry=retry,
            ca_file=ca_file,
        )
        self._closed = False
        self._open()

    @property
    def url(self) -> str:
        """The service's address."""
        return self.settings.url

    @property
    def _ahead(self) -> int:
        """Requests that are under way, waiting to be, or answered and not taken yet."""
        return _AHEAD * self.settings.concurrency

    @abstractmethod
    def _open(self) -> None: ...

    def _check_open(self) -> None:
        if self._closed:
            raise self._closed_error()

    def _closed_error(self) -> ServiceError:
        return ServiceError(f"the client of {self.url} is closed; make a new one.")
