"""big_vision's parameter names, as far as the golden models need them, to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float32]


def convert(source: Mapping[str, Array], depth: int) -> dict[str, Tensor]:
    """All parameters of one tower; a source key that finds no place stays in the result and fails the strict load."""
    flat = _unstack({key.removeprefix("params/"): value for key, value in source.items()}, depth)
    target: dict[str, Array] = {}
    qkv: dict[str, Array] = {}
    for key, value in flat.items():
        name = re.sub(r"^Transformer/encoderblock_(\d+)/", r"blocks.\1.", key)
        name = name.replace("MAPHead_0/", "map_head.").replace("Transformer/encoder_norm", "norm")
        name = name.replace("MlpBlock_0/Dense_0", "mlp.fc1").replace("MlpBlock_0/Dense_1", "mlp.fc2")
        name = name.replace("embedding/", "patch_embed/") if key.startswith("embedding") else name
        name = name.replace("map_head.LayerNorm_0", "map_head.norm")
        name = (
            name.replace("LayerNorm_0", "norm1").replace("LayerNorm_1", "norm2").replace("pos_embedding", "pos_embed")
        )
        name = name.replace("/scale", ".weight").replace("/kernel", ".weight").replace("/", ".")
        if match := re.match(r"(.*)MultiHeadDotProductAttention_0\.(query|key|value|out)\.(weight|bias)$", name):
            where, part, kind = match.groups()
            if part == "out":
                flat_out = value.reshape(-1, value.shape[-1]).T if kind == "weight" else value
                target[f"{_attention(where)}proj.{kind}"] = flat_out
            else:
                qkv[f"{where}|{part}|{kind}"] = (
                    value.reshape(len(value), -1).T if kind == "weight" else value.reshape(-1)
                )
        elif name == "patch_embed.weight":
            target[name] = value.transpose(3, 2, 0, 1)
        else:
            target[name] = value.T if value.ndim == 2 else value
    for place in {key.split("|")[0] for key in qkv}:
        for kind in ("weight", "bias"):
            q, k, v = (qkv[f"{place}|{part}|{kind}"] for part in ("query", "key", "value"))
            if place.startswith("map_head"):
                target[f"map_head.q.{kind}"], target[f"map_head.kv.{kind}"] = q, np.concatenate([k, v])
            else:
                target[f"{place}attn.qkv.{kind}"] = np.concatenate([q, k, v])
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in target.items()}


def _attention(where: str) -> str:
    return where if where.startswith("map_head") else f"{where}attn."


def _unstack(source: Mapping[str, Array], depth: int) -> dict[str, Array]:
    flat = {}
    for key, value in source.items():
        if key.startswith("Transformer/encoderblock/"):
            for index in range(depth):
                flat[key.replace("encoderblock", f"encoderblock_{index}")] = value[index]
        else:
            flat[key] = value
    return flat
