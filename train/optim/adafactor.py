"""Adafactor as big_vision trains its vision transformers: Adam's quality with hardly any second moment to store.

Shazeer and Stern 2018, in the variant of "Scaling Vision Transformers" (Zhai et al. 2022, section 3.4).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from train.optim.state import ExactState, local

_BETA2_CAP = 0.999
_DECAY_POWER = 0.8
_EPS = 1e-30
_MIN_DIM_TO_FACTOR = 32


class Adafactor(ExactState):
    """Gradients over a factored RMS, averaged by a first moment; learning rates are those of Adam.

    The second moment of a tensor whose two largest dimensions are both 32 or more is kept as its means over either of
    the two; others keep it whole. Its decay at step t, counted from 0, is min(0.999, 1 - (t + 1) ** -0.8). The first
    moment is `momentum * m + (1 - momentum) * update` without a correction for its start at 0; it is stored as
    `momentum_dtype`, and there is none with `momentum` 0. The update is not clipped and not scaled by the parameters.

    Then p <- p - lr * (update + weight_decay * p). big_vision multiplies its decay by the schedule and not by the base
    rate, hence configs such as `lr=8e-4, wd=0.03 * 8e-4`: that is `weight_decay=0.03` here, where `lr` is base rate
    times schedule, as in AdamW. Where a group has a rate of its own, its decay here follows, and in big_vision not.

    Attention's q, k and v are one matrix [3D, D] here and three arrays [D, H, K] there, so those are factored
    differently; all else agrees to 1e-5 relative. With bfloat16 the decay factor itself is rounded, as JAX does: 0.9
    acts as 0.8984375. Sharded parameters (FSDP2) give the same updates as whole ones.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        momentum: float = 0.9,
        momentum_dtype: torch.dtype = torch.bfloat16,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._momentum_dtype = momentum_dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not trained:
                continue
            updates = [local(self._normalised(parameter)) for parameter in trained]
            if group["momentum"]:
                self._average(trained, updates, group["momentum"])
            values = [local(parameter) for parameter in trained]
            torch._foreach_mul_(values, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(values, updates, alpha=-group["lr"])

    def _normalised(self, parameter: Tensor) -> Tensor:
        """The gradient over the root of its second moment, float32, of the parameter's shape."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
        decay = min(_BETA2_CAP, 1 - (state["step"].item() + 1) ** -_DECAY_POWER)
        state["step"] += 1
        assert parameter.grad is not None
        gradient = parameter.grad.float()
        square = gradient.square() + _EPS
        dims = factored_dims(gradient.shape)
        if dims is None:
            return gradient * _moment(state, "square", square, decay).rsqrt()
        smaller, larger = dims
        rows = _moment(state, "rows", _mean(square, larger), decay)
        columns = _moment(state, "columns", _mean(square, smaller), decay)
        kept = smaller - (smaller > larger)  # where `smaller` is once `larger` is gone
        row_factor = (rows / _mean(rows, kept).unsqueeze(kept)).rsqrt().unsqueeze(larger)
        return gradient * row_factor * columns.rsqrt().unsqueeze(smaller)

    def _average(self, trained: list[Tensor], updates: list[Tensor], momentum: float) -> None:
        """Replace the updates by their moving averages."""
        for parameter in trained:
            if "momentum" not in self.state[parameter]:
                zeros = torch.zeros_like(parameter, dtype=self._momentum_dtype)
                self.state[parameter]["momentum"] = zeros
        moments = [local(self.state[parameter]["momentum"]) for parameter in trained]
        # JAX multiplies a bfloat16 array by a bfloat16 factor; only the sum with the update is float32.
        torch._foreach_mul_(moments, torch.tensor(momentum, dtype=self._momentum_dtype).item())
        torch._foreach_mul_(updates, 1 - momentum)
        torch._foreach_add_(updates, moments)
        torch._foreach_copy_(moments, updates)


def factored_dims(shape: torch.Size) -> tuple[int, int] | None:
    """The two largest dimensions of a tensor, the smaller one first; None where one is below 32."""
    order = sorted(range(len(shape)), key=lambda dim: shape[dim])
    if len(shape) < 2 or shape[order[-2]] < _MIN_DIM_TO_FACTOR:
        return None
    return order[-2], order[-1]


def _moment(state: dict[str, Any], name: str, value: Tensor, decay: float) -> Tensor:
    if name not in state:
        state[name] = torch.zeros_like(value)
    moment: Tensor = state[name]
    return moment.mul_(decay).add_(value, alpha=1 - decay)


def _mean(tensor: Tensor, dim: int) -> Tensor:
    # A sum over the count and no mean: the parts of a sharded tensor may have different sizes.
    return tensor.sum(dim) / tensor.shape[dim]
