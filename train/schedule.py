"""Learning-rate schedules: pure functions of the step, as multipliers of the base rate."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, steps: int, warmup_steps: int) -> float:
    """Linear from 0 over `warmup_steps`, then half a cosine down to 0 at `steps`."""
    if step < warmup_steps:
        return step / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))
