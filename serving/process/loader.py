"""The model is loaded in a thread, while the application already answers: not ready, but alive."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from serving.config import ServeConfig
from serving.wire.protocol import fit_connections
from serving.worker import Worker, start_worker
from sovit.errors import SoViTError

logger = logging.getLogger(__name__)


class Loader:
    """Starts the worker once; `worker` is it when it has started, until it is told to stop.

    `on_failed_start` is told why it cannot start, and ends the process.
    """

    def __init__(self, on_failed_start: Callable[[SoViTError], None]) -> None:
        self.on_failed_start = on_failed_start
        self.worker: Worker | None = None
        self._begun = False

    def start(self, config: ServeConfig) -> None:
        """Begin to load, unless that has begun."""
        if not self._begun:
            self._begun = True
            # A daemon: it does not keep a process that is told to stop.
            threading.Thread(target=self._load, args=(config,), name="load", daemon=True).start()

    def _load(self, config: ServeConfig) -> None:
        try:
            self.worker = start_worker(config)
            fit_connections(config.timeout_seconds)  # beside the files that its models keep open
        except SoViTError as error:
            self.on_failed_start(error)
        except Exception:
            logger.exception("the service cannot start")
            self.on_failed_start(SoViTError("the service cannot start: something failed on our side."))
