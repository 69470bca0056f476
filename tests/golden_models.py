"""The reference models under tests/golden, in the forms a public checkpoint may have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sovit.model import Patches, ViT, ViTOutput

GOLDEN = Path(__file__).parent / "golden"
BIG_VISION = ("classifier_map", "classifier_gap_scan", "encoder_tok", "siglip_two_towers")
FOLDERS = [
    str(path.parent.relative_to(GOLDEN)) for path in sorted(GOLDEN.rglob("config.json"))
]  # timm's and transformers'
Arrays = dict[str, NDArray[np.float32]]


def load(path: Path) -> Arrays:
    with np.load(path) as stored:
        return dict(stored)


def npz(name: str) -> Arrays:
    return load(GOLDEN / "big_vision" / f"{name}.weights.npz")


def run(model: ViT, io: Arrays) -> ViTOutput:
    """The model on the inputs of a reference case."""
    with torch.inference_mode():
        if "pixel_values" in io:
            patches, mask, grid = (
                torch.from_numpy(io[name]) for name in ("pixel_values", "pixel_attention_mask", "spatial_shapes")
            )
            return model.forward(Patches(patches, mask.bool(), grid))
        if "images_nchw" in io:
            return model.forward(torch.from_numpy(io["images_nchw"]))
        return model.forward(torch.from_numpy(io["images_nhwc"]).permute(0, 3, 1, 2))


def expected(io: Arrays, has_head: bool) -> Arrays:
    """Reference outputs by our names; every library has names of its own."""
    names = {"pre_logits": ("pre_logits", "embedding", "pooled"), "tokens": ("tokens",)}
    if has_head:
        names["logits"] = ("logits", "output")
    return {ours: io[name] for ours, theirs in names.items() for name in theirs if name in io}


def per_layer(arrays: Arrays) -> Arrays:
    """Scan-stacked arrays as one set of arrays for each layer."""
    flat: Arrays = {}
    for key, value in arrays.items():
        if "/encoderblock/" in key:
            flat |= {key.replace("encoderblock", f"encoderblock_{i}"): layer for i, layer in enumerate(value)}
        else:
            flat[key] = value
    return flat


def stacked(arrays: Arrays) -> Arrays:
    """The opposite of `per_layer`."""
    found: Arrays = {}
    for key in arrays:
        if "/encoderblock_0/" in key:
            layers = (arrays.get(key.replace("encoderblock_0", f"encoderblock_{i}")) for i in range(99))
            found[key.replace("encoderblock_0", "encoderblock")] = np.stack([x for x in layers if x is not None])
        elif "/encoderblock_" not in key:
            found[key] = arrays[key]
    return found


def naflex_npz(weights: dict[str, Tensor]) -> Arrays:
    """The image tower of a NaFlex model of transformers as big_vision would have written it (SigLIP 2's converter)."""
    w = {name.removeprefix("vision_model."): tensor.numpy() for name, tensor in weights.items()}
    width, heads = w["post_layernorm.bias"].shape[0], 4
    side = int(w["embeddings.position_embedding.weight"].shape[0] ** 0.5)

    def attention(where: str, names: dict[str, str]) -> Arrays:
        found: Arrays = {}
        for theirs, ours in names.items():
            kernel, bias = w[f"{ours}.weight"], w[f"{ours}.bias"]
            if theirs == "out":
                found |= {f"{where}/out/kernel": kernel.T.reshape(heads, -1, width), f"{where}/out/bias": bias}
            else:
                found |= {f"{where}/{theirs}/kernel": kernel.T.reshape(width, heads, -1)}
                found |= {f"{where}/{theirs}/bias": bias.reshape(heads, -1)}
        return found

    def norm(where: str, ours: str) -> Arrays:
        return {f"{where}/scale": w[f"{ours}.weight"], f"{where}/bias": w[f"{ours}.bias"]}

    def mlp(where: str, ours: str) -> Arrays:
        return {
            f"{where}/Dense_{i}/{kind}": value
            for i in (0, 1)
            for kind, value in (("kernel", w[f"{ours}.fc{i + 1}.weight"].T), ("bias", w[f"{ours}.fc{i + 1}.bias"]))
        }

    for name, rows in zip("qkv", np.split(w["head.attention.in_proj_weight"], 3), strict=True):
        w[f"head.{name}.weight"] = rows
    for name, rows in zip("qkv", np.split(w["head.attention.in_proj_bias"], 3), strict=True):
        w[f"head.{name}.bias"] = rows
    arrays: Arrays = {
        "embedding/kernel": w["embeddings.patch_embedding.weight"].T,
        "embedding/bias": w["embeddings.patch_embedding.bias"],
        "pos_embedding": w["embeddings.position_embedding.weight"].reshape(side, side, width),
        "MAPHead_0/probe": w["head.probe"],
        **norm("Transformer/encoder_norm", "post_layernorm"),
        **norm("MAPHead_0/LayerNorm_0", "head.layernorm"),
        **mlp("MAPHead_0/MlpBlock_0", "head.mlp"),
        **attention(
            "MAPHead_0/MultiHeadDotProductAttention_0",
            {"query": "head.q", "key": "head.k", "value": "head.v", "out": "head.attention.out_proj"},
        ),
    }
    for i in range(3):
        block, layer = f"Transformer/encoderblock_{i}", f"encoder.layers.{i}"
        arrays |= norm(f"{block}/LayerNorm_0", f"{layer}.layer_norm1")
        arrays |= norm(f"{block}/LayerNorm_1", f"{layer}.layer_norm2")
        arrays |= mlp(f"{block}/MlpBlock_0", f"{layer}.mlp")
        names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
        arrays |= attention(
            f"{block}/MultiHeadDotProductAttention_0",
            {theirs: f"{layer}.self_attn.{ours}" for theirs, ours in names.items()},
        )
    return {f"params/img/{key}": value for key, value in stacked(arrays).items()}
