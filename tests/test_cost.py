from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sovit.config import Pool, PositionEmbedding, ViTConfig, variant_config
from sovit.cost import cost, macs, parameters
from sovit.model import ViT
from sovit.variants import VARIANTS


def built_parameters(config: ViTConfig) -> int:
    with torch.device("meta"):
        model = ViT(config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("pool", ["map", "gap", "tok"])
@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_equal_the_built_module(name: str, pool: Pool) -> None:
    config = replace(variant_config(f"{name}/14", num_classes=1000), pool=pool)
    assert parameters(config) == built_parameters(config)


@given(
    st.integers(1, 4), st.integers(1, 6), st.integers(1, 3), st.integers(1, 40), st.integers(1, 20), st.integers(0, 9),
    st.sampled_from(["learn", "sincos2d"]), st.sampled_from(["map", "gap", "tok"]), st.integers(0, 5),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)  # fmt: skip
def test_parameters_of_any_shape(
    heads: int,
    eighths: int,
    depth: int,
    mlp_dim: int,
    patch: int,
    classes: int,
    position: PositionEmbedding,
    pool: Pool,
    registers: int,
    switches: tuple[bool, bool, bool],
) -> None:
    qkv_bias, layer_scale, fc_norm = switches
    config = ViTConfig(
        width=8 * heads * eighths, depth=depth, mlp_dim=mlp_dim, num_heads=heads, patch_size=patch,
        image_size=(20, 33), num_classes=classes, position_embedding=position, pool=pool,
        registers=registers, qkv_bias=qkv_bias, layer_scale=layer_scale, fc_norm=fc_norm,
    )  # fmt: skip
    assert parameters(config) == built_parameters(config)


# Published: paper table 1 (XLA counts), open_clip's and timm's profiles; the rest by hand from the formula.
@pytest.mark.parametrize(
    ("variant", "size", "gflops"),
    [
        ("So400m/14", 224, 220.4),
        ("So400m/14", 384, 670.4),
        ("So400m/14", 518, 1368),
        ("S/16", 224, 9.3),
        ("B/16", 224, 35.4),
        ("L/16", 384, 384),
        ("So150m/14", 224, 71.4),
        ("g/14", 518, 3199),
        ("G/14", 518, 5655),
    ],
)
def test_flops_match_the_published_tables(variant: str, size: int, gflops: float) -> None:
    found = cost(variant_config(variant, image_size=(size, size))).flops / 1e9
    assert found == pytest.approx(gflops, rel=4e-3)  # the tables are rounded to two or three digits


def test_flops_of_a_model_counted_by_hand() -> None:
    # 4 patches of 2x2x3 pixels, width 4, one block, MLP 8, MAP head, 5 classes.
    config = ViTConfig(
        width=4, depth=1, mlp_dim=8, num_heads=1, patch_size=2, image_size=(4, 4), pool="map", num_classes=5
    )
    embed = 4 * 12 * 4
    block = 4 * (3 * 4 * 4) + 4 * 4 * 4 + 4 * 4 * 4 + 4 * (4 * 4) + 4 * (4 * 8) + 4 * (8 * 4)
    head = 4 * 4 + 4 * (2 * 4 * 4) + 4 * 4 + 4 * 4 + 4 * 4 + 4 * 8 + 8 * 4
    assert macs(config) == embed + block + head + 4 * 5


@pytest.mark.parametrize(
    "traits", [{}, {"pool": "gap", "registers": 3}, {"pool": "map", "registers": 2}, {"pool": "tok"}]
)
def test_flops_agree_with_a_counter_on_the_real_module(traits: dict[str, Any]) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    config = replace(variant_config("mu/16", image_size=(64, 64), num_classes=10), **traits)
    model = ViT(config).eval()
    # The counter sees nothing of the CPU's fused attention, so the plain one is forced.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    assert counter.get_total_flops() == 2 * macs(config)


def test_bytes() -> None:
    config = variant_config("So400m/14")
    found = cost(config)
    assert found.weight_bytes == 4 * 427_680_704
    assert found.activation_bytes == 4 * 256 * (1152 + 2 * 4304)
