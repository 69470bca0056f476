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

from sovit.checkpoint import TOKENIZER_FILES
from sovit.config import Gelu, ViTConfig
from sovit.convert.files import SafetensorsFiles, safetensors_in
from sovit.convert.foreign import Foreign, ImportOptions
from sovit.convert.rules import Part, Shape, Table, keys, linear_to_conv, one, rows
from sovit.errors import CheckpointMismatch
from sovit.jsonio import STRICT, from_dict, read_json
from sovit.labels import numbered
from sovit.preprocess import Preprocess
from sovit.spec import ModelSpec, Score

MODEL_TYPES: Final = ("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model")
_PREFIXES: Final = ("vision_model.", "vision_model.vision_model.", "")
_SCALARS: Final = ("logit_scale", "logit_bias")
_GELUS: Final[dict[str, Gelu]] = {
    "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh", "gelu_fast": "tanh", "gelu": "erf", "gelu_python": "erf",
}  # fmt: skip
_FILTERS: Final = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers
PROCESSOR_CONFIGS: Final = ("preprocessor_config.json", "processor_config.json")
_DEFAULT_CLASSES: Final = 2
_STATED_SIZE: Final = 224  # an image processor's, where it states none
_CLASSIFIERS: Final = {"SiglipForImageClassification", "Siglip2ForImageClassification"}
# Fields of a config that change nothing about what a model computes; any other that is unknown is refused.
_NEUTRAL: Final = frozenset(
    {
        "model_type", "architectures", "attention_dropout", "initializer_factor", "initializer_range", "dtype",
        "torch_dtype", "transformers_version", "_name_or_path", "id2label", "label2id", "num_labels", "problem_type",
        "output_attentions", "output_hidden_states", "return_dict", "use_cache", "tie_word_embeddings", "is_decoder",
        "chunk_size_feed_forward", "_attn_implementation_autoset", "pad_token_id", "bos_token_id", "eos_token_id",
    }
)  # fmt: skip
_PROCESSOR_NEUTRAL: Final = frozenset(
    {
        "processor_class", "feature_extractor_type", "data_format", "input_data_format", "return_tensors", "device",
        "do_convert_rgb", "default_to_square", "crop_size", "disable_grouping", "_valid_processor_keys",
    }
)  # fmt: skip
_PROCESSORS: Final = tuple(
    f"{name}{kind}" for name in ("SiglipImageProcessor", "Siglip2ImageProcessor") for kind in ("", "Fast", "Pil")
)


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """`vision_config` with the defaults of its class; `num_patches` is NaFlex's in place of `image_size`."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

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
class TextConfig:
    """`text_config` with the defaults of its class: it says which tensors the text tower must have."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="ignore")

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    vocab_size: int = 32000
    max_position_embeddings: int = 64
    projection_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """`size` of an image processor."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class ImageProcessor:
    """An image processor's config, with the defaults of its class; a value that sovit cannot follow is refused."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    image_processor_type: str = _PROCESSORS[0]
    size: ImageSize | int = _STATED_SIZE
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
    vision = from_dict(
        VisionConfig,
        _without(_NEUTRAL, config if alone else config.get("vision_config", {})),
        f"{where}: vision_config",
    )
    files = SafetensorsFiles([weights]) if weights else safetensors_in(folder)
    classifier = _is_classifier(config, files.shapes, where)
    labels, score = _labels(config, where) if classifier else ((), "softmax")
    classes = options.head_classes(len(labels), "classifier.weight" in files.shapes)
    model = _model(vision, naflex, classifier, classes, options, where)
    preprocess, silent = _preprocess(folder, model, naflex)
    prefix = next((p for p in _PREFIXES if f"{p}embeddings.patch_embedding.weight" in files.shapes), _PREFIXES[0])
    # The classifier averages the tokens: it has a pooling head and does not use it.
    pooling_head = keys(_map_head(f"{prefix}head", model.width, model.mlp_dim)) if classifier else {}
    counters = [key for key in files.shapes if key.endswith("embeddings.position_ids")]  # 0, 1, 2...; in old files
    dropped = ["classifier.weight", "classifier.bias"] if options.drop_head else []
    has_text = any(key.startswith("text_model.") for key in files.shapes)
    names = labels if len(labels) == classes else numbered(classes)
    return Foreign(
        layout="transformers",
        weights=files,
        spec=ModelSpec(model=model, preprocess=preprocess, labels=options.names(classes, names), score=score),
        table=_table(model, prefix, naflex),
        ignored=frozenset([*(key for key in pooling_head if key in files.shapes), *counters, *dropped]),
        text=_text(config, files.shapes, where) if has_text else {},
        text_config=config.get("text_config") or {},
        files=tuple(folder / name for name in TOKENIZER_FILES if (folder / name).is_file()) if has_text else (),
        silent=silent,
    )


def _is_classifier(config: Mapping[str, Any], shapes: Mapping[str, Shape], where: str) -> bool:
    """Whether this is `SiglipForImageClassification`, which pools otherwise; name and weights must agree."""
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointMismatch(f"{where}: architectures is no list of names.")
    in_file = "classifier.weight" in shapes
    if names and in_file != bool(_CLASSIFIERS & set(names)):
        raise CheckpointMismatch(
            f"{where}: architectures is {', '.join(names)}, and the weights {'have a' if in_file else 'lack the'} "
            "classifier.weight."
        )
    return in_file


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
        naflex=naflex,
        num_classes=classes,
    )


def _table(model: ViTConfig, prefix: str, naflex: bool) -> Table:
    width, mlp_dim, patch_size = model.width, model.mlp_dim, model.patch_size
    tokens = model.grid[0] * model.grid[1]
    embeddings = f"{prefix}embeddings"
    patch = f"{embeddings}.patch_embedding.weight"
    table: Table = {
        "patch_embed.weight": (
            one(patch, (width, 3 * patch_size**2), partial(linear_to_conv, patch_size))
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


def _text(config: Mapping[str, Any], shapes: Mapping[str, Shape], where: str) -> dict[str, Shape]:
    """The keys a text tower must have, with their shapes, and the scalars of the loss."""
    text = from_dict(TextConfig, _without(frozenset(), config.get("text_config", {})), f"{where}: text_config")
    width, mlp_dim = text.hidden_size, text.intermediate_size
    table: Table = {}
    for index in range(text.num_hidden_layers):
        layer = f"text_model.encoder.layers.{index}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            table |= _layer(f"{layer}.{name}", f"{layer}.self_attn.{name}", (width, width))
        for name, shape in (
            ("layer_norm1", (width,)), ("layer_norm2", (width,)), ("mlp.fc1", (mlp_dim, width)),
            ("mlp.fc2", (width, mlp_dim)),
        ):  # fmt: skip
            table |= _layer(f"{layer}.{name}", f"{layer}.{name}", shape)
    table |= _layer("norm", "text_model.final_layer_norm", (width,))
    table |= _layer("head", "text_model.head", (text.projection_size or width, width))
    return {
        "text_model.embeddings.token_embedding.weight": (text.vocab_size, width),
        "text_model.embeddings.position_embedding.weight": (text.max_position_embeddings, width),
        **keys(table),
        **{name: () if shapes.get(name) == () else (1,) for name in _SCALARS},
    }


def _preprocess(folder: Path, model: ViTConfig, naflex: bool) -> tuple[Preprocess, tuple[str, ...]]:
    """What the image processor's config says, and the fields it is silent about because there is none."""
    data, where = _processor_config(folder)
    found = from_dict(ImageProcessor, _without(_PROCESSOR_NEUTRAL, data), where)
    if found.image_processor_type not in _PROCESSORS:
        raise CheckpointMismatch(
            f"{where}: image_processor_type is {found.image_processor_type}, sovit knows {', '.join(_PROCESSORS)}."
        )
    if abs(found.rescale_factor * 255 - 1) > 1e-6:
        raise CheckpointMismatch(f"{where}: rescale_factor is {found.rescale_factor}, sovit knows 1/255.")
    if found.resample is not None and not 0 <= found.resample < len(_FILTERS):
        raise CheckpointMismatch(f"{where}: resample is {found.resample}, no number of a filter of Pillow's.")
    if data and not naflex:
        size = found.size
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
    # With no config at all every value is the default of the class, as transformers itself would take it.
    silent = ("resize", "interpolation", "mean", "std", *(["max_patches"] if naflex else []))
    return from_dict(Preprocess, chosen, where), () if data else silent


def _processor_config(folder: Path) -> tuple[dict[str, Any], str]:
    """The image processor's config: a file of its own, or a part of the processor's."""
    for name in PROCESSOR_CONFIGS:
        if (folder / name).is_file():
            data = read_json(folder / name)
            data = data.get("image_processor", data) if isinstance(data, dict) else None
            if not isinstance(data, dict):
                raise CheckpointMismatch(f"{folder / name} is no JSON object.")
            return data, f"{folder / name}"
    return {}, f"{folder}"


def _without(neutral: frozenset[str], data: Any) -> Any:
    """A config's fields without those that change nothing; null means the default."""
    if not isinstance(data, Mapping):
        return data
    return {name: value for name, value in data.items() if value is not None and name not in neutral}


def _labels(config: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], Score]:
    """Names of the classes, and what transformers' own pipeline makes scores with."""
    problem = config.get("problem_type")
    if problem not in (None, "single_label_classification", "multi_label_classification"):
        raise CheckpointMismatch(f"{where}: problem_type is {problem!r}; sovit takes classifiers.")
    names = config.get("id2label")
    if names is None:
        labels = numbered(_DEFAULT_CLASSES)
    elif isinstance(names, Mapping) and set(names) == {str(index) for index in range(len(names))}:
        labels = tuple(str(names[str(index)]) for index in range(len(names)))
    else:
        raise CheckpointMismatch(f"{where}: id2label does not name the classes 0 to N-1.")
    return labels, "sigmoid" if problem == "multi_label_classification" or len(labels) == 1 else "softmax"
