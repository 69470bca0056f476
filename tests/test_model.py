from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sovit.config import Pool, ViTConfig
from sovit.model import ViT, resample_position_embedding, sincos2d
from sovit.parity import relative_error
from tests.big_vision_weights import convert
from tests.conftest import random_model, tiny_spec

GOLDEN = Path(__file__).parent / "golden" / "big_vision"
CONFIG = ViTConfig(width=64, depth=3, mlp_dim=172, num_heads=4, patch_size=8, image_size=(32, 32), num_classes=7)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("classifier_map", CONFIG),
        ("classifier_gap_scan", replace(CONFIG, pool="gap")),
        ("encoder_tok", replace(CONFIG, pool="tok", num_classes=0)),
    ],
)
def test_outputs_equal_big_vision(name: str, config: ViTConfig) -> None:
    golden = np.load(GOLDEN / f"{name}.io.npz")
    model = ViT(config).eval()
    model.load_state_dict(convert(np.load(GOLDEN / f"{name}.weights.npz"), config.depth))
    with torch.inference_mode():
        out = model(torch.from_numpy(golden["images_nhwc"]).permute(0, 3, 1, 2))
    assert relative_error(out.tokens.numpy(), golden["tokens"]) < 1e-5
    assert relative_error(out.pre_logits.numpy(), golden["pre_logits"]) < 1e-5
    if out.logits is None:
        assert config.num_classes == 0
    else:
        assert relative_error(out.logits.numpy(), golden["logits"]) < 1e-5


def test_the_wrong_gelu_is_told_apart() -> None:
    golden = np.load(GOLDEN / "classifier_map.io.npz")
    model = ViT(replace(CONFIG, gelu="erf")).eval()
    model.load_state_dict(convert(np.load(GOLDEN / "classifier_map.weights.npz"), CONFIG.depth))
    with torch.inference_mode():
        out = model(torch.from_numpy(golden["images_nhwc"]).permute(0, 3, 1, 2))
    assert relative_error(out.pre_logits.numpy(), golden["pre_logits"]) > 1e-5


def test_position_embedding_is_resampled_as_big_vision_does() -> None:
    golden = np.load(GOLDEN / "posemb_resample.npz")
    old, new = torch.from_numpy(golden["old"]), golden["new"]
    sides = [int(np.sqrt(table.shape[1])) for table in (old, new)]
    found = resample_position_embedding(old, (sides[0], sides[0]), (sides[1], sides[1]))
    assert relative_error(found.numpy(), new) < 1e-6


@given(st.integers(1, 6), st.integers(1, 6), st.integers(2, 9), st.integers(2, 9))
def test_resampling_keeps_the_corners(y: int, x: int, new_y: int, new_x: int) -> None:
    table = torch.randn(1, y * x, 3)
    found = resample_position_embedding(table, (y, x), (new_y, new_x)).reshape(1, new_y, new_x, 3)
    grid = table.reshape(1, y, x, 3)
    torch.testing.assert_close(found[:, 0, 0], grid[:, 0, 0])
    torch.testing.assert_close(found[:, -1, -1], grid[:, -1, -1])


def test_sincos2d_is_the_published_formula() -> None:
    table = sincos2d((2, 3), 8)[0].numpy()
    y, x = 1, 2
    omega = np.array([1.0, 1e-4])
    expected = np.concatenate([np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)])
    np.testing.assert_allclose(table[y * 3 + x], expected, atol=1e-7)


@pytest.mark.parametrize("pool", ["map", "gap", "tok"])
@pytest.mark.parametrize("position", ["learn", "sincos2d"])
def test_every_parameter_gets_a_gradient(pool: Pool, position: str) -> None:
    model = random_model(tiny_spec(pool=pool, position_embedding=position).model)
    out = model(torch.randn(2, 3, 16, 16))
    assert out.logits is not None
    out.logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@given(st.integers(1, 5))
def test_an_image_alone_and_in_a_batch_give_the_same(batch: int) -> None:
    model = random_model(tiny_spec().model)
    images = torch.randn(batch, 3, 16, 16)
    with torch.inference_mode():
        together, alone = model(images).pre_logits, model(images[:1]).pre_logits
    torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_initialisation_follows_big_vision() -> None:
    torch.manual_seed(0)
    model = ViT(ViTConfig(width=256, depth=1, mlp_dim=512, num_heads=4, patch_size=16, num_classes=10))
    block = model.blocks[0]
    limit = (6 / (256 + 256)) ** 0.5
    for part in block.attn.qkv.weight.chunk(3):  # type: ignore[union-attr,operator]
        assert 0.95 * limit < part.abs().max() <= limit
    assert model.head is not None
    assert not model.head.weight.any()
    assert model.pos_embed.std() == pytest.approx(1 / 16, rel=0.05)
    assert model.patch_embed.weight.std() == pytest.approx((1 / 768) ** 0.5, rel=0.05)
