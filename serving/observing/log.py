"""Logs as lines of JSON on standard output, for machines that collect them."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from serving.observing.record import Record

# What every log record carries; everything else was given as `extra`.
_USUAL: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}

requests: Final = logging.getLogger("sovit.requests")


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, what was given as `extra`, and a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _USUAL}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # half of a surrogate pair, or a number beyond 64 bits
            return json.dumps(line, default=str)


def log_as_json() -> None:
    """Have everything that this process logs go through the formatter, whoever has set up what before."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.INFO)
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.handlers.clear()
            logger.propagate = True
    # Without a handler the server does not even make its lines, which hold what clients write.
    logging.getLogger("uvicorn.access").propagate = False


def log_request(record: Record, method: str, route: str, status: int, seconds: float, traceparent: str) -> None:
    """A line for one request. It holds nothing that the client wrote but the request id."""
    requests.info(
        "%s %s %d",
        method,
        route,
        status,
        extra={
            "request_id": record.request_id,
            "trace_id": traceparent.split("-")[1],
            "route": route,
            "status": status,
            "milliseconds": round(1000 * seconds, 3),
            "key": record.key,
            "model": record.model,
            "images": record.images,
            "bytes": record.body_bytes,
            "stages": {name: round(1000 * took, 3) for name, took in record.seconds().items()},
        },
    )
