from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovit.config import Pool, ViTConfig, by_number, parse_image_size, parse_variant, variant_config
from sovit.errors import ConfigError
from sovit.jsonio import from_dict, to_dict
from sovit.variants import VARIANTS


def test_a_variant_is_its_shape_and_patch_size() -> None:
    config = variant_config("So400m/14", image_size=(224, 224))
    assert (config.width, config.depth, config.mlp_dim, config.num_heads) == (1152, 27, 4304, 16)
    assert (config.patch_size, config.head_dim, config.num_tokens) == (14, 72, 256)


def test_a_variant_by_number() -> None:
    config = variant_config("128,8,256,4/8", image_size=(32, 32), num_classes=10)
    assert config == ViTConfig(
        width=128, depth=8, mlp_dim=256, num_heads=4, patch_size=8, image_size=(32, 32), num_classes=10
    )
    assert variant_config("1152,27,4304,16/14") == variant_config("So400m/14")
    assert variant_config("1152,27,4304,16,gap/14").pool == "gap"
    with pytest.raises(ConfigError, match="width 128 does not divide into 7 heads"):
        variant_config("128,8,256,7/8")
    with pytest.raises(ConfigError, match="depth is 0"):
        variant_config("128,0,256,8/8")


@given(
    st.tuples(st.integers(1, 64), st.integers(1, 64), st.integers(1, 64), st.integers(1, 9999)),
    st.sampled_from(["map", "gap", "tok"]),
)
def test_the_notation_by_number_there_and_back(sizes: tuple[int, int, int, int], pool: Pool) -> None:
    heads, per_head, depth, mlp_dim = sizes
    config = ViTConfig(width=heads * per_head, depth=depth, mlp_dim=mlp_dim, num_heads=heads, patch_size=16, pool=pool)
    assert variant_config(by_number(config)) == config


def test_384_pixels_with_patch_14_are_27_patches_a_side() -> None:
    assert variant_config("So400m/14", image_size=(384, 384)).num_tokens == 729
    assert variant_config("So400m/14", image_size=(378, 378)).num_tokens == 729


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("So400/14", "did you mean So400m"),
        ("So400m", "lacks its patch size"),
        ("So400m/0", "lacks its patch size"),
        ("So400m/x", "lacks its patch size"),
        ("", "no variant is called ''"),
        ("1,2,3/8", "'1,2,3' has 3 numbers, it must have four: WIDTH,DEPTH,MLP,HEADS"),
        ("128,8,256,8", "lacks its patch size, as in 128,8,256,8/14"),
        ("128,8,25x,8/8", "mlp_dim is '25x', it must be a number"),
        ("128,,256,8/8", "depth is '', it must be a number"),
        ("128,8,256,²/8", "num_heads is '²', it must be a number"),
        ("9999999999,8,256,8/8", "width is '9999999999', it must be a number of 1 to 9 digits"),
        ("128,8,256,8,max/8", "may stand one pooling, map, gap, tok"),
        ("128,8,256,8,gap,map/8", "may stand one pooling, map, gap, tok"),
    ],
)
def test_a_wrong_variant_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_variant(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width is 0"),
        ({"num_heads": 5}, "does not divide into 5 heads"),
        ({"image_size": (8, 32)}, "smaller than one patch"),
        ({"num_classes": -1}, "num_classes is -1"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps"),
        ({"width": 6, "num_heads": 2, "position_embedding": "sincos2d"}, "multiple of 4"),
    ],
)
def test_a_shape_that_makes_no_sense_is_refused(changes: dict[str, object], message: str) -> None:
    fields: dict[str, object] = {"width": 32, "depth": 1, "mlp_dim": 64, "num_heads": 2, "patch_size": 16}
    with pytest.raises(ConfigError, match=message):
        ViTConfig(**(fields | changes))  # type: ignore[arg-type]


def test_unknown_missing_and_wrong_keys_raise() -> None:
    good = to_dict(variant_config("mu/16"))
    assert from_dict(ViTConfig, good, "x") == variant_config("mu/16")
    with pytest.raises(ConfigError, match="x: hidden_size: unknown field"):
        from_dict(ViTConfig, {**good, "hidden_size": 3}, "x")
    with pytest.raises(ConfigError, match="x: width: missing"):
        from_dict(ViTConfig, {key: value for key, value in good.items() if key != "width"}, "x")
    with pytest.raises(ConfigError, match="x: gelu: "):
        from_dict(ViTConfig, {**good, "gelu": "quick"}, "x")
    with pytest.raises(ConfigError, match=r"x: layer_norm_eps"):
        from_dict(ViTConfig, {**good, "layer_norm_eps": float("nan")}, "x")


@given(st.sampled_from(sorted(VARIANTS)), st.integers(1, 64), st.integers(64, 512), st.integers(64, 512))
def test_json_round_trip(name: str, patch: int, y: int, x: int) -> None:
    config = variant_config(f"{name}/{patch}", image_size=(y, x), num_classes=7)
    assert from_dict(ViTConfig, to_dict(config), "x") == config


@given(st.integers(1, 9999), st.integers(1, 9999))
def test_image_size_notation(y: int, x: int) -> None:
    assert parse_image_size(f"{y}x{x}") == (y, x)
    assert parse_image_size(str(y)) == (y, y)


@pytest.mark.parametrize("text", ["", "0", "-3", "2x", "1x2x3", "a", "²"])
def test_a_wrong_image_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="image size"):
        parse_image_size(text)
