"""The record of one request: who asked for what, and when it was where. Metrics, traces and logs are made from it.

Times are `time.monotonic()` seconds. A stage may come twice: an image waits for a decoder, and then for a lane.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from starlette.requests import Request

StageName = Literal["read", "decode", "queue", "infer", "encode"]
Outcome = Literal["ok", "invalid", "failed"]  # of an image: "invalid" is its own fault, "failed" ours
STAGES: tuple[StageName, ...] = get_args(StageName)


class Stage(NamedTuple):
    """A part of a request's way."""

    name: StageName
    began: float
    ended: float


@dataclass(slots=True)
class Record:
    """Filled on the way. `stages` tell the way of the image that was ready last, which the reply had to wait for."""

    request_id: str
    began: float
    key: str = ""
    model: str = ""
    images: int = 0
    body_bytes: int = 0
    was_read: bool = False  # the whole body
    stages: list[Stage] = field(default_factory=list)

    def seconds(self) -> dict[StageName, float]:
        """How long each stage took that the request came through, in the order of STAGES."""
        found: dict[StageName, float] = {}
        for name, began, ended in self.stages:
            found[name] = found.get(name, 0.0) + ended - began
        return {stage: found[stage] for stage in STAGES if stage in found}

    def server_timing(self, now: float) -> str:
        """The Server-Timing header, in milliseconds."""
        parts = [f"{name};dur={1000 * seconds:.3f}" for name, seconds in self.seconds().items()]
        return ", ".join([*parts, f"total;dur={1000 * (now - self.began):.3f}"])


def new_request_id() -> str:
    """An id for a request whose client gave none."""
    return f"{random.getrandbits(128):032x}"


def record_of(request: Request) -> Record:
    """The record that the request's endpoint has begun."""
    record: Record = request.state.record
    return record
