"""The models a worker serves, by name. One can be swapped for another artifact while it is asked for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from serving.inference.model import ServedModel
from sovit.errors import Draining, SoViTError


class UnknownModel(SoViTError):
    """A request for a model that is not served."""

    status = 400
    title = "Unknown model"


class Models:
    """The served models, in the order they were named; the first is taken where a request names none."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._models = {model.name: model for model in models}
        self._swapping = {name: asyncio.Lock() for name in self._models}
        self._loads: set[asyncio.Future[ServedModel]] = set()

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

    def candidates(self, name: str | None) -> list[ServedModel]:
        """The model of a name, or all that it may be while it is not known."""
        return list(self) if name is None else [self.find(name)]

    async def swap(self, name: str, load: Callable[[], ServedModel]) -> tuple[ServedModel, ServedModel]:
        """Load a model and let it take over its name; returns it and the one before.

        Whoever asked before it took over is answered by the one before, which is freed when its last request has left.
        What `load` raises leaves everything as it was.
        """
        self.find(name)
        async with self._swapping[name]:
            new = await self._load(load)
            old, self._models[name] = self._models[name], new
            await old.line.empty()
            await asyncio.to_thread(old.engine.close)
        return new, old

    def stop_loading(self) -> None:
        """End swaps whose newcomer is not loaded yet. Called on the event loop."""
        for future in list(self._loads):
            if not future.done():
                future.set_exception(Draining("the service is shutting down; the model stays as it was."))

    def close(self) -> None:
        """Finish what is queued and free all."""
        for model in self:
            model.engine.close()

    async def _load(self, load: Callable[[], ServedModel]) -> ServedModel:
        """Load in a thread that nobody has to wait for: it may take minutes, and a stop does not."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[ServedModel] = loop.create_future()

        def hand_over(new: ServedModel | None, error: BaseException | None) -> None:
            if future.done():  # the service stops
                if new is not None:
                    new.engine.close()
            elif new is not None:
                future.set_result(new)
            else:
                future.set_exception(error or RuntimeError("nothing was loaded."))

        def run() -> None:
            new, error = None, None
            try:
                new = load()
            except BaseException as caught:
                error = caught
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(hand_over, new, error)

        self._loads.add(future)
        future.add_done_callback(self._loads.discard)
        threading.Thread(target=run, name="load", daemon=True).start()
        return await future
