"""What our own optimisers share: a state that keeps its types, and the local part of a sharded tensor."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class ExactState(torch.optim.Optimizer):
    """An optimiser whose state is loaded as it was saved; PyTorch casts it to the parameters' type."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` gave."""
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        for index, parameter in zip(saved, parameters, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                device = "cpu" if name == "step" else parameter.device
                self.state[parameter][name] = value.to(device, copy=True)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, or the tensor itself; they share memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
