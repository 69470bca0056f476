"""FastAPI in uvicorn, with uvloop and httptools: what one writes without a model server.

    python -m benchmarks.peers.fastapi_server ARTIFACT --port 3001

The work is done in the thread pool, which keeps the event loop free, as FastAPI's documentation has it for what blocks.
"""

from __future__ import annotations

import os
from typing import Final

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool

from benchmarks.peers.embedder import NPY, Embedder, parse_arguments

_ARTIFACT: Final = "SOVIT_PEER_ARTIFACT"
_THREADS: Final = "SOVIT_PEER_THREADS"


def create_app() -> FastAPI:
    """The application of one worker process."""
    embedder = Embedder(os.environ[_ARTIFACT], int(os.environ[_THREADS]))

    def answer(content: bytes) -> bytes:
        return embedder.embed([embedder.decode(content)])[0]

    async def embed(request: Request) -> Response:
        return Response(await run_in_threadpool(answer, await request.body()), media_type=NPY)

    app = FastAPI()
    app.add_api_route("/embed", embed, methods=["POST"])
    return app


def main() -> None:
    """Command line."""
    arguments = parse_arguments(__doc__)
    os.environ |= {_ARTIFACT: str(arguments.artifact), _THREADS: str(arguments.threads)}
    uvicorn.run(
        "benchmarks.peers.fastapi_server:create_app",
        factory=True,
        port=arguments.port,
        workers=arguments.workers,
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
