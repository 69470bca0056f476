"""AdamW as the training loop asks for it."""

from __future__ import annotations

import torch
from torch import nn

from train.optim.build import build_optimizer
from train.optim.groups import parameter_groups


def adamw(model: nn.Module, *, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW that decays matrices only."""
    groups = parameter_groups(model, weight_decay=weight_decay)
    return build_optimizer(groups, name="adamw", learning_rate=learning_rate, betas=(0.9, 0.99))
