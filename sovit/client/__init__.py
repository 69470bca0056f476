"""Talk to a running service: the calls of a `Predictor`, over HTTP, without torch.

    with Client("http://127.0.0.1:3000") as client:
        client.embed(["seven.png", "nine.png"])  # float32 [2, D]
        for path, result in zip(paths, client.classify_each(paths)):  # any number of images, in constant memory
            ...

Images are paths, bytes, PIL images or uint8 arrays. They travel in batches, several requests at a time; results keep
their order. `AsyncClient` is the same for asyncio.
"""

from __future__ import annotations

from sovit.client.asynchronous import AsyncClient
from sovit.client.models import ModelInfo
from sovit.client.retry import Retry
from sovit.client.synchronous import Client

__all__ = ["AsyncClient", "Client", "ModelInfo", "Retry"]
