"""The options of `sovit serve`."""

from __future__ import annotations

from typing import Any, get_args

from sovit.commands.parser import command, in_checkout
from sovit.runtime.profile import Goal


def add_commands(commands: Any) -> None:
    """Declare it."""
    serve = command(commands, "serve", in_checkout("serving.command", "serve"), "serve artifacts over HTTP")
    serve.add_argument(
        "artifacts",
        nargs="+",
        metavar="ARTIFACT|NAME=ARTIFACT",
        help="a folder, or bentoml:TAG; the first is the default",
    )
    serve.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (default: 3000)")
    serve.add_argument("--runtime", help="engine to run the artifact in")
    serve.add_argument(
        "--tuned-for", choices=get_args(Goal), help="which of the settings that tune found (default: latency)"
    )
    serve.add_argument("--lanes", type=int, help="batches that run side by side (default: as tuned, or 1)")
    serve.add_argument("--threads", type=int, help="CPU threads of one lane (default: as tuned, or the cores)")
    serve.add_argument("--max-batch", type=int, help="most images in one run (default: as tuned, or 8)")
    serve.add_argument("--max-queue", type=int, help="most images of all requests under way")
    serve.add_argument("--max-images", type=int, help="most images in one request")
    serve.add_argument("--max-body-bytes", type=int, help="largest request body")
    serve.add_argument("--max-queue-bytes", type=int, help="most bytes of all bodies under way")
    serve.add_argument(
        "--decode-memory", type=int, help="bytes for the images being decoded (default: a quarter of the memory)"
    )
    serve.add_argument("--timeout-seconds", type=float, help="time a request may take")
    serve.add_argument("--decode-threads", type=int, help="threads that decode images (default: the cores and one)")
    serve.add_argument("--max-pixels", type=int, help="largest image, by its header (default: 50,000,000)")
    serve.add_argument("--keys", metavar="FILE", help="JSON file of clients' keys; without it everybody may ask")
    serve.add_argument("--operations-port", type=int, help="answer probes, metrics and drain there and nowhere else")
    serve.add_argument("--operations-host", help="address of the operations port (default: 127.0.0.1)")
    serve.add_argument("--trace-endpoint", metavar="URL", help="OTLP collector to send traces to over HTTP")
    serve.add_argument("--trace-ratio", type=float, help="share of the traces that begin here (default: 1)")
    serve.add_argument("--log-requests", action="store_true", help="log every request as a line of JSON")
    serve.add_argument("--no-page", action="store_true", help="leave out the page at /")
    serve.add_argument(
        "--reduced-scale", action="store_true", help="decode large JPEGs at 1/2 to 1/8, still twice the model's size"
    )
