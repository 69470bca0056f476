"""big_vision npz: per-layer and scan-stacked, one tower or two, NaFlex, and the names of the first ViT files.

Names and layouts: google-research/big_vision @0127fb6, models/vit.py and its `fix_old_checkpoints`. A file says
nothing about preprocessing: pixels in [-1, 1] are the convention, the rest is a choice that is printed.

In the shapes below: W width, H heads, K head_dim, M mlp_dim, p patch_size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from torch import Tensor

from sovit.config import Pool, PositionResampling, ViTConfig
from sovit.convert.files import NpzFile
from sovit.convert.foreign import Foreign, ImportOptions
from sovit.convert.rules import Part, Shape, Table, one, plus, rows, same
from sovit.errors import CheckpointMismatch
from sovit.labels import numbered
from sovit.preprocess import Preprocess
from sovit.spec import ModelSpec

_IMAGE_TOWERS: Final = ("params/img/", "img/", "params/", "")
_SCALARS: Final = ("t", "b")  # log temperature and bias of the sigmoid loss
_HEAD: Final = ("head/kernel", "head/bias")
_POSITIONS: Final = ("pos_embedding", "Transformer/posembed_input/pos_embedding")


class _Names(NamedTuple):
    """Names of modules inside a block."""

    norm1: str
    attention: str
    norm2: str
    mlp: str


_NAMES: Final = _Names("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
# The first ViT files numbered the modules of all kinds together.
_FIRST_NAMES: Final = _Names("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")


def describe(path: Path, options: ImportOptions) -> Foreign:
    """Read a file's keys and shapes. Raises `CheckpointMismatch` when it is no ViT of big_vision."""
    weights = NpzFile(path)
    prefix = next((prefix for prefix in _IMAGE_TOWERS if f"{prefix}embedding/kernel" in weights.shapes), None)
    if prefix is None:
        raise CheckpointMismatch(f"{path} has no key embedding/kernel: it is no ViT checkpoint of big_vision.")
    tower = _Tower(path, prefix, weights.shapes)
    model = tower.config(options)
    text_prefix = prefix.removesuffix("img/")
    text = tuple(
        key
        for key in weights.shapes
        if prefix != text_prefix
        and (key.startswith(f"{text_prefix}txt/") or key in {f"{text_prefix}{scalar}" for scalar in _SCALARS})
    )
    preprocess, note = _preprocess(model, naflex=tower.naflex, two_towers=bool(text))
    return Foreign(
        layout="big_vision",
        weights=weights,
        spec=ModelSpec(model=model, preprocess=preprocess, labels=numbered(model.num_classes)),
        table=tower.table(model),
        ignored=frozenset(f"{prefix}{key}" for key in _HEAD if options.drop_head),
        text=text,
        text_config=_text_config(weights.shapes, f"{text_prefix}txt/") if text else {},
        notes=(note,),
    )


class _Tower:
    """An image tower: which of the layouts it has, and from that its configuration and its table."""

    def __init__(self, path: Path, prefix: str, shapes: Mapping[str, Shape]) -> None:
        self._path = path
        self._prefix = prefix
        self._shapes = shapes
        self.naflex = len(self._shape("embedding/kernel")) == 2
        self._scan = self._has("Transformer/encoderblock/LayerNorm_0/scale")
        query = "Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel"
        self._depth = self._shape(query)[0] if self._scan else self._layers()
        self._names = _FIRST_NAMES if self._has(f"{self._block(0)}LayerNorm_2/scale") else _NAMES
        # Before it had a module of its own, the MAP head's parts lay beside the blocks.
        self._map = next((where for where in ("MAPHead_0/", "") if self._has(f"{where}probe")), None)
        self._position = next((key for key in _POSITIONS if self._has(key)), None)
        self._head_key = f"{prefix}{_HEAD[0]}"

    def config(self, options: ImportOptions) -> ViTConfig:
        """The configuration that the shapes imply."""
        embedding = self._shape("embedding/kernel", 2 if self.naflex else 4)
        query = self._shape(f"{self._block(0)}{self._names.attention}/query/kernel", 4 if self._scan else 3)
        dense = self._shape(f"{self._block(0)}{self._names.mlp}/Dense_0/kernel", 3 if self._scan else 2)
        patch_size = math.isqrt(embedding[0] // 3) if self.naflex else embedding[0]
        pool: Pool = "map" if self._map is not None else "tok" if self._has("cls") else "gap"
        head = self._shapes.get(self._head_key)
        resampling: PositionResampling = "naflex" if self.naflex else "big_vision"
        return ViTConfig(
            width=embedding[-1],
            depth=self._depth,
            mlp_dim=dense[-1],
            num_heads=query[-2],
            patch_size=patch_size,
            image_size=self._image_size(patch_size, options),
            pool=pool,
            position_embedding="learn" if self._position else "sincos2d",
            position_resampling=options.position_resampling or resampling,
            num_classes=options.head_classes(head[-1] if head else 0, head is not None),
        )

    def table(self, model: ViTConfig) -> Table:
        """Our parameters of this tower's keys."""
        width, patch_size = model.width, model.patch_size
        table: Table = {
            "patch_embed.weight": (
                one(self._key("embedding/kernel"), (3 * patch_size**2, width), partial(_linear_to_conv, patch_size))
                if self.naflex
                else one(self._key("embedding/kernel"), (patch_size, patch_size, 3, width), _conv)
            ),
            "patch_embed.bias": one(self._key("embedding/bias"), (width,)),
            **self._tokens(model),
        }
        for index in range(model.depth):
            table |= self._block_rules(model, index)
        table |= self._norm("norm", "Transformer/encoder_norm", width)
        if model.pool == "map":
            table |= self._map_rules(model)
        if model.num_classes:
            table["head.weight"] = one(self._key(_HEAD[0]), (width, model.num_classes), _transposed)
            table["head.bias"] = one(self._key(_HEAD[1]), (model.num_classes,))
        return table

    def _tokens(self, model: ViTConfig) -> Table:
        """Position embedding and class token."""
        width, tokens = model.width, model.grid[0] * model.grid[1]
        table: Table = {}
        if model.pool == "tok":
            table["cls"] = one(self._key("cls"), (1, 1, width))
        if self._position is None:
            return table
        key = self._key(self._position)
        if self.naflex:
            table["pos_embed"] = one(key, (*model.grid, width), lambda pos_YXD: pos_YXD.flatten(0, 1)[None])
        elif model.pool == "tok" and self._shapes[key][1] == tokens + 1:
            # The class token had a position of its own: what is added to it always is added once and for all.
            table["cls"] = plus(table["cls"], Part(key, (1, tokens + 1, width), lambda pos_1ND: pos_1ND[:, :1]))
            table["pos_embed"] = one(key, (1, tokens + 1, width), lambda pos_1ND: pos_1ND[:, 1:])
        else:
            table["pos_embed"] = one(key, (1, tokens, width))
        return table

    def _block_rules(self, model: ViTConfig, index: int) -> Table:
        ours, theirs, names = f"blocks.{index}", self._block(index), self._names
        attention = f"{theirs}{names.attention}"
        table = self._norm(f"{ours}.norm1", f"{theirs}{names.norm1}", model.width, index)
        table |= self._norm(f"{ours}.norm2", f"{theirs}{names.norm2}", model.width, index)
        for kind in ("weight", "bias"):
            parts = [self._projection(attention, name, kind, model, index) for name in ("query", "key", "value")]
            table[f"{ours}.attn.qkv.{kind}"] = rows(*parts)
        table |= self._out(f"{ours}.attn.proj", attention, model, index)
        return table | self._mlp(f"{ours}.mlp", f"{theirs}{names.mlp}", model, index)

    def _map_rules(self, model: ViTConfig) -> Table:
        attention = f"{self._map}MultiHeadDotProductAttention_0"
        table: Table = {"map_head.probe": one(self._key(f"{self._map}probe"), (1, 1, model.width))}
        for kind in ("weight", "bias"):
            query, key, value = (self._projection(attention, name, kind, model) for name in ("query", "key", "value"))
            table[f"map_head.q.{kind}"] = rows(query)
            table[f"map_head.kv.{kind}"] = rows(key, value)
        table |= self._out("map_head.proj", attention, model)
        table |= self._norm("map_head.norm", f"{self._map}LayerNorm_0", model.width)
        return table | self._mlp("map_head.mlp", f"{self._map}MlpBlock_0", model)

    def _projection(self, attention: str, name: str, kind: str, model: ViTConfig, index: int | None = None) -> Part:
        heads = (model.num_heads, model.head_dim)
        if kind == "weight":
            return self._part(f"{attention}/{name}/kernel", (model.width, *heads), _projection_kernel, index)
        return self._part(f"{attention}/{name}/bias", heads, lambda bias_HK: bias_HK.flatten(), index)

    def _out(self, ours: str, attention: str, model: ViTConfig, index: int | None = None) -> Table:
        shape = (model.num_heads, model.head_dim, model.width)
        return {
            f"{ours}.weight": rows(self._part(f"{attention}/out/kernel", shape, _out_kernel, index)),
            f"{ours}.bias": rows(self._part(f"{attention}/out/bias", (model.width,), same, index)),
        }

    def _mlp(self, ours: str, theirs: str, model: ViTConfig, index: int | None = None) -> Table:
        table: Table = {}
        for layer, shape in enumerate(((model.width, model.mlp_dim), (model.mlp_dim, model.width))):
            dense, linear = f"{theirs}/Dense_{layer}", f"{ours}.fc{layer + 1}"
            table[f"{linear}.weight"] = rows(self._part(f"{dense}/kernel", shape, _transposed, index))
            table[f"{linear}.bias"] = rows(self._part(f"{dense}/bias", shape[1:], same, index))
        return table

    def _norm(self, ours: str, theirs: str, width: int, index: int | None = None) -> Table:
        return {
            f"{ours}.weight": rows(self._part(f"{theirs}/scale", (width,), same, index)),
            f"{ours}.bias": rows(self._part(f"{theirs}/bias", (width,), same, index)),
        }

    def _part(self, key: str, shape: Shape, to_ours: Any, index: int | None) -> Part:
        """A part that is a tensor of its own, or layer `index` of a scan-stacked one."""
        if self._scan and index is not None:
            return Part(self._key(key), (self._depth, *shape), lambda stacked: to_ours(stacked[index]))
        return Part(self._key(key), shape, to_ours)

    def _image_size(self, patch_size: int, options: ImportOptions) -> tuple[int, int]:
        if self._position is None:
            if options.image_size is None:
                raise CheckpointMismatch(
                    f"{self._path} has no position embedding (sincos2d), so it does not say its image size: "
                    "give --image-size."
                )
            return options.image_size
        shape = self._shape(self._position, 3)
        tokens = shape[0] * shape[1]
        side = math.isqrt(tokens)
        if side**2 != tokens and not (self._has("cls") and side**2 == tokens - 1):
            raise CheckpointMismatch(f"{self._path}: the {tokens} positions of {self._position} are no square grid.")
        return side * patch_size, side * patch_size

    def _layers(self) -> int:
        pattern = re.compile(rf"{re.escape(self._prefix)}Transformer/encoderblock_(\d+)/")
        return len({match.group(1) for key in self._shapes if (match := pattern.match(key))})

    def _block(self, index: int) -> str:
        return "Transformer/encoderblock/" if self._scan else f"Transformer/encoderblock_{index}/"

    def _key(self, key: str) -> str:
        return f"{self._prefix}{key}"

    def _has(self, key: str) -> bool:
        return self._key(key) in self._shapes

    def _shape(self, key: str, rank: int | None = None) -> Shape:
        shape = self._shapes.get(self._key(key))
        if shape is None:
            raise CheckpointMismatch(f"{self._path} lacks the key {self._key(key)}.")
        if rank is not None and len(shape) != rank:
            raise CheckpointMismatch(f"{self._path} has {self._key(key)} with shape {list(shape)}, not {rank} axes.")
        return shape


def _preprocess(model: ViTConfig, *, naflex: bool, two_towers: bool) -> tuple[Preprocess, str]:
    """The convention of the evaluations that such files are published with, and a sentence that says so."""
    if naflex:
        limit = model.grid[0] * model.grid[1]
        chosen = Preprocess(
            image_size=model.image_size,
            resize="naflex",
            interpolation="bilinear",
            patch_size=model.patch_size,
            max_patches=limit,
        )
    elif two_towers:
        chosen = Preprocess(image_size=model.image_size, resize="squash", interpolation="bilinear")
    else:
        # resize_small(256) and central_crop(224)
        chosen = Preprocess(image_size=model.image_size, resize="crop", crop_fraction=0.875, interpolation="bilinear")
    return chosen, "the file says nothing about preprocessing: the convention of big_vision's evaluations was chosen"


def _text_config(shapes: Mapping[str, Shape], prefix: str) -> dict[str, Any]:
    """What the shapes say about a text tower."""
    find = {
        "vocab_size": ("Embed_0/embedding", 0),
        "width": ("Embed_0/embedding", 1),
        "length": ("pos_embedding", 1),
        "projection": ("head/kernel", 1),
    }
    return {name: shapes[f"{prefix}{key}"][axis] for name, (key, axis) in find.items() if f"{prefix}{key}" in shapes}


def _conv(kernel_ppCD: Tensor) -> Tensor:
    return kernel_ppCD.permute(3, 2, 0, 1)


def _linear_to_conv(patch_size: int, kernel_PD: Tensor) -> Tensor:
    """NaFlex embeds flattened patches, in the order (y, x, channel)."""
    return kernel_PD.T.unflatten(1, (patch_size, patch_size, 3)).permute(0, 3, 1, 2)  # type: ignore[no-untyped-call,no-any-return]


def _projection_kernel(kernel_DHK: Tensor) -> Tensor:
    return kernel_DHK.flatten(1).T


def _out_kernel(kernel_HKD: Tensor) -> Tensor:
    return kernel_HKD.flatten(0, 1).T


def _transposed(kernel: Tensor) -> Tensor:
    return kernel.T
