"""Which parameters are decayed, how fast each layer learns, and which are left as they are."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from sovit.errors import ConfigError

_WRAPPERS = ("module.", "_orig_mod.")  # DDP's and torch.compile's names for what they wrap
_NEVER_DECAYED = frozenset({"pos_embed", "probe", "cls", "registers"})  # they have two dimensions or more, all the same
_EMBEDDING = frozenset({"patch_embed", "pos_embed", "cls", "registers"})
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    layer_decay: float = 1.0,
    head_decay_factor: float = 1.0,
    frozen: Sequence[str] = (),
    rate_factor: Callable[[str], float] | None = None,
) -> list[dict[str, Any]]:
    """The groups of an optimiser: each has `params`, `weight_decay`, `lr_scale` and a `name`.

    Matrices and kernels are decayed; biases, norms, LayerScale, the probe, the position embedding, the class token and
    registers are not. The classifier's matrix is decayed `head_decay_factor` times as much (big_vision's ViT-g: 100).

    `lr_scale` is `layer_decay ** (depth + 1 - layer)`. The embedding is layer 0, block i is layer i + 1, and all that
    follows the blocks is layer depth + 1, which learns at the full rate (BEiT, Bao et al. 2021; MAE, He et al. 2021).

    `rate_factor` gives another factor by a parameter's name (see `mup`); weight decay is divided by it, so that what a
    step takes away stays the same.

    Parts named in `frozen` are frozen (see `freeze`), and frozen parameters are in no group. Groups are sorted, those
    that learn slowest first. With FSDP2, call this after sharding: the parameters are replaced there.

    Raises `ConfigError` for numbers out of range, a part that the model lacks, and where nothing is left to train.
    """
    for name, value in (("weight_decay", weight_decay), ("head_decay_factor", head_decay_factor)):
        if not value >= 0:
            raise ConfigError(f"{name} is {value}, it must not be negative.")
    if not 0 < layer_decay <= 1:
        raise ConfigError(f"layer_decay is {layer_decay}, it must be above 0 and at most 1.")
    freeze(model, frozen)
    named = {bare_name(name): parameter for name, parameter in model.named_parameters()}
    depth = 1 + max((int(found[1]) for found in map(_BLOCK.match, named) if found), default=-1)
    members: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in named.items():
        if parameter.requires_grad:
            factor = head_decay_factor if name == "head.weight" else 1.0
            rate = 1.0 if rate_factor is None else rate_factor(name)
            decay = weight_decay * factor / rate if _is_decayed(name, parameter) else 0.0
            members[rate * layer_decay ** (depth + 1 - _layer(name, depth)), decay].append(parameter)
    if not members:
        raise ConfigError("every parameter is frozen: leave something to train out of frozen.")
    return [
        {
            "name": f"lr_scale={scale:.6g} weight_decay={decay:.6g}",
            "params": members[scale, decay],
            "lr_scale": scale,
            "weight_decay": decay,
        }
        for scale, decay in sorted(members, key=lambda key: (key[0], -key[1]))
    ]


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Take parameters out of training: those named, and all within modules named, as `patch_embed` or `blocks.0`.

    Call it before DDP wraps the model, as DDP waits for the gradients of all that was trainable when it wrapped it.
    Raises `ConfigError` for a part that the model lacks.
    """
    named = {bare_name(name): parameter for name, parameter in model.named_parameters()}
    for part in parts:
        found = [parameter for name, parameter in named.items() if name == part or name.startswith(f"{part}.")]
        if not found:
            known = ", ".join(dict.fromkeys(name.partition(".")[0] for name in named))
            raise ConfigError(f"frozen names {part!r}, which has no parameters; the model's parts are {known}.")
        for parameter in found:
            parameter.requires_grad_(False)


def bare_name(name: str) -> str:
    """A parameter's name without the prefixes of DDP and torch.compile."""
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def _is_decayed(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and name.rpartition(".")[2] not in _NEVER_DECAYED


def _layer(name: str, depth: int) -> int:
    if name.partition(".")[0] in _EMBEDDING:
        return 0
    block = _BLOCK.match(name)
    return int(block[1]) + 1 if block else depth + 1
