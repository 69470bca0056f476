"""Settings of the service: one frozen dataclass, one JSON file, one environment variable that holds its path."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

from pydantic import ConfigDict

from sovit.decode import DecodeOptions
from sovit.errors import ConfigError
from sovit.jsonio import STRICT, from_dict, read_json
from sovit.runtime.profile import Goal

ENVIRONMENT_VARIABLE: Final = "SOVIT_SERVE_CONFIG"
_NAME: Final = re.compile(r"[^\s/\x00-\x1f\x7f]{1,128}")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What is served, and how: `artifacts` are folders, or `bentoml:TAG`, by the names that requests choose them by.

    The first is served to whoever names none. `lanes` runtimes of each run side by side with `threads` CPU threads
    each; a batch is what waits when a lane falls free, at most `max_batch` images: nobody waits for a batch to fill.
    What is left open of these (`auto`, 0) is what `sovit tune` found on this machine to be the best for `tuned_for`, or
    one lane with all cores and batches of up to 8 where it has not run; sizes that the warm-up finds to be no faster
    for an image are left out. `decode_threads` are one more than there are cores unless set, as each waits for the
    others now and then; what an image takes of memory in one of them is bounded by `decode.max_pixels`.

    `max_queue` bounds the images of all requests under way and `max_queue_bytes` their bodies, `max_images` and
    `max_body_bytes` those of one request; `timeout_seconds` is the time a request may take, from its first byte to its
    result, unless it asks for less.

    `decode_memory` are the bytes that all images under way may take while they are decoded, counted from their headers
    before they are; 0 is a quarter of the machine's memory. A request may take seven eighths of it.

    `keys` is a file of clients' keys (serving/entry/keys.py); without one everybody may ask. With an `operations_port`
    the probes, /metrics, /drain and /admin are answered there, on `operations_host`, and nowhere else
    (/v2/health stays beside its API).

    Spans of `trace_ratio` of the requests go to the OTLP collector at `trace_endpoint`, if there is one; with
    `log_requests` each request of a client leaves a line in the log. `page` is whether `/` shows the page.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    artifacts: dict[str, str]
    runtime: str = "auto"
    tuned_for: Goal = "latency"
    lanes: int = 0
    threads: int = 0
    max_batch: int = 0
    decode_threads: int = 0
    max_queue: int = 256
    max_images: int = 64
    max_body_bytes: int = 32 * 1024 * 1024
    max_queue_bytes: int = 256 * 1024 * 1024
    decode_memory: int = 0
    timeout_seconds: float = 30.0
    keys: str = ""
    operations_host: str = "127.0.0.1"
    operations_port: int = 0
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    trace_endpoint: str = ""
    trace_ratio: float = 1.0
    log_requests: bool = False
    page: bool = True

    def __post_init__(self) -> None:
        if not self.artifacts:
            raise ConfigError("artifacts is empty: there is nothing to serve.")
        for name in self.artifacts:
            if not _NAME.fullmatch(name):
                raise ConfigError(f"{name!r} cannot be a model's name: take 1 to 128 characters without / and blanks.")
        for name in ("max_queue", "max_images", "max_body_bytes", "max_queue_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be at least 1.")
        for name in ("lanes", "threads", "max_batch", "decode_threads", "decode_memory"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be 0 (choose for me) or more.")
        if self.timeout_seconds <= 0:
            raise ConfigError(f"timeout_seconds is {self.timeout_seconds}, it must be above 0.")
        for one, all_of_them in (("max_images", "max_queue"), ("max_body_bytes", "max_queue_bytes")):
            if getattr(self, one) > getattr(self, all_of_them):
                raise ConfigError(
                    f"{one} {getattr(self, one)} is over {all_of_them} {getattr(self, all_of_them)}: "
                    "it could never be served."
                )
        if not 0 <= self.trace_ratio <= 1:
            raise ConfigError(f"trace_ratio is {self.trace_ratio}, it must lie in 0..1.")
        if not 0 <= self.operations_port <= 65_535:
            raise ConfigError(f"operations_port is {self.operations_port}, it must lie in 1..65535, or be 0 for none.")


def read_serve_config() -> ServeConfig:
    """The settings in the file that the environment variable names."""
    path = os.environ.get(ENVIRONMENT_VARIABLE)
    if not path:
        raise ConfigError(
            f"{ENVIRONMENT_VARIABLE} is not set: start with `sovit serve ARTIFACT`, or point it to a JSON file "
            'such as {"artifacts": {"demo": "runs/demo/artifact"}}.'
        )
    return from_dict(ServeConfig, read_json(Path(path)), path)
