"""Hugging Face transformers: SigLIP, SigLIP 2 and its NaFlex form, as on the hub.

Names: models/siglip and models/siglip2 of transformers 5.24. Hub files put the image tower under `vision_model.`; the
vision model saved alone by transformers 5 has no prefix. A config leaves out what equals the class's default, so the
defaults are part of the format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import ConfigDict
from torch import Tensor

from sovit.config import Gelu, ViTConfig
from sovit.convert.files import SafetensorsFiles, safetensors_in
from sovit.convert.foreign import Foreign, ImportOptions
from sovit.convert.rules import Part, Shape, Table, one, rows
from sovit.errors import CheckpointMismatch
from sovit.jsonio import from_dict, read_json
from sovit.labels import numbered
from sovit.preprocess import Preprocess
from sovit.spec import ModelSpec

MODEL_TYPES: Final = ("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model")
_PREFIXES: Final = ("vision_model.", "vision_model.vision_model.", "")
_SCALARS: Final = ("logit_scale", "logit_bias")
_TOKENIZER: Final = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "spiece.model",
    "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip
_GELUS: Final[dict[str, Gelu]] = {
    "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh", "gelu_fast": "tanh", "gelu": "erf", "gelu_python": "erf",
}  # fmt: skip
_FILTERS: Final = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers
_DEFAULT_CLASSES: Final = 2
_OTHER_FIELDS: Final = ConfigDict(extra="ignore")


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """`vision_config` with the defaults of its class; `num_patches` is NaFlex's in place of `image_size`."""

    __pydantic_config__: ClassVar[ConfigDict] = _OTHER_FIELDS

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: Literal[3] = 3
    image_size: int | tuple[int, int] = 224
    patch_size: int = 16
    num_patches: int = 256
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    vision_use_head: bool = True


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """`size` of an image processor."""

    __pydantic_config__: ClassVar[ConfigDict] = _OTHER_FIELDS

    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class ImageProcessor:
    """An image processor's config, with the defaults of its class; a value that sovit cannot follow is refused."""

    __pydantic_config__: ClassVar[ConfigDict] = _OTHER_FIELDS

    size: ImageSize | int | None = None
    resample: int | None = None
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    do_resize: Literal[True] = True
    do_rescale: Literal[True] = True
    do_center_crop: Literal[False] = False
    do_pad: Literal[False] = False
    patch_size: int | None = None
    max_num_patches: int = 256


def describe(folder: Path, config: Mapping[str, Any], options: ImportOptions, weights: Path | None = None) -> Foreign:
    """Describe a transformers folder, or one safetensors file whose `config.json` is given."""
    where = f"{folder / 'config.json'}"
    if config["model_type"] not in MODEL_TYPES:
        raise CheckpointMismatch(
            f"{where}: model_type is {config['model_type']!r}, sovit imports {', '.join(MODEL_TYPES)}."
        )
    naflex = config["model_type"].startswith("siglip2")
    alone = config["model_type"].endswith("_vision_model")
    vision = from_dict(VisionConfig, _without_null(config if alone else config.get("vision_config", {})), where)
    files = SafetensorsFiles([weights]) if weights else safetensors_in(folder)
    classifier = any(str(name).endswith("ForImageClassification") for name in config.get("architectures") or ())
    labels = _labels(config, where) if classifier else ()
    classes = options.head_classes(len(labels), "classifier.weight" in files.shapes)
    model = _model(vision, naflex, classifier, classes, options, where)
    preprocess, note = _preprocess(folder, model, naflex)
    prefix = next((p for p in _PREFIXES if f"{p}embeddings.patch_embedding.weight" in files.shapes), _PREFIXES[0])
    # The classifier averages the tokens: it has a pooling head and does not use it.
    unused = [key for key in files.shapes if classifier and key.startswith(f"{prefix}head.")]
    counters = [key for key in files.shapes if key.endswith("embeddings.position_ids")]  # 0, 1, 2...; in old files
    dropped = ["classifier.weight", "classifier.bias"] if options.drop_head else []
    return Foreign(
        layout="transformers",
        weights=files,
        spec=ModelSpec(
            model=model, preprocess=preprocess, labels=labels if len(labels) == classes else numbered(classes)
        ),
        table=_table(model, prefix, naflex),
        ignored=frozenset(unused + counters + dropped),
        text=tuple(key for key in files.shapes if key.startswith("text_model.") or key in _SCALARS),
        text_config=config.get("text_config") or {},
        files=tuple(folder / name for name in _TOKENIZER if (folder / name).is_file()),
        notes=(note,) if note else (),
    )


def _model(
    vision: VisionConfig, naflex: bool, classifier: bool, classes: int, options: ImportOptions, where: str
) -> ViTConfig:
    if vision.hidden_act not in _GELUS:
        raise CheckpointMismatch(f"{where}: hidden_act is {vision.hidden_act!r}, sovit knows {', '.join(_GELUS)}.")
    size = math.isqrt(max(0, vision.num_patches)) * vision.patch_size if naflex else vision.image_size
    return ViTConfig(
        width=vision.hidden_size,
        depth=vision.num_hidden_layers,
        mlp_dim=vision.intermediate_size,
        num_heads=vision.num_attention_heads,
        patch_size=vision.patch_size,
        image_size=(size, size) if isinstance(size, int) else size,
        pool="map" if vision.vision_use_head and not classifier else "gap",
        gelu=_GELUS[vision.hidden_act],
        layer_norm_eps=vision.layer_norm_eps,
        position_resampling=options.position_resampling or ("naflex" if naflex else "transformers"),
        num_classes=classes,
    )


def _table(model: ViTConfig, prefix: str, naflex: bool) -> Table:
    width, mlp_dim, patch_size = model.width, model.mlp_dim, model.patch_size
    tokens = model.grid[0] * model.grid[1]
    embeddings = f"{prefix}embeddings"
    patch = f"{embeddings}.patch_embedding.weight"
    table: Table = {
        "patch_embed.weight": (
            one(patch, (width, 3 * patch_size**2), partial(_linear_to_conv, patch_size))
            if naflex
            else one(patch, (width, 3, patch_size, patch_size))
        ),
        "patch_embed.bias": one(f"{embeddings}.patch_embedding.bias", (width,)),
        "pos_embed": one(f"{embeddings}.position_embedding.weight", (tokens, width), lambda pos_ND: pos_ND[None]),
    }
    for index in range(model.depth):
        ours, theirs = f"blocks.{index}", f"{prefix}encoder.layers.{index}"
        for kind in ("weight", "bias"):
            shape: Shape = (width, width) if kind == "weight" else (width,)
            table[f"{ours}.attn.qkv.{kind}"] = rows(
                *(Part(f"{theirs}.self_attn.{name}_proj.{kind}", shape) for name in ("q", "k", "v"))
            )
        for layer, source, shape in (
            ("attn.proj", "self_attn.out_proj", (width, width)),
            ("norm1", "layer_norm1", (width,)),
            ("norm2", "layer_norm2", (width,)),
            ("mlp.fc1", "mlp.fc1", (mlp_dim, width)),
            ("mlp.fc2", "mlp.fc2", (width, mlp_dim)),
        ):
            table |= _layer(f"{ours}.{layer}", f"{theirs}.{source}", shape)
    table |= _layer("norm", f"{prefix}post_layernorm", (width,))
    if model.pool == "map":
        table |= _map_head(f"{prefix}head", width, mlp_dim)
    if model.num_classes:
        table |= _layer("head", "classifier", (model.num_classes, width))
    return table


def _map_head(head: str, width: int, mlp_dim: int) -> Table:
    table: Table = {"map_head.probe": one(f"{head}.probe", (1, 1, width))}
    for kind, shape in (("weight", (3 * width, width)), ("bias", (3 * width,))):
        packed = f"{head}.attention.in_proj_{kind}"  # query, key and value, one below the other
        table[f"map_head.q.{kind}"] = one(packed, shape, lambda qkv: qkv[:width])
        table[f"map_head.kv.{kind}"] = one(packed, shape, lambda qkv: qkv[width:])
    for layer, source, layer_shape in (
        ("proj", "attention.out_proj", (width, width)),
        ("norm", "layernorm", (width,)),
        ("mlp.fc1", "mlp.fc1", (mlp_dim, width)),
        ("mlp.fc2", "mlp.fc2", (width, mlp_dim)),
    ):
        table |= _layer(f"map_head.{layer}", f"{head}.{source}", layer_shape)
    return table


def _layer(ours: str, theirs: str, shape: Shape) -> Table:
    return {f"{ours}.weight": one(f"{theirs}.weight", shape), f"{ours}.bias": one(f"{theirs}.bias", shape[:1])}


def _linear_to_conv(patch_size: int, kernel_DP: Tensor) -> Tensor:
    """NaFlex embeds flattened patches, in the order (y, x, channel)."""
    return kernel_DP.unflatten(1, (patch_size, patch_size, 3)).permute(0, 3, 1, 2)  # type: ignore[no-untyped-call,no-any-return]


def _preprocess(folder: Path, model: ViTConfig, naflex: bool) -> tuple[Preprocess, str]:
    """What the image processor's config says, and a note where there is none."""
    data, where = _processor_config(folder)
    found = from_dict(ImageProcessor, _without_null(data), where)
    if abs(found.rescale_factor * 255 - 1) > 1e-6:
        raise CheckpointMismatch(f"{where}: rescale_factor is {found.rescale_factor}, sovit knows 1/255.")
    if found.resample is not None and not 0 <= found.resample < len(_FILTERS):
        raise CheckpointMismatch(f"{where}: resample is {found.resample}, no number of a filter of Pillow's.")
    size = found.size
    if size is not None and not naflex:
        sides = (size, size) if isinstance(size, int) else (size.height, size.width)
        if sides != model.image_size:
            raise CheckpointMismatch(
                f"{where}: size is {list(sides)}, the model takes images of {list(model.image_size)}."
            )
    default = "bilinear" if naflex else "bicubic"
    chosen: dict[str, Any] = {
        "image_size": model.image_size,
        "interpolation": default if found.resample is None else _FILTERS[found.resample],
        "mean": found.image_mean if found.do_normalize else (0.0, 0.0, 0.0),
        "std": found.image_std if found.do_normalize else (1.0, 1.0, 1.0),
    }
    if naflex:
        chosen |= {
            "resize": "naflex",
            "patch_size": found.patch_size or model.patch_size,
            "max_patches": found.max_num_patches,
        }
    note = "" if data else "there is no preprocessor_config.json: the defaults of transformers' class were taken"
    return from_dict(Preprocess, chosen, where), note


def _processor_config(folder: Path) -> tuple[dict[str, Any], str]:
    """The image processor's config: a file of its own, or a part of the processor's."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            data = read_json(folder / name)
            data = data.get("image_processor", data) if isinstance(data, dict) else None
            if not isinstance(data, dict):
                raise CheckpointMismatch(f"{folder / name} is no JSON object.")
            return data, f"{folder / name}"
    return {}, f"{folder}"


def _without_null(data: Any) -> Any:
    """Null in a config means the default."""
    return {name: value for name, value in data.items() if value is not None} if isinstance(data, Mapping) else data


def _labels(config: Mapping[str, Any], where: str) -> tuple[str, ...]:
    names = config.get("id2label")
    if names is None:
        return numbered(_DEFAULT_CLASSES)
    if not isinstance(names, Mapping) or set(names) != {str(index) for index in range(len(names))}:
        raise CheckpointMismatch(f"{where}: id2label does not name the classes 0 to N-1.")
    return tuple(str(names[str(index)]) for index in range(len(names)))
