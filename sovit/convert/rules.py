"""Import by a written table: every source tensor consumed or listed as ignored, every target filled once.

A `Table` maps each of our parameters to the source tensors it is made of, each with the shape it must have. What does
not fit is a `CheckpointMismatch` that names the key and both shapes, before anything is read or written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sovit.errors import CheckpointMismatch

Shape = tuple[int, ...]


class Weights(Protocol):
    """Tensors in files, read one at a time."""

    name: str
    shapes: Mapping[str, Shape]

    def read(self, key: str) -> Tensor:
        """One tensor. Raises `CheckpointMismatch` when the file is damaged there."""
        ...


def same(tensor: Tensor) -> Tensor:
    """The source's layout is ours."""
    return tensor


@dataclass(frozen=True)
class Part:
    """One source tensor, the shape it must have, and how it becomes ours."""

    key: str
    shape: Shape
    to_ours: Callable[[Tensor], Tensor] = same


@dataclass(frozen=True)
class Rule:
    """One target: its parts, joined."""

    parts: tuple[Part, ...]
    join: Callable[[list[Tensor]], Tensor]


Table = dict[str, Rule]


def one(key: str, shape: Shape, to_ours: Callable[[Tensor], Tensor] = same) -> Rule:
    """A target that is one source tensor."""
    return Rule((Part(key, shape, to_ours),), lambda tensors: tensors[0])


def rows(*parts: Part) -> Rule:
    """A target whose rows are those of its parts, one below the other."""
    return Rule(parts, torch.cat)


def columns(*parts: Part) -> Rule:
    """A target [1, N, D] that holds the tokens of its parts [1, N', D], one after the other."""
    return Rule(parts, lambda tensors: torch.cat(tensors, dim=1))


def linear_to_conv(patch_size: int, kernel_DP: Tensor) -> Tensor:
    """NaFlex embeds flattened patches, in the order (y, x, channel), by a matrix: as a convolution's kernel."""
    return kernel_DP.unflatten(1, (patch_size, patch_size, 3)).permute(0, 3, 1, 2)  # type: ignore[no-untyped-call,no-any-return]


def plus(first: Rule, second: Part) -> Rule:
    """The sum of a target and one more part; in float32, so that nothing is rounded where a file holds bfloat16."""
    return Rule((*first.parts, second), lambda tensors: first.join(tensors[:-1]).float() + tensors[-1].float())


def keys(table: Table) -> dict[str, Shape]:
    """The source keys of a table with their shapes."""
    return {part.key: part.shape for rule in table.values() for part in rule.parts}


def check(wanted: Mapping[str, Shape], weights: Weights, ignored: Collection[str]) -> None:
    """Raise `CheckpointMismatch` unless wanted and ignored keys account for all of the file, shapes included."""
    found = weights.shapes
    missing = [f"lacks the key {key} {list(shape)}" for key, shape in wanted.items() if key not in found]
    misshapen = [
        f"has {key} with shape {list(found[key])}, this model needs {list(shape)}"
        for key, shape in wanted.items()
        if key in found and found[key] != shape
    ]
    unexpected = [
        f"has the unexpected key {key} {list(shape)}"
        for key, shape in found.items()
        if key not in wanted and key not in ignored
    ]
    problems = misshapen + missing + unexpected
    if problems:
        more = f" (and {len(problems) - 1} more keys do not fit)" if len(problems) > 1 else ""
        raise CheckpointMismatch(f"{weights.name} {problems[0]}{more}.")


def fill(table: Table, weights: Weights) -> Iterator[tuple[str, Tensor]]:
    """Every target of a checked table with its tensor, contiguous; in the source's type, but sums in float32."""
    for target, rule in table.items():
        tensor = rule.join([part.to_ours(_floats(weights, part.key)) for part in rule.parts]).contiguous()
        if not bool(torch.isfinite(tensor).all()):
            names = " and ".join(part.key for part in rule.parts)
            raise CheckpointMismatch(f"{weights.name}: {names} holds values that are not finite.")
        yield target, tensor


def _floats(weights: Weights, key: str) -> Tensor:
    tensor = weights.read(key)
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        kind = str(tensor.dtype).removeprefix("torch.")
        hint = "save them as float32" if tensor.dtype == torch.float64 else "quantised files cannot be imported"
        raise CheckpointMismatch(
            f"{weights.name}: {key} is {kind}; weights must be float32, float16 or bfloat16 ({hint})."
        )
    return tensor
