"""SGD with momentum and decoupled weight decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from train.optim.state import ExactState, local


class Sgd(ExactState):
    """m <- momentum * m + g, then p <- p - lr * (m + weight_decay * p). No dampening, no Nesterov; m is float32.

    PyTorch's own SGD adds the decay to the gradient, so that momentum multiplies it. Here `weight_decay` means the same
    as in AdamW and Adafactor, and as in big_vision.
    """

    def __init__(self, params: Iterable[Any], *, lr: float, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not trained:
                continue
            for parameter in trained:
                if not self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter, dtype=torch.float32)
            values = [local(parameter) for parameter in trained]
            moments = [local(self.state[parameter]["momentum"]) for parameter in trained]
            torch._foreach_mul_(moments, group["momentum"])
            torch._foreach_add_(moments, [local(parameter.grad) for parameter in trained])
            torch._foreach_mul_(values, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(values, moments, alpha=-group["lr"])
