"""Learning-rate schedules: pure functions of the step, as multipliers of the base rate.

They agree with big_vision's `create_learning_rate_schedule`, where the end of the linear one is a rate, no multiplier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sovit.errors import ConfigError

ScheduleKind = Literal["cosine", "rsqrt", "linear"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """One of the schedules below, called with a step: `schedule(step)` is the multiplier of the base rate.

    `cooldown_steps` and `timescale` belong to rsqrt, `end` to linear. An rsqrt run does not know its own length until
    it cools down. So a cooldown that branches off at step s is the same schedule with `steps=s + cooldown_steps`: a
    few of them give short runs of many lengths from one long run. Raises `ConfigError` for numbers that make no sense.
    """

    kind: ScheduleKind
    steps: int
    warmup_steps: int = 0
    cooldown_steps: int = 0
    timescale: int = 10_000
    end: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "timescale"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be at least 1.")
        for name in ("warmup_steps", "cooldown_steps", "end"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must not be negative.")
        if self.warmup_steps + self.cooldown_steps > self.steps:
            parts = f"{self.warmup_steps} steps of warm-up and {self.cooldown_steps} of cooldown"
            raise ConfigError(f"{parts} do not fit into a run of {self.steps}: shorten them.")
        for name, kind in (("cooldown_steps", "rsqrt"), ("end", "linear")):
            if getattr(self, name) and self.kind != kind:
                raise ConfigError(f"{name} means nothing to the schedule {self.kind}: it belongs to {kind}.")

    def __call__(self, step: int) -> float:
        """The multiplier of the base rate at a step, counted from 0; at `steps` the run is over."""
        if self.kind == "cosine":
            return warmup_cosine(step, steps=self.steps, warmup_steps=self.warmup_steps)
        if self.kind == "linear":
            return linear(step, steps=self.steps, warmup_steps=self.warmup_steps, end=self.end)
        return rsqrt(
            step,
            steps=self.steps,
            warmup_steps=self.warmup_steps,
            cooldown_steps=self.cooldown_steps,
            timescale=self.timescale,
        )


def warmup_cosine(step: int, *, steps: int, warmup_steps: int) -> float:
    """Linear from 0 over `warmup_steps`, then half a cosine down to 0 at `steps`."""
    if step < warmup_steps:
        return step / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * _progress(step, steps, warmup_steps)))


def linear(step: int, *, steps: int, warmup_steps: int, end: float) -> float:
    """Linear from 0 over `warmup_steps`, then a straight line to `end` at `steps`."""
    if step < warmup_steps:
        return step / warmup_steps
    return 1 + (end - 1) * _progress(step, steps, warmup_steps)


def rsqrt(step: int, *, steps: int, warmup_steps: int, cooldown_steps: int, timescale: int) -> float:
    """Linear from 0 over `warmup_steps`, then 1 / sqrt(1 + (step - warmup_steps) / timescale).

    Over the last `cooldown_steps` that is multiplied by a straight line from 1 to 0 (Zhai et al. 2022, section 3.5).
    """
    left = min(1.0, max(0, steps - step) / cooldown_steps) if cooldown_steps else 1.0
    if step < warmup_steps:
        return left * step / warmup_steps
    return left / math.sqrt(1 + (step - warmup_steps) / timescale)


def _progress(step: int, steps: int, warmup_steps: int) -> float:
    return min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
