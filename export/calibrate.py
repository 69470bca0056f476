"""How large activations get on real images: the largest absolute value of every channel, by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sovit.errors import ConfigError
from sovit.model import Attention, MapHead, ViT
from sovit.preprocess import Preprocess
from sovit.progress import progress
from sovit.runtime.pytorch import Graph

_BATCH: Final = 4


@torch.inference_mode()
def calibrate(
    model: ViT, preprocess: Preprocess, images: Sequence[NDArray[np.uint8]]
) -> dict[str, NDArray[np.float32]]:
    """The largest |x| [D] of what enters every dense layer, by its name, over preprocessed images [Y, X, C].

    Queries, keys and values are there as `<attention>.q`, `.k` and `.v`. The model runs in fp32. Shows progress.
    Raises `ConfigError` without images.
    """
    if not images:
        raise ConfigError("calibration needs at least one image.")
    largest: dict[str, Tensor] = {}

    def note(name: str, x_BND: Tensor) -> None:
        found_D = x_BND.flatten(0, -2).abs().amax(dim=0)
        largest[name] = torch.maximum(largest[name], found_D) if name in largest else found_D

    hooks = []
    for name, module in model.named_modules():
        # The query of a MAP head comes from a constant: its layer is none at run time, and `.q` is what it gives.
        if isinstance(module, nn.Linear) and not name.endswith(".q"):
            hooks.append(module.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0])))
        if isinstance(module, (Attention, MapHead)):
            layer, letters = (module.qkv, "qkv") if isinstance(module, Attention) else (module.kv, "kv")

            def split(_: nn.Module, __: object, output: Tensor, name: str = name, letters: str = letters) -> None:
                for letter, value in zip(letters, output.chunk(len(letters), dim=-1), strict=True):
                    note(f"{name}.{letter}", value)

            hooks.append(layer.register_forward_hook(split))
        if isinstance(module, MapHead):
            hooks.append(module.q.register_forward_hook(lambda _, __, output, name=name: note(f"{name}.q", output)))
    graph = Graph(model, preprocess).eval()
    try:
        with progress("calibrating", len(images)) as advance:
            for start in range(0, len(images), _BATCH):
                batch = np.stack(images[start : start + _BATCH])
                graph(torch.from_numpy(batch))
                advance(len(batch))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: tensor.numpy() for name, tensor in largest.items()}
