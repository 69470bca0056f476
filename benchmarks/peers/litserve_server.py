"""LitServe: FastAPI processes in front of inference processes, with queues of Python's multiprocessing between them.

    python -m benchmarks.peers.litserve_server ARTIFACT --port 3003

As many workers as cores, as it recommends for CPUs, and as many API processes, its default. Its batches save 0.7 CPU-ms
a request under load, but a worker that batches polls: 2 CPU-ms more for a request alone, and a quarter of a core when
idle. `fast_queue` does nothing in 0.2.19 (Lightning-AI/LitServe issue 751).
"""

# No postponed annotations: LitServe reads the signature of `decode_request` as it is.
from typing import Annotated

import numpy as np
from fastapi import Body, Response
from litserve import LitAPI, LitServer
from numpy.typing import NDArray

from benchmarks.peers.embedder import NPY, Embedder, parse_arguments


class Embed(LitAPI):  # type: ignore[misc]
    """One worker process."""

    def __init__(self, artifact: str, threads: int) -> None:
        super().__init__(api_path="/embed")
        self._artifact, self._threads = artifact, threads

    def setup(self, device: str) -> None:
        self._embedder = Embedder(self._artifact, self._threads)

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/jpeg")]) -> NDArray[np.uint8]:
        return self._embedder.decode(request)

    def predict(self, x: NDArray[np.uint8]) -> bytes:
        return self._embedder.embed([x])[0]

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type=NPY)


def main() -> None:
    """Command line."""
    arguments = parse_arguments(__doc__)
    server = LitServer(
        Embed(str(arguments.artifact), arguments.threads), accelerator="cpu", workers_per_device=arguments.workers
    )
    server.run(host="127.0.0.1", port=arguments.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
