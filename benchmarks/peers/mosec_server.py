"""mosec: an HTTP server in Rust that hands batches to Python processes over Unix sockets.

    python -m benchmarks.peers.mosec_server ARTIFACT --port 3002

One stage decodes and infers. A stage for each costs 0.7 CPU-ms a request more, to move the pixels between processes.
Batches cost one request alone a wait of 1 ms, the least mosec takes, and save 0.5 CPU-ms a request under load.
"""

from __future__ import annotations

import os
from typing import Final

import numpy as np
from mosec import Server, Worker
from numpy.typing import NDArray

from benchmarks.peers.embedder import NPY, Embedder, parse_arguments

_ARTIFACT: Final = "SOVIT_PEER_ARTIFACT"
_THREADS: Final = "SOVIT_PEER_THREADS"
_MAX_BATCH: Final = 8
_WAIT_MS: Final = 1


class Embed(Worker):  # type: ignore[misc]
    """One worker process."""

    resp_mime_type = NPY

    def __init__(self) -> None:
        super().__init__()
        self._embedder = Embedder(os.environ[_ARTIFACT], int(os.environ[_THREADS]))

    def deserialize(self, data: bytearray) -> NDArray[np.uint8]:
        return self._embedder.decode(bytes(data))

    def forward(self, data: list[NDArray[np.uint8]]) -> list[bytes]:
        return self._embedder.embed(data)

    def serialize(self, data: bytes) -> bytes:
        return data


def main() -> None:
    """Command line."""
    arguments = parse_arguments(__doc__)
    os.environ |= {_ARTIFACT: str(arguments.artifact), _THREADS: str(arguments.threads)}
    os.environ |= {"MOSEC_ADDRESS": "127.0.0.1", "MOSEC_PORT": str(arguments.port), "MOSEC_LOG_LEVEL": "warning"}
    server = Server()
    server.append_worker(
        Embed, num=arguments.workers, max_batch_size=_MAX_BATCH, max_wait_time=_WAIT_MS, route="/embed"
    )
    server.run()


if __name__ == "__main__":
    main()
