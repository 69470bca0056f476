"""big_vision npz: per-layer and scan-stacked, one tower or two, NaFlex, and the names of the first ViT files.

Names and layouts: google-research/big_vision @0127fb6, models/vit.py and its `fix_old_checkpoints`,
models/proj/image_text. A file says nothing about preprocessing: pixels in [-1, 1] are the convention, the rest is a
choice that is printed (and resizes with Pillow, which smoothes where big_vision's evaluations do not).

In the shapes below: W width, H heads, K head_dim, M mlp_dim, p patch_size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from torch import Tensor

from sovit.config import Pool, PositionResampling, ViTConfig
from sovit.convert.files import NpzFile
from sovit.convert.foreign import Foreign, ImportOptions
from sovit.convert.rules import Part, Shape, Table, keys, linear_to_conv, one, plus, rows, same
from sovit.errors import CheckpointMismatch
from sovit.labels import numbered
from sovit.preprocess import Preprocess
from sovit.spec import ModelSpec

_IMAGE_TOWERS: Final = ("params/img/", "img/", "params/", "")
_TRAINING_STATE: Final = ("opt/", "chrono/")  # of a training checkpoint, beside params/
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
    two_towers = prefix.endswith("img/")
    if two_towers and tower.has_head and options.num_classes is None and not options.drop_head:
        raise CheckpointMismatch(
            f"{path} has {prefix}{_HEAD[0]}, which projects the image to the text's space and is no classifier: "
            "--drop-head leaves it out, --num-classes N takes it as a head."
        )
    model = tower.config(options)
    text, text_config = _text(weights.shapes, prefix.removesuffix("img/")) if two_towers else ({}, {})
    state = [key for key in weights.shapes if prefix.startswith("params/") and key.startswith(_TRAINING_STATE)]
    return Foreign(
        layout="big_vision",
        weights=weights,
        spec=ModelSpec(
            model=model,
            preprocess=_preprocess(model, two_towers),
            labels=options.names(model.num_classes, numbered(model.num_classes)),
        ),
        table=tower.table(model),
        ignored=frozenset([*state, *(f"{prefix}{key}" for key in _HEAD if options.drop_head)]),
        text=text,
        text_config=text_config,
        silent=("resize", "interpolation", "crop_fraction", "mean", "std"),
        notes=("the state of the training run in the file is left out",) if state else (),
    )


@dataclass(frozen=True)
class _Layers:
    """The keys of transformer layers below a prefix, in either layout, with the shapes a configuration asks for."""

    prefix: str
    encoder: str
    names: _Names
    scan: bool
    depth: int
    width: int
    mlp_dim: int
    heads: tuple[int, int]  # H, K

    @classmethod
    def find(cls, where: str, shapes: Mapping[str, Shape], prefix: str, encoder: str) -> _Layers:
        """Tell layout and sizes by keys and shapes. Raises `CheckpointMismatch` where a telling key is missing."""
        scan = f"{prefix}{encoder}/encoderblock/LayerNorm_0/scale" in shapes
        first = f"{prefix}{encoder}/encoderblock" + ("/" if scan else "_0/")
        names = _FIRST_NAMES if f"{first}LayerNorm_2/scale" in shapes else _NAMES
        query = _shape(where, shapes, f"{first}{names.attention}/query/kernel", 4 if scan else 3)
        dense = _shape(where, shapes, f"{first}{names.mlp}/Dense_0/kernel", 3 if scan else 2)
        pattern = re.compile(rf"{re.escape(prefix)}{encoder}/encoderblock_(\d+)/")
        found = {match.group(1) for key in shapes if (match := pattern.match(key))}
        depth = query[0] if scan else len(found)
        return cls(prefix, encoder, names, scan, depth, query[-3], dense[-1], (query[-2], query[-1]))

    def table(self) -> Table:
        """All layers, and the norm after them."""
        table: Table = {}
        for index in range(self.depth):
            ours, theirs = f"blocks.{index}", f"{self.encoder}/encoderblock" + ("" if self.scan else f"_{index}")
            table |= self.norm(f"{ours}.norm1", f"{theirs}/{self.names.norm1}", index)
            table |= self.norm(f"{ours}.norm2", f"{theirs}/{self.names.norm2}", index)
            attention = f"{theirs}/{self.names.attention}"
            for kind in ("weight", "bias"):
                parts = [self.projection(f"{attention}/{name}", kind, index) for name in ("query", "key", "value")]
                table[f"{ours}.attn.qkv.{kind}"] = rows(*parts)
            table |= self.out(f"{ours}.attn.proj", attention, index)
            table |= self.mlp(f"{ours}.mlp", f"{theirs}/{self.names.mlp}", index)
        return table | self.norm("norm", f"{self.encoder}/encoder_norm")

    def projection(self, theirs: str, kind: str, index: int | None = None) -> Part:
        """Query, key or value."""
        if kind == "weight":
            return self._part(f"{theirs}/kernel", (self.width, *self.heads), _projection_kernel, index)
        return self._part(f"{theirs}/bias", self.heads, lambda bias_HK: bias_HK.flatten(), index)

    def out(self, ours: str, attention: str, index: int | None = None) -> Table:
        """The projection of the heads' outputs."""
        return {
            f"{ours}.weight": rows(
                self._part(f"{attention}/out/kernel", (*self.heads, self.width), _out_kernel, index)
            ),
            f"{ours}.bias": rows(self._part(f"{attention}/out/bias", (self.width,), same, index)),
        }

    def mlp(self, ours: str, theirs: str, index: int | None = None) -> Table:
        """Both dense layers."""
        table: Table = {}
        for layer, shape in enumerate(((self.width, self.mlp_dim), (self.mlp_dim, self.width))):
            dense, linear = f"{theirs}/Dense_{layer}", f"{ours}.fc{layer + 1}"
            table[f"{linear}.weight"] = rows(self._part(f"{dense}/kernel", shape, _transposed, index))
            table[f"{linear}.bias"] = rows(self._part(f"{dense}/bias", shape[1:], same, index))
        return table

    def norm(self, ours: str, theirs: str, index: int | None = None) -> Table:
        """Scale and bias of a LayerNorm."""
        return {
            f"{ours}.weight": rows(self._part(f"{theirs}/scale", (self.width,), same, index)),
            f"{ours}.bias": rows(self._part(f"{theirs}/bias", (self.width,), same, index)),
        }

    def _part(self, key: str, shape: Shape, to_ours: Callable[[Tensor], Tensor], index: int | None) -> Part:
        """A part that is a tensor of its own, or layer `index` of a scan-stacked one."""
        if self.scan and index is not None:
            return Part(f"{self.prefix}{key}", (self.depth, *shape), lambda stacked: to_ours(stacked[index]))
        return Part(f"{self.prefix}{key}", shape, to_ours)


class _Tower:
    """An image tower: which of the layouts it has, and from that its configuration and its table."""

    def __init__(self, path: Path, prefix: str, shapes: Mapping[str, Shape]) -> None:
        self._where = str(path)
        self._prefix = prefix
        self._shapes = shapes
        self._embedding = shapes[f"{prefix}embedding/kernel"]
        self._naflex = len(self._embedding) == 2
        self._layers = _Layers.find(self._where, shapes, prefix, "Transformer")
        # Before it had a module of its own, the MAP head's parts lay beside the blocks.
        self._map = next((where for where in ("MAPHead_0/", "") if self._has(f"{where}probe")), None)
        self._position = next((key for key in _POSITIONS if self._has(key)), None)
        self.has_head = self._has(_HEAD[0])

    def config(self, options: ImportOptions) -> ViTConfig:
        """The configuration that the shapes imply."""
        embedding = _shape(self._where, self._shapes, self._key("embedding/kernel"), 2 if self._naflex else 4)
        patch_size = math.isqrt(embedding[0] // 3) if self._naflex else embedding[0]
        pool: Pool = "map" if self._map is not None else "tok" if self._has("cls") else "gap"
        classes = _shape(self._where, self._shapes, self._key(_HEAD[0]), 2)[-1] if self.has_head else 0
        resampling: PositionResampling = "naflex" if self._naflex else "big_vision"
        return ViTConfig(
            width=embedding[-1],
            depth=self._layers.depth,
            mlp_dim=self._layers.mlp_dim,
            num_heads=self._layers.heads[0],
            patch_size=patch_size,
            image_size=self._image_size(patch_size, options),
            pool=pool,
            position_embedding="learn" if self._position else "sincos2d",
            position_resampling=options.position_resampling or resampling,
            naflex=self._naflex,
            num_classes=options.head_classes(classes, self.has_head),
        )

    def table(self, model: ViTConfig) -> Table:
        """Our parameters of this tower's keys."""
        width, patch_size = model.width, model.patch_size
        patch = self._key("embedding/kernel")
        table: Table = {
            "patch_embed.weight": (
                one(patch, (3 * patch_size**2, width), lambda kernel_PD: linear_to_conv(patch_size, kernel_PD.T))
                if self._naflex
                else one(patch, (patch_size, patch_size, 3, width), lambda kernel: kernel.permute(3, 2, 0, 1))
            ),
            "patch_embed.bias": one(self._key("embedding/bias"), (width,)),
            **self._tokens(model),
            **self._layers.table(),
        }
        if model.pool == "map":
            table |= self._map_head(width)
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
        if self._naflex:
            table["pos_embed"] = one(key, (*model.grid, width), lambda pos_YXD: pos_YXD.flatten(0, 1)[None])
        elif model.pool == "tok" and self._shapes[key][1] == tokens + 1:
            # The class token had a position of its own: what is added to it always is added once and for all.
            table["cls"] = plus(table["cls"], Part(key, (1, tokens + 1, width), lambda pos_1ND: pos_1ND[:, :1]))
            table["pos_embed"] = one(key, (1, tokens + 1, width), lambda pos_1ND: pos_1ND[:, 1:])
        else:
            table["pos_embed"] = one(key, (1, tokens, width))
        return table

    def _map_head(self, width: int) -> Table:
        attention = f"{self._map}MultiHeadDotProductAttention_0"
        table: Table = {"map_head.probe": one(self._key(f"{self._map}probe"), (1, 1, width))}
        for kind in ("weight", "bias"):
            query, key, value = (
                self._layers.projection(f"{attention}/{name}", kind) for name in ("query", "key", "value")
            )
            table[f"map_head.q.{kind}"] = rows(query)
            table[f"map_head.kv.{kind}"] = rows(key, value)
        table |= self._layers.out("map_head.proj", attention)
        table |= self._layers.norm("map_head.norm", f"{self._map}LayerNorm_0")
        return table | self._layers.mlp("map_head.mlp", f"{self._map}MlpBlock_0")

    def _image_size(self, patch_size: int, options: ImportOptions) -> tuple[int, int]:
        if self._position is None:
            if options.image_size is None:
                raise CheckpointMismatch(
                    f"{self._where} has no position embedding (sincos2d), so it does not say its image size: "
                    "give --image-size."
                )
            return options.image_size
        shape = _shape(self._where, self._shapes, self._key(self._position), 3)
        tokens = shape[0] * shape[1]
        side = math.isqrt(tokens)
        if side**2 != tokens and not (self._has("cls") and side**2 == tokens - 1):
            raise CheckpointMismatch(f"{self._where}: the {tokens} positions of {self._position} are no square grid.")
        return side * patch_size, side * patch_size

    def _key(self, key: str) -> str:
        return f"{self._prefix}{key}"

    def _has(self, key: str) -> bool:
        return self._key(key) in self._shapes


def _shape(where: str, shapes: Mapping[str, Shape], key: str, rank: int) -> Shape:
    shape = shapes.get(key)
    if shape is None:
        raise CheckpointMismatch(f"{where} lacks the key {key}.")
    if len(shape) != rank or 0 in shape:
        raise CheckpointMismatch(f"{where} has {key} with shape {list(shape)}, not {rank} axes of at least 1.")
    return shape


def _preprocess(model: ViTConfig, two_towers: bool) -> Preprocess:
    """The frame of the evaluations that such files are published with."""
    if model.naflex:
        return Preprocess(
            image_size=model.image_size,
            resize="naflex",
            interpolation="bilinear",
            patch_size=model.patch_size,
            max_patches=model.grid[0] * model.grid[1],
        )
    if two_towers:
        return Preprocess(image_size=model.image_size, resize="squash", interpolation="bilinear")
    # resize_small(256) and central_crop(224)
    return Preprocess(image_size=model.image_size, resize="crop", crop_fraction=0.875, interpolation="bilinear")


def _text(shapes: Mapping[str, Shape], prefix: str) -> tuple[dict[str, Shape], dict[str, Any]]:
    """The keys of the text tower, its layers with the shapes they must have, the loss's scalars; and its sizes."""
    tower = f"{prefix}txt/"
    scalars = {key: () if shapes.get(key) == () else (1,) for key in (f"{prefix}{scalar}" for scalar in _SCALARS)}
    if not any(key.startswith(tower) for key in shapes):
        return {key: shape for key, shape in scalars.items() if key in shapes}, {}
    layers = _Layers.find(tower, shapes, tower, "Encoder_0")
    embedding = _shape(tower, shapes, f"{tower}Embed_0/embedding", 2)
    position = _shape(tower, shapes, f"{tower}pos_embedding", 3)
    # SigLIP's i18n files have no head on the text.
    head = {key: shapes[key] for name in _HEAD if (key := f"{tower}{name}") in shapes}
    own = {
        f"{tower}Embed_0/embedding": (embedding[0], layers.width),
        f"{tower}pos_embedding": (1, position[1], layers.width),
    }
    sizes = {
        "vocab_size": embedding[0], "length": position[1], "width": layers.width, "depth": layers.depth,
        "mlp_dim": layers.mlp_dim, "num_heads": layers.heads[0],
    }  # fmt: skip
    return own | head | scalars | keys(layers.table()), sizes


def _projection_kernel(kernel_DHK: Tensor) -> Tensor:
    return kernel_DHK.flatten(1).T


def _out_kernel(kernel_HKD: Tensor) -> Tensor:
    return kernel_HKD.flatten(0, 1).T


def _transposed(kernel: Tensor) -> Tensor:
    return kernel.T
