"""Averaged weights: a moving average over the steps, which is often better than the weights of any one step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from sovit.errors import CheckpointMismatch, ConfigError
from train.optim.groups import bare_name
from train.optim.state import local


class Ema:
    """Float32 averages of a model's floating parameters and buffers, by name.

    The decay at a step, counted from 0, is min(decay, (1 + step) / (10 + step)): the first weights, which have learnt
    nothing, are soon forgotten (the rule of TensorFlow's ExponentialMovingAverage). With FSDP2 make it after sharding;
    every process then averages its own part. Raises `ConfigError` for a decay out of range.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"ema is {decay}, it must be at least 0 and below 1.")
        self.decay = decay
        self._averages = {name: tensor.detach().float().clone() for name, tensor in _floating(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights that the model has after `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        values = _floating(model)
        torch._foreach_lerp_(
            [local(average) for average in self._averages.values()],
            [local(values[name]).float() for name in self._averages],
            1 - decay,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The averages themselves, float32, sharded as the model is."""
        return dict(self._averages)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over averages from `state_dict()`. Raises `CheckpointMismatch` where names or shapes differ."""
        odd = sorted(self._averages.keys() ^ state.keys())
        odd += [name for name in self._averages if name in state and self._averages[name].shape != state[name].shape]
        if odd:
            raise CheckpointMismatch(f"the averaged weights are of another model: {', '.join(odd[:5])} do not fit.")
        for name, average in self._averages.items():
            average.copy_(state[name])

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model has the averaged weights, after it exactly its own again."""
        tensors = _floating(model)
        kept = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        _assign(tensors, self._averages)
        try:
            yield
        finally:
            _reshard(model)
            _assign(tensors, kept)


def averaged(ema: Ema | None, model: nn.Module) -> AbstractContextManager[None]:
    """The averaged weights in the block, where there are some."""
    return nullcontext() if ema is None else ema.applied(model)


def _floating(model: nn.Module) -> dict[str, Tensor]:
    _reshard(model)
    named = [*model.named_parameters(), *model.named_buffers()]
    return {bare_name(name): tensor for name, tensor in named if tensor.is_floating_point()}


def _reshard(model: nn.Module) -> None:
    """Drop gathered weights: FSDP2 keeps some after an evaluation, and would not see that theirs have changed."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def _assign(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(values[name])
