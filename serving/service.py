"""The BentoML service: it packages, starts and supervises; every route is our own application's.

sovit serve runs/demo/artifact          (or: SOVIT_SERVE_CONFIG=config.json bentoml serve serving.service:SoViTService)
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from serving.config import read_serve_config
from serving.entry.keys import read_keys
from serving.observing.log import log_as_json
from serving.process.failed_start import give_up
from serving.process.loader import Loader
from serving.wire.protocol import use_bounded_protocol
from sovit.errors import SoViTError

_PR_SET_PDEATHSIG: Final = 1

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
use_bounded_protocol()


def _end_with_parent() -> None:
    """Have Linux tell this worker to stop when its supervisor dies, be it killed: nobody else would."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if sys.argv[1:2] == ["serve"] or "--worker-id" in sys.argv:
    log_as_json()

loader = Loader(give_up)
if "--worker-id" in sys.argv:  # not in the supervisor, which imports this module too
    _end_with_parent()
    # The model takes longer to load than BentoML to import and to set itself up: both at once, from here on.
    with suppress(SoViTError):  # which the application then meets itself
        loader.start(read_serve_config())

import bentoml  # noqa: E402

from serving.app import create_app  # noqa: E402

app = create_app(loader, own_process=True)


class OurRoutesFirst:
    """Hand every HTTP request to our application.

    BentoML's own routes (/livez, /readyz, /schema.json) would win over a mounted application's, and answer errors in
    forms that are not our contract's.
    """

    def __init__(self, bento_app: Any) -> None:
        self._bento_app = bento_app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            # From here on requests come to us before BentoML's own middleware: it would keep a timer for each request
            # until its timeout, long after the reply, and trace it a second time.
            server = scope["app"]
            server.middleware_stack = _HttpTo(app, server.middleware_stack)
        await (app if scope["type"] == "http" else self._bento_app)(scope, receive, send)


class _HttpTo:
    """HTTP requests to one application, everything else to another."""

    def __init__(self, http: Any, others: Any) -> None:
        self._http = http
        self._others = others

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await (self._http if scope["type"] == "http" else self._others)(scope, receive, send)


# One worker: it holds the only copy of the weights, and the engine's lanes use the cores. Timeouts, queueing and
# metrics are the application's.
@bentoml.service(
    name="sovit",
    workers=1,
    traffic={"timeout": 86_400},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(app, path="/")
class SoViTService:
    """SoViT image classification and embeddings."""

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check_settings() -> None:
        """Refuse to start, with one sentence, on settings or keys that do not fit. The worker looks at the artifact."""
        try:
            config = read_serve_config()
            if config.keys:
                read_keys(Path(config.keys))
        except SoViTError as error:
            print(f"sovit: {error}", file=sys.stderr)
            sys.exit(error.exit_code)


SoViTService.add_asgi_middleware(OurRoutesFirst)  # type: ignore[attr-defined]
