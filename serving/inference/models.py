"""The models a worker serves, by name. One can be swapped for another artifact while it is asked for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator

from serving.entry.line import Line
from serving.inference.model import ServedModel
from sovit.errors import Draining, SoViTError

logger = logging.getLogger(__name__)


class UnknownModel(SoViTError):
    """A request for a model that is not served."""

    status = 400
    title = "Unknown model"


class Models:
    """The served models, in the order they were named; the first is taken where a request names none."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._models = {model.name: model for model in models}
        self._swapping = asyncio.Lock()
        self._open = True

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    @property
    def ready(self) -> bool:
        """Whether all take work."""
        return all(model.engine.ready for model in self)

    @property
    def alive(self) -> bool:
        """Whether no lane of any is dead or stuck."""
        return all(model.engine.alive for model in self)

    def find(self, name: str | None) -> ServedModel:
        """The model of a name. Raises `UnknownModel`."""
        if name is None:
            return next(iter(self))
        found = self._models.get(name)
        if found is None:
            raise UnknownModel(f"no such model is served; there is {', '.join(self._models)}.")
        return found

    def lines(self, name: str | None) -> list[Line]:
        """The line that a request for a model joins; all of them while its model is not known."""
        return [model.line for model in self] if name is None else [self.find(name).line]

    async def swap(self, name: str, load: Callable[[], ServedModel]) -> tuple[ServedModel, ServedModel]:
        """Load a model and let it take over its name; returns it and the one before.

        Whoever asked before it took over is answered by the one before, which is freed when its last request has left.
        What `load` raises leaves everything as it was.
        """
        self.find(name)
        async with self._swapping:
            new = await asyncio.to_thread(load)
            if not self._open:
                await asyncio.to_thread(new.engine.close)
                raise Draining("the service has been shut down meanwhile.")
            old, self._models[name] = self._models[name], new
            logger.info("%s serves %s, in place of %s", name, new.version, old.version)
            await old.line.empty()
            await asyncio.to_thread(old.engine.close)
        return new, old

    def close(self) -> None:
        """Finish what is queued and free all."""
        self._open = False
        for model in self:
            model.engine.close()
