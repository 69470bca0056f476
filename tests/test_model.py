from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from sovit.config import Pool, PositionResampling, ViTConfig
from sovit.errors import ConfigError
from sovit.model import Patches, ViT
from sovit.parity import relative_error
from sovit.position import resample_position_embedding, sincos2d
from sovit.preprocess import to_patches
from tests.conftest import random_model, tiny_spec

GOLDEN = Path(__file__).parent / "golden" / "big_vision"
CONFIG = ViTConfig(width=64, depth=3, mlp_dim=172, num_heads=4, patch_size=8, image_size=(32, 32), num_classes=7)


def test_position_embedding_is_resampled_as_big_vision_does() -> None:
    golden = np.load(GOLDEN / "posemb_resample.npz")
    old, new = torch.from_numpy(golden["old"]), golden["new"]
    sides = [int(np.sqrt(table.shape[1])) for table in (old, new)]
    found = resample_position_embedding(old, (sides[0], sides[0]), (sides[1], sides[1]), "big_vision")
    assert relative_error(found.numpy(), new) < 1e-6


@given(st.integers(1, 6), st.integers(1, 6), st.integers(2, 9), st.integers(2, 9))
def test_resampling_keeps_the_corners(y: int, x: int, new_y: int, new_x: int) -> None:
    table = torch.randn(1, y * x, 3)
    found = resample_position_embedding(table, (y, x), (new_y, new_x), "big_vision").reshape(1, new_y, new_x, 3)
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
@pytest.mark.parametrize(
    "traits", [{}, {"registers": 3, "layer_scale": True, "fc_norm": True, "qkv_bias": False}], ids=["plain", "all"]
)
def test_every_parameter_gets_a_gradient(pool: Pool, position: str, traits: dict[str, object]) -> None:
    model = random_model(tiny_spec(pool=pool, position_embedding=position, **traits).model)
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


def test_rules_differ_and_agree_where_nothing_changes() -> None:
    table = torch.randn(1, 16, 3)
    rules: tuple[PositionResampling, ...] = ("big_vision", "timm", "transformers", "naflex")
    assert all(resample_position_embedding(table, (4, 4), (4, 4), rule) is table for rule in rules)
    found = [resample_position_embedding(table, (4, 4), (3, 7), rule) for rule in rules]
    for index, one in enumerate(found):
        assert one.shape == (1, 21, 3)
        assert all(relative_error(one.numpy(), other.numpy()) > 1e-3 for other in found[index + 1 :])


@pytest.mark.parametrize("pool", ["map", "gap"])
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4))
def test_an_image_gives_the_same_alone_and_in_a_batch_of_other_sizes(pool: Pool, grids: list[tuple[int, int]]) -> None:
    """NaFlex: padding and neighbours change nothing, and an image of the model's own size is an ordinary image."""
    model = random_model(replace(tiny_spec(pool=pool, position_resampling="naflex").model, naflex=True))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (4 * r, 4 * c, 3), dtype=np.uint8) for r, c in [*grids, (4, 4)]]

    def run(some: list[NDArray[np.uint8]]) -> Tensor:
        patches, mask, grid = (torch.from_numpy(array) for array in to_patches(some, 4))
        return model(Patches(patches.float() / 255, mask, grid)).pre_logits  # type: ignore[no-any-return]

    with torch.inference_mode():
        together = run(images)
        for row, image in enumerate(images):
            torch.testing.assert_close(together[row], run([image])[0], rtol=1e-4, atol=1e-5)
        whole = model(torch.from_numpy(images[-1]).permute(2, 0, 1)[None].float() / 255).pre_logits[0]
    torch.testing.assert_close(together[-1], whole, rtol=1e-4, atol=1e-5)


def test_patches_need_a_model_that_can_take_them() -> None:
    patches = Patches(torch.zeros(1, 4, 48), torch.ones(1, 4, dtype=torch.bool), torch.tensor([[2, 2]]))
    with pytest.raises(ConfigError, match="takes images of one size"):
        random_model(tiny_spec().model)(patches)
    model = random_model(replace(tiny_spec().model, naflex=True))
    model(patches)
    for grid in ([[2, 3]], [[1, 1]]):
        with pytest.raises(ConfigError, match="grid and mask disagree"):
            model(patches._replace(grid_B2=torch.tensor(grid)))
    for traits in ({"pool": "tok"}, {"registers": 1}, {"position_embedding": "sincos2d"}):
        with pytest.raises(ConfigError, match="naflex needs a learned position embedding"):
            replace(tiny_spec(**traits).model, naflex=True)


def test_registers_do_not_start_alike() -> None:
    model = ViT(tiny_spec(registers=3).model)
    assert model.registers is not None
    assert not torch.equal(model.registers[0, 0], model.registers[0, 1])
