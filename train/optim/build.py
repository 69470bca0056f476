"""An optimiser by its name."""

from __future__ import annotations

from typing import Any, Literal

import torch

from train.optim.adafactor import Adafactor
from train.optim.sgd import Sgd

OptimizerName = Literal["adamw", "adafactor", "sgd"]


def build_optimizer(
    groups: list[dict[str, Any]],
    *,
    name: OptimizerName,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    momentum: float = 0.9,
) -> torch.optim.Optimizer:
    """An optimiser over the groups of `parameter_groups`, at `learning_rate` times each group's `lr_scale`.

    `betas` are AdamW's, `momentum` is of the others (0 for none). Weight decay is decoupled in all three, and
    multiplied by the current rate. Adafactor stores its first moment in bfloat16; all other state has the parameters'
    type or float32.
    """
    groups = [dict(group) for group in groups]  # PyTorch fills in what they lack
    optimizer: torch.optim.Optimizer
    if name == "adamw":
        on_cuda = groups[0]["params"][0].is_cuda
        optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=on_cuda, foreach=not on_cuda)
    elif name == "adafactor":
        optimizer = Adafactor(groups, lr=learning_rate, momentum=momentum)
    else:
        optimizer = Sgd(groups, lr=learning_rate, momentum=momentum)
    set_learning_rate(optimizer, learning_rate)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group this rate times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
