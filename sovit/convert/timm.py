"""timm checkpoints: `config.json` and safetensors as on the hub.

An architecture's name decides what its weights compute, down to the GELU: SigLIP at patch 14 has the erf form, at patch
16 the tanh form. The table below holds what timm 1.0.31 builds for each name (models/vision_transformer.py);
`model_args` in a config change it, as in timm. Names of fields are timm's.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import ConfigDict
from torch import Tensor

from sovit.config import Gelu, Pool, ViTConfig
from sovit.convert.files import SafetensorsFiles, safetensors_in
from sovit.convert.foreign import Foreign, ImportOptions
from sovit.convert.rules import Part, Table, columns, one, plus
from sovit.errors import CheckpointMismatch
from sovit.jsonio import STRICT, from_dict
from sovit.labels import imagenet_1k, numbered
from sovit.preprocess import Interpolation, Preprocess, ResizeRule
from sovit.spec import ModelSpec
from sovit.variants import VARIANTS, Shape


@dataclass(frozen=True)
class Architecture:
    """What a name stands for. `fc_norm` None: after average pooling only, as in timm."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    patch_size: int
    class_token: bool = True
    global_pool: Literal["token", "avg", "map"] = "token"
    reg_tokens: int = 0
    no_embed_class: bool = False
    qkv_bias: bool = True
    init_values: float | None = None
    fc_norm: bool | None = None
    act_layer: Literal["gelu", "gelu_tanh"] = "gelu"


@dataclass(frozen=True, kw_only=True)
class PretrainedCfg:
    """What a config says about preprocessing, with timm's defaults (data/config.py)."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="ignore")

    input_size: tuple[Literal[3], int, int] = (3, 224, 224)
    interpolation: Interpolation = "bicubic"
    crop_pct: float = 0.875
    crop_mode: Literal["center", "squash", "border"] = "center"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    num_classes: int = 0
    label_names: tuple[str, ...] | dict[str, str] = ()


def _of(shape: Shape, patch_size: int, **traits: Any) -> Architecture:
    return Architecture(shape.width, shape.depth, shape.num_heads, shape.mlp_dim, patch_size, **traits)


_TI, _S, _M, _B, _L = (VARIANTS[name] for name in ("Ti", "S", "M", "B", "L"))
_H, _g, _G, _G_OPT = (VARIANTS[name] for name in ("H", "g", "G", "g-opt"))
_SO400M, _SO150M, _SO150M2 = (VARIANTS[name] for name in ("So400m", "So150m-896", "So150m2"))
_MEDIUM_D, _BETWIXT = Shape(512, 20, 2048, 8), Shape(640, 12, 2560, 10)
_LITTLE, _WEE = Shape(320, 14, 1792, 5), Shape(256, 14, 1280, 4)

_MAP: Final[dict[str, Any]] = {"class_token": False, "global_pool": "map"}
_GAP: Final[dict[str, Any]] = {"class_token": False, "global_pool": "avg", "fc_norm": False}
_TANH: Final[dict[str, Any]] = {"act_layer": "gelu_tanh"}
_TIPS: Final[dict[str, Any]] = {"init_values": 1.0, "reg_tokens": 1, "no_embed_class": True}
_DINO: Final[dict[str, Any]] = {"init_values": 1e-5}
_DINO_REG: Final[dict[str, Any]] = {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True}
_SBB: Final[dict[str, Any]] = {
    "class_token": False, "global_pool": "avg", "init_values": 1e-5, "no_embed_class": True,
}  # fmt: skip
_MEDIUM_GAP: Final[dict[str, Any]] = {**_GAP, "qkv_bias": False, "init_values": 1e-6}

# By name without the image size at its end; a full name goes before.
ARCHITECTURES: Final[dict[str, Architecture]] = {
    "vit_tiny_patch16": _of(_TI, 16),
    "vit_small_patch32": _of(_S, 32),
    "vit_small_patch16": _of(_S, 16),
    "vit_small_patch8": _of(_S, 8),
    "vit_base_patch32": _of(_B, 32),
    "vit_base_patch16": _of(_B, 16),
    "vit_base_patch8": _of(_B, 8),
    "vit_large_patch32": _of(_L, 32),
    "vit_large_patch16": _of(_L, 16),
    "vit_large_patch14": _of(_L, 14),
    "vit_huge_patch14": _of(_H, 14),
    "vit_giant_patch14": _of(_g, 14),
    "vit_gigantic_patch14": _of(_G, 14),
    "vit_medium_patch16_gap": _of(_M, 16, **_MEDIUM_GAP),
    "vit_betwixt_patch16_gap": _of(_BETWIXT, 16, **_MEDIUM_GAP),
    "vit_base_patch16_gap": replace(_of(_B, 16, **_GAP), num_heads=16),
    "vit_huge_patch14_gap": _of(_H, 14, **_GAP),
    "vit_huge_patch16_gap": _of(_H, 16, **_GAP),
    "vit_giant_patch16_gap": _of(_g, 16, **_GAP),
    "vit_wee_patch16_reg1_gap": _of(_WEE, 16, **_SBB, reg_tokens=1),
    "vit_little_patch16_reg1_gap": _of(_LITTLE, 16, **_SBB, reg_tokens=1),
    "vit_little_patch16_reg4_gap": _of(_LITTLE, 16, **_SBB, reg_tokens=4),
    "vit_medium_patch16_reg1_gap": _of(_M, 16, **_SBB, reg_tokens=1),
    "vit_medium_patch16_reg4_gap": _of(_M, 16, **_SBB, reg_tokens=4),
    "vit_mediumd_patch16_reg4_gap": _of(_MEDIUM_D, 16, **_SBB, reg_tokens=4),
    "vit_betwixt_patch16_reg1_gap": _of(_BETWIXT, 16, **_SBB, reg_tokens=1),
    "vit_betwixt_patch16_reg4_gap": _of(_BETWIXT, 16, **_SBB, reg_tokens=4),
    "vit_base_patch16_reg4_gap": replace(_of(_B, 16, **_SBB, reg_tokens=4), init_values=None),
    "vit_so150m_patch16_reg4_map": _of(_SO150M, 16, **_MAP, reg_tokens=4),
    "vit_so150m_patch16_reg4_gap": _of(_SO150M, 16, **_GAP, reg_tokens=4),
    "vit_so150m2_patch16_reg1_gap": _of(
        _SO150M2, 16, class_token=False, global_pool="avg", reg_tokens=1, init_values=1e-5, qkv_bias=False
    ),
    "vit_small_patch14_dinov2": _of(_S, 14, **_DINO),
    "vit_base_patch14_dinov2": _of(_B, 14, **_DINO),
    "vit_large_patch14_dinov2": _of(_L, 14, **_DINO),
    "vit_small_patch14_reg4_dinov2": _of(_S, 14, **_DINO_REG),
    "vit_base_patch14_reg4_dinov2": _of(_B, 14, **_DINO_REG),
    "vit_large_patch14_reg4_dinov2": _of(_L, 14, **_DINO_REG),
    "vit_base_patch14_reg1_tipsv2": _of(_B, 14, **_TIPS),
    "vit_large_patch14_reg1_tipsv2": _of(_L, 14, **_TIPS),
    "vit_so400m_patch14_reg1_tipsv2": _of(_SO400M, 14, **_TIPS),
    "vit_base_patch32_siglip": _of(_B, 32, **_MAP, **_TANH),
    "vit_base_patch16_siglip": _of(_B, 16, **_MAP),
    "vit_large_patch16_siglip": _of(_L, 16, **_MAP),
    "vit_large_patch16_siglip_512": _of(_L, 16, **_MAP, **_TANH),
    "vit_so400m_patch14_siglip": _of(_SO400M, 14, **_MAP),
    "vit_so400m_patch16_siglip": _of(_SO400M, 16, **_MAP, **_TANH),
    "vit_giantopt_patch16_siglip": _of(_G_OPT, 16, **_MAP, **_TANH),
    "vit_base_patch32_siglip_gap": _of(_B, 32, **_GAP, **_TANH),
    "vit_base_patch16_siglip_gap": _of(_B, 16, **_GAP),
    "vit_large_patch16_siglip_gap": _of(_L, 16, **_GAP),
    "vit_large_patch16_siglip_gap_512": _of(_L, 16, **_GAP, **_TANH),
    "vit_so400m_patch14_siglip_gap": _of(_SO400M, 14, **_GAP),
    "vit_so400m_patch16_siglip_gap": _of(_SO400M, 16, **_GAP, **_TANH),
    "vit_giantopt_patch16_siglip_gap": _of(_G_OPT, 16, **_GAP, **_TANH),
}

_POOLS: Final[dict[str, Pool]] = {"token": "tok", "avg": "gap", "map": "map"}
_GELUS: Final[dict[str, Gelu]] = {"gelu": "erf", "gelu_tanh": "tanh"}
# Arguments that change how a model is trained or fed, not what it computes on images of its own size.
_NEUTRAL_ARGS: Final = frozenset(
    {
        "num_classes", "dynamic_img_size", "dynamic_img_pad", "strict_img_size", "drop_rate",
        "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "weight_init",
        "fix_init",
    }
)  # fmt: skip
_RESIZE: Final[dict[str, ResizeRule]] = {"center": "crop", "squash": "squash", "border": "border"}
_IMAGENET_CLASSES: Final = 1000


def describe(folder: Path, config: Mapping[str, Any], options: ImportOptions, weights: Path | None = None) -> Foreign:
    """Describe a timm folder, or one safetensors file whose `config.json` is given.

    Raises `CheckpointMismatch` or `ConfigError` for an architecture or an argument that this model does not have.
    """
    where = f"{folder / 'config.json'}"
    files = SafetensorsFiles([weights]) if weights else safetensors_in(folder)
    # Older configs have one level, and the later ones repeat some of it above.
    data = _object(config.get("pretrained_cfg") or config, f"{where}: pretrained_cfg")
    data |= {name: config[name] for name in ("num_classes", "label_names") if name in config}
    data = {name: value for name, value in data.items() if value is not None}
    arguments = _object(config.get("model_args") or {}, f"{where}: model_args")
    pretrained = from_dict(PretrainedCfg, data, where)
    architecture, image_size = _with_arguments(_architecture(str(config["architecture"]), where), arguments, where)
    image_size = image_size or pretrained.input_size[1:]
    classes = options.head_classes(pretrained.num_classes, "head.weight" in files.shapes)
    model = _model(architecture, image_size, classes, options)
    preprocess = Preprocess(
        image_size=image_size,
        resize=_RESIZE[pretrained.crop_mode],
        crop_fraction=pretrained.crop_pct,
        interpolation=pretrained.interpolation,
        mean=pretrained.mean,
        std=pretrained.std,
    )
    names = {"interpolation": "interpolation", "crop_fraction": "crop_pct", "mean": "mean", "std": "std"}
    labels, notes = _labels(pretrained, classes, options, where)
    pool = config.get("global_pool", architecture.global_pool)
    if pool != architecture.global_pool:
        notes.append(
            f"the config's global_pool {pool!r} is not what timm builds for this name, {architecture.global_pool!r}; "
            "timm goes by the name, and so does this import"
        )
    return Foreign(
        layout="timm",
        weights=files,
        spec=ModelSpec(model=model, preprocess=preprocess, labels=options.names(classes, labels)),
        table=_table(model, architecture),
        ignored=frozenset({"head.weight", "head.bias"} if options.drop_head else ()),
        silent=tuple(ours for ours, theirs in names.items() if theirs not in data),
        notes=tuple(notes),
    )


def _architecture(name: str, where: str) -> Architecture:
    name = name.partition(".")[0]
    found = ARCHITECTURES.get(name) or ARCHITECTURES.get(re.sub(r"_\d+$", "", name))
    if found is None:
        close = difflib.get_close_matches(name, ARCHITECTURES, n=3)
        hint = f"the nearest it knows are {', '.join(close)}" if close else "it takes plain ViTs only"
        raise CheckpointMismatch(f"{where}: {name} is no architecture that sovit can compute; {hint}.")
    return found


def _with_arguments(
    architecture: Architecture, arguments: Mapping[str, Any], where: str
) -> tuple[Architecture, tuple[int, int] | None]:
    """The architecture with the config's `model_args` in force, and the image size (Y, X) they name."""
    given = {name: value for name, value in arguments.items() if name not in _NEUTRAL_ARGS}
    size = given.pop("img_size", None)
    # The ratio is of the width that is in force at the end.
    ratio = given.pop("mlp_ratio", architecture.mlp_dim / architecture.embed_dim)
    if given.pop("in_chans", 3) != 3:
        raise CheckpointMismatch(f"{where}: model_args has in_chans {arguments['in_chans']}, sovit takes RGB images.")
    changed = from_dict(Architecture, asdict(architecture) | given, f"{where}: model_args")
    if not isinstance(ratio, (int, float)) or not 0 < ratio < 100:
        raise CheckpointMismatch(f"{where}: model_args has mlp_ratio {ratio!r}, which is no sensible number.")
    sides = [size] * 2 if isinstance(size, int) else size
    if size is not None and not (isinstance(sides, list) and [type(side) for side in sides] == [int, int]):
        raise CheckpointMismatch(f"{where}: model_args has img_size {size!r}, no number of pixels and no pair.")
    # The tiny addition undoes the rounding of a ratio that was divided out above; timm cuts the fraction off.
    return replace(changed, mlp_dim=int(changed.embed_dim * ratio + 1e-6)), (sides[0], sides[1]) if sides else None


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise CheckpointMismatch(f"{what} is no object.")
    return dict(value)


def _model(architecture: Architecture, image_size: tuple[int, int], classes: int, options: ImportOptions) -> ViTConfig:
    pool = _POOLS[architecture.global_pool]
    if pool == "tok" and not architecture.class_token:
        raise CheckpointMismatch("the config asks for pooling by the class token and has no class token.")
    fc_norm = architecture.global_pool == "avg" if architecture.fc_norm is None else architecture.fc_norm
    return ViTConfig(
        width=architecture.embed_dim,
        depth=architecture.depth,
        mlp_dim=architecture.mlp_dim,
        num_heads=architecture.num_heads,
        patch_size=architecture.patch_size,
        image_size=image_size,
        pool=pool,
        gelu=_GELUS[architecture.act_layer],
        # A class token that no pooling looks at is one more register.
        registers=architecture.reg_tokens + (architecture.class_token and pool != "tok"),
        qkv_bias=architecture.qkv_bias,
        layer_scale=bool(architecture.init_values),
        fc_norm=fc_norm,
        position_resampling=options.position_resampling or "timm",
        num_classes=classes,
    )


def _table(model: ViTConfig, architecture: Architecture) -> Table:
    """Timm's names are ours but for the embeddings, the pooling and the last norm."""
    width, mlp_dim, patch_size = model.width, model.mlp_dim, model.patch_size
    norm = "fc_norm" if model.fc_norm else "norm"
    table: Table = {
        "patch_embed.weight": one("patch_embed.proj.weight", (width, 3, patch_size, patch_size)),
        "patch_embed.bias": one("patch_embed.proj.bias", (width,)),
        **_tokens(model, architecture),
        "norm.weight": one(f"{norm}.weight", (width,)),
        "norm.bias": one(f"{norm}.bias", (width,)),
    }
    for index in range(model.depth):
        block = f"blocks.{index}"
        shapes = {
            "norm1": (width,), "norm2": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width),
            "mlp.fc1": (mlp_dim, width), "mlp.fc2": (width, mlp_dim),
        }  # fmt: skip
        for layer, shape in shapes.items():
            table[f"{block}.{layer}.weight"] = one(f"{block}.{layer}.weight", shape)
            if layer != "attn.qkv" or model.qkv_bias:
                table[f"{block}.{layer}.bias"] = one(f"{block}.{layer}.bias", shape[:1])
        if model.layer_scale:
            for layer in ("ls1", "ls2"):
                table[f"{block}.{layer}.gamma"] = one(f"{block}.{layer}.gamma", (width,))
    if model.pool == "map":
        table["map_head.probe"] = one("attn_pool.latent", (1, 1, width))
        shapes = {
            "q": (width, width), "kv": (2 * width, width), "proj": (width, width), "norm": (width,),
            "mlp.fc1": (mlp_dim, width), "mlp.fc2": (width, mlp_dim),
        }  # fmt: skip
        for layer, shape in shapes.items():
            table[f"map_head.{layer}.weight"] = one(f"attn_pool.{layer}.weight", shape)
            table[f"map_head.{layer}.bias"] = one(f"attn_pool.{layer}.bias", shape[:1])
    if model.num_classes:
        table["head.weight"] = one("head.weight", (model.num_classes, width))
        table["head.bias"] = one("head.bias", (model.num_classes,))
    return table


def _tokens(model: ViTConfig, architecture: Architecture) -> Table:
    """Class token, registers and positions. What timm adds to a prefix token as its position is added here."""
    width, patches = model.width, model.grid[0] * model.grid[1]
    prefix = architecture.class_token + architecture.reg_tokens
    positions = patches if architecture.no_embed_class else prefix + patches
    first = positions - patches
    pos_shape = (1, positions, width)

    cls = Part("cls_token", (1, 1, width))
    registers = Part("reg_token", (1, architecture.reg_tokens, width))
    own = [part for part, count in ((cls, architecture.class_token), (registers, architecture.reg_tokens)) if count]
    table: Table = {"pos_embed": one("pos_embed", pos_shape, lambda pos_1ND: pos_1ND[:, first:])}
    if model.pool == "tok":
        table["cls"] = columns(own.pop(0))
    if own:
        table["registers"] = columns(*own)
    if first:
        spans = {"cls": (0, 1), "registers": (prefix - model.registers, prefix)}
        for name in table.keys() & spans.keys():
            table[name] = plus(table[name], Part("pos_embed", pos_shape, partial(_span, *spans[name])))
    return table


def _span(begin: int, end: int, pos_1ND: Tensor) -> Tensor:
    return pos_1ND[:, begin:end]


def _labels(
    pretrained: PretrainedCfg, classes: int, options: ImportOptions, where: str
) -> tuple[tuple[str, ...], list[str]]:
    """Names of the classes, and what to tell about them."""
    names = pretrained.label_names
    if isinstance(names, dict):  # by index, where there are gaps
        unknown = names.keys() - {str(index) for index in range(classes)}
        if unknown and options.labels is None and classes:
            raise CheckpointMismatch(
                f"{where}: label_names names class {min(unknown)!r}, the head has the classes 0 to {classes - 1}; "
                "give --labels FILE with one name a line."
            )
        names = tuple(names.get(str(index), f"class {index}") for index in range(classes))
    if names and classes and options.labels is None:
        if len(names) != classes or len(set(names)) != classes:
            raise CheckpointMismatch(
                f"{where}: label_names holds {len(set(names))} different names for {classes} classes; "
                "give --labels FILE with one name a line."
            )
        return names, []
    if classes == len(imagenet_1k()):
        note = "1,000 classes without names: those of ImageNet-1k were taken, as timm does (--labels changes it)"
        return tuple(imagenet_1k().values()), [] if options.labels else [note]
    return numbered(classes), []
