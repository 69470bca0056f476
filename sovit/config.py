"""The model's configuration and the "So400m/14" notation."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, get_args

from pydantic import ConfigDict

from sovit.errors import ConfigError
from sovit.jsonio import STRICT
from sovit.variants import TRAITS, VARIANTS, Shape

Pool = Literal["map", "gap", "tok"]
PositionEmbedding = Literal["learn", "sincos2d"]
Gelu = Literal["erf", "tanh"]
PositionResampling = Literal["big_vision", "timm", "transformers", "naflex"]

# Far beyond any model; what is over them is a typing error or hostile, and would ask for all of the memory.
_BOUNDS: Final[dict[str, tuple[int, int]]] = {
    "width": (1, 65_536), "depth": (1, 1_024), "mlp_dim": (1, 1_048_576), "num_heads": (1, 1_024),
    "patch_size": (1, 1_024), "registers": (0, 1_024), "num_classes": (0, 1_048_576),
}  # fmt: skip
_LARGEST_SIDE: Final = 16_384
_MOST_PATCHES: Final = 262_144


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Everything that decides what the vision transformer computes, apart from its weights.

    `image_size` is (Y, X) in pixels. A side that is no multiple of `patch_size` loses its last pixels, as with a VALID
    convolution: 384 px with patch 14 gives 27 patches a side, the same as 378 px. `num_classes` 0 means no head.

    `registers` are learned tokens after the class token and before the patches (timm's order); no pooling sees them.
    `fc_norm` moves the last LayerNorm behind the pooling. `layer_scale` gives every residual branch a learned factor
    per channel. `position_resampling` names the code base whose rule makes a position embedding for another grid (see
    `sovit.position`). `naflex` models also take images of any grid, as patches.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    patch_size: int
    image_size: tuple[int, int] = (224, 224)
    pool: Pool = "map"
    position_embedding: PositionEmbedding = "learn"
    gelu: Gelu = "tanh"
    layer_norm_eps: float = 1e-6
    registers: int = 0
    qkv_bias: bool = True
    layer_scale: bool = False
    fc_norm: bool = False
    position_resampling: PositionResampling = "big_vision"
    naflex: bool = False
    num_classes: int = 0

    def __post_init__(self) -> None:
        for name, (least, most) in _BOUNDS.items():
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must lie in {least}..{most:,}.")
        if max(self.image_size) > _LARGEST_SIDE or self.grid[0] * self.grid[1] > _MOST_PATCHES:
            raise ConfigError(
                f"image_size {self.image_size} at patch_size {self.patch_size} is over the limit of {_LARGEST_SIDE:,} "
                f"pixels a side and {_MOST_PATCHES:,} patches."
            )
        if self.width % self.num_heads:
            raise ConfigError(f"width {self.width} does not divide into {self.num_heads} heads.")
        if min(self.image_size) < self.patch_size:
            raise ConfigError(f"image_size {self.image_size} is smaller than one patch of {self.patch_size} pixels.")
        if self.position_embedding == "sincos2d" and (self.width % 4 or self.width < 8):
            raise ConfigError(f"sincos2d needs a width of at least 8 that is a multiple of 4, not {self.width}.")
        if self.naflex and (self.num_prefix_tokens or self.position_embedding != "learn"):
            raise ConfigError("naflex needs a learned position embedding, no class token and no registers.")
        if not 0 < self.layer_norm_eps < 1:
            raise ConfigError(f"layer_norm_eps is {self.layer_norm_eps}, it must lie between 0 and 1.")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.num_heads

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: the class token where there is one, and the registers."""
        return (self.pool == "tok") + self.registers

    @property
    def num_tokens(self) -> int:
        """Tokens that pass through the blocks."""
        return self.num_prefix_tokens + self.grid[0] * self.grid[1]

    @property
    def traits(self) -> str:
        """What it has beside the paper's ViT, in words; empty for most."""
        found = {
            f"{self.registers} register{'s' if self.registers > 1 else ''}": self.registers > 0,
            "LayerScale": self.layer_scale,
            "no bias in qkv": not self.qkv_bias,
            "norm after pooling": self.fc_norm,
        }
        return ", ".join(name for name, has in found.items() if has)


def parse_image_size(text: str) -> tuple[int, int]:
    """`"224"` or `"224x336"` (Y x X, in pixels) to (Y, X)."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() and int(side) for side in sides):
        raise ConfigError(f"image size {text!r} is not a number of pixels such as 224, or YxX such as 224x336.")
    return int(sides[0]), int(sides[-1])


def parse_variant(text: str) -> tuple[Shape, int]:
    """`"So400m/14"`, or by number `"1152,27,4304,16/14"`, to its shape and patch size."""
    name, _, patch = text.partition("/")
    shape = _by_number(name) if "," in name else _by_name(name)
    if not (patch.isascii() and patch.isdigit() and int(patch)):
        raise ConfigError(f"variant {text!r} lacks its patch size, as in {name}/14.")
    return shape, int(patch)


def variant_config(
    text: str,
    *,
    image_size: tuple[int, int] = ViTConfig.image_size,
    num_classes: int = ViTConfig.num_classes,
) -> ViTConfig:
    """The configuration of a variant: its shape, its traits, big_vision's conventions.

    It is named, such as `"So400m/14"`, or WIDTH,DEPTH,MLP,HEADS/PATCH by number, such as `"128,8,256,8/8"`; there a
    pooling may follow the heads: `"128,8,256,8,gap/8"`.
    """
    shape, patch_size = parse_variant(text)
    name = text.partition("/")[0]
    traits: dict[str, Any] = TRAITS.get(name, {})
    if pool := name.split(",")[_NUMBERS:]:
        traits = {"pool": pool[0]}
    return ViTConfig(**shape._asdict(), **traits, patch_size=patch_size, image_size=image_size, num_classes=num_classes)


def by_number(config: ViTConfig) -> str:
    """The notation of a configuration by number: `variant_config` makes the same shape, patches and pooling of it."""
    sizes = (config.width, config.depth, config.mlp_dim, config.num_heads)
    pool = () if config.pool == ViTConfig.pool else (config.pool,)
    return f"{','.join(map(str, (*sizes, *pool)))}/{config.patch_size}"


_NUMBERS: Final = len(Shape._fields)
_DIGITS: Final = 9  # more than any bound has


def _by_name(name: str) -> Shape:
    if name not in VARIANTS:
        close = difflib.get_close_matches(name, VARIANTS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(
            f"no variant is called {name!r}: {hint}known are {', '.join(VARIANTS)}, and any shape by number as in "
            "1152,27,4304,16/14."
        )
    return VARIANTS[name]


def _by_number(name: str) -> Shape:
    sizes, pool = name.split(",")[:_NUMBERS], name.split(",")[_NUMBERS:]
    if len(sizes) < _NUMBERS:
        raise ConfigError(f"shape {name!r} has {len(sizes)} numbers, it must have four: WIDTH,DEPTH,MLP,HEADS.")
    for field, size in zip(Shape._fields, sizes, strict=True):
        if not (size.isascii() and size.isdigit() and len(size) <= _DIGITS):
            raise ConfigError(f"shape {name!r}: {field} is {size!r}, it must be a number of 1 to {_DIGITS} digits.")
    if pool and (len(pool) > 1 or pool[0] not in get_args(Pool)):
        raise ConfigError(f"shape {name!r}: after the four numbers may stand one pooling, {', '.join(get_args(Pool))}.")
    return Shape(*map(int, sizes))
