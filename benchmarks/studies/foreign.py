"""A model of ours written as the public code bases write theirs: to measure and to test the import at any size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from sovit.model import ViT


def write_timm(model: ViT, folder: Path, architecture: str) -> int:
    """Timm's hub layout, for an architecture without position of its own for registers; the bytes of the weights."""
    names = {"patch_embed.": "patch_embed.proj.", "map_head.probe": "attn_pool.latent", "map_head.": "attn_pool."}
    if model.config.fc_norm:
        names["norm."] = "fc_norm."
    names |= {"cls": "cls_token", "registers": "reg_token"}
    tensors = {}
    for name, tensor in model.state_dict().items():
        ours = next((start for start in names if name.startswith(start)), "")
        tensors[names.get(ours, "") + name.removeprefix(ours)] = tensor
    config = model.config
    arguments = {
        "img_size": list(config.image_size), "patch_size": config.patch_size, "embed_dim": config.width,
        "depth": config.depth, "num_heads": config.num_heads, "mlp_ratio": config.mlp_dim / config.width,
        "class_token": model.cls is not None, "reg_tokens": config.registers, "no_embed_class": True,
        "global_pool": {"map": "map", "gap": "avg", "tok": "token"}[config.pool], "fc_norm": config.fc_norm,
        "qkv_bias": config.qkv_bias, "init_values": 1e-5 if config.layer_scale else None,
        "act_layer": {"erf": "gelu", "tanh": "gelu_tanh"}[config.gelu],
    }  # fmt: skip
    cfg = {"input_size": [3, *config.image_size], "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash",
           "mean": [0.5] * 3, "std": [0.5] * 3}  # fmt: skip
    data = {
        "architecture": architecture,
        "num_classes": config.num_classes,
        "model_args": arguments,
        "pretrained_cfg": cfg,
    }
    return _write(folder, tensors, data)


def write_transformers(model: ViT, folder: Path) -> int:
    """The hub layout of transformers' SigLIP vision tower, for a model with a MAP head and no more."""
    config = model.config
    state = model.state_dict()
    tensors: dict[str, Tensor] = {
        "embeddings.patch_embedding.weight": state["patch_embed.weight"],
        "embeddings.patch_embedding.bias": state["patch_embed.bias"],
        "embeddings.position_embedding.weight": state["pos_embed"][0],
        "head.probe": state["map_head.probe"],
    }
    names = {"attn.proj": "self_attn.out_proj", "norm1": "layer_norm1", "norm2": "layer_norm2", "mlp.fc1": "mlp.fc1",
             "mlp.fc2": "mlp.fc2"}  # fmt: skip
    for kind in ("weight", "bias"):
        for index in range(config.depth):
            ours, theirs = f"blocks.{index}", f"encoder.layers.{index}"
            for name, part in zip("qkv", state[f"{ours}.attn.qkv.{kind}"].chunk(3), strict=True):
                tensors[f"{theirs}.self_attn.{name}_proj.{kind}"] = part
            tensors |= {f"{theirs}.{names[name]}.{kind}": state[f"{ours}.{name}.{kind}"] for name in names}
        tensors[f"post_layernorm.{kind}"] = state[f"norm.{kind}"]
        packed = torch.cat([state[f"map_head.q.{kind}"], state[f"map_head.kv.{kind}"]])
        tensors[f"head.attention.in_proj_{kind}"] = packed
        for name, theirs in (("proj", "attention.out_proj"), ("norm", "layernorm"), ("mlp.fc1", "mlp.fc1"),
                             ("mlp.fc2", "mlp.fc2")):  # fmt: skip
            tensors[f"head.{theirs}.{kind}"] = state[f"map_head.{name}.{kind}"]
    vision = {
        "hidden_size": config.width, "intermediate_size": config.mlp_dim, "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads, "image_size": list(config.image_size),
        "patch_size": config.patch_size, "layer_norm_eps": config.layer_norm_eps,
        "hidden_act": {"erf": "gelu", "tanh": "gelu_pytorch_tanh"}[config.gelu],
    }  # fmt: skip
    data = {"architectures": ["SiglipModel"], "model_type": "siglip", "vision_config": vision}
    return _write(folder, {f"vision_model.{name}": tensor for name, tensor in tensors.items()}, data)


def write_big_vision(model: ViT, path: Path) -> int:
    """A scan-stacked npz of big_vision, for a model without registers, LayerScale and `fc_norm`, of square images."""
    config = model.config
    heads, width = config.num_heads, config.width
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    arrays: dict[str, NDArray[np.float32]] = {
        "embedding/kernel": state["patch_embed.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.bias"],
        "pos_embedding": state["pos_embed"],
    }

    def layer(theirs: str, weight: NDArray[np.float32], bias: NDArray[np.float32], *, norm: bool = False) -> None:
        arrays[f"{theirs}/{'scale' if norm else 'kernel'}"] = weight if norm else weight.T
        arrays[f"{theirs}/bias"] = bias

    def attention(theirs: str, ours: str, parts: dict[str, Any]) -> None:
        for name, (weight, bias) in parts.items():
            arrays[f"{theirs}/{name}/kernel"] = weight.T.reshape(width, heads, -1)
            arrays[f"{theirs}/{name}/bias"] = bias.reshape(heads, -1)
        arrays[f"{theirs}/out/kernel"] = state[f"{ours}proj.weight"].T.reshape(heads, -1, width)
        arrays[f"{theirs}/out/bias"] = state[f"{ours}proj.bias"]

    def both(name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return state[f"{name}.weight"], state[f"{name}.bias"]

    for index in range(config.depth):
        ours, theirs = f"blocks.{index}", f"Transformer/encoderblock_{index}"
        weights, biases = (np.split(values, 3) for values in both(f"{ours}.attn.qkv"))
        parts = dict(zip(("query", "key", "value"), zip(weights, biases, strict=True), strict=True))
        attention(f"{theirs}/MultiHeadDotProductAttention_0", f"{ours}.attn.", parts)
        for number in (0, 1):
            layer(f"{theirs}/LayerNorm_{number}", *both(f"{ours}.norm{number + 1}"), norm=True)
            layer(f"{theirs}/MlpBlock_0/Dense_{number}", *both(f"{ours}.mlp.fc{number + 1}"))
    layer("Transformer/encoder_norm", *both("norm"), norm=True)
    if config.pool == "map":
        weights, biases = (np.split(values, 2) for values in both("map_head.kv"))
        parts = {"query": both("map_head.q"), "key": (weights[0], biases[0]), "value": (weights[1], biases[1])}
        attention("MAPHead_0/MultiHeadDotProductAttention_0", "map_head.", parts)
        arrays["MAPHead_0/probe"] = state["map_head.probe"]
        layer("MAPHead_0/LayerNorm_0", *both("map_head.norm"), norm=True)
        for number in (0, 1):
            layer(f"MAPHead_0/MlpBlock_0/Dense_{number}", *both(f"map_head.mlp.fc{number + 1}"))
    if model.cls is not None:
        arrays["cls"] = state["cls"]
    if model.head is not None:
        layer("head", *both("head"))
    first = "Transformer/encoderblock_0/"
    for key in [key for key in arrays if key.startswith(first)]:
        layers = [arrays.pop(key.replace("block_0", f"block_{index}")) for index in range(config.depth)]
        arrays[key.replace("block_0", "block")] = np.stack(layers)
    np.savez(path, **{f"params/{key}": array for key, array in arrays.items()})  # type: ignore[arg-type]
    return path.stat().st_size


def _write(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> int:
    folder.mkdir(parents=True)
    path = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return path.stat().st_size
