"""Shapes of other widths and depths learn as fast as the one whose learning rate was given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sovit.config import ViTConfig
from sovit.errors import ConfigError
from sovit.model import ViT
from train.build import first_model, spec_of
from train.optim.groups import parameter_groups
from train.optim.mup import BaseShape, rate_factors
from train.settings import recipe

CLASSES = tuple("0123456789")
BASE = "mup_depth=32,2,64"


def made(width: int, depth: int, *settings: str) -> tuple[ViT, ViTConfig]:
    shape = [f"width={width}", f"depth={depth}", f"mlp_dim={2 * width}", f"num_heads={width // 16}"]
    config = recipe("digits", [*shape, *settings])
    spec = spec_of(config, CLASSES)
    return first_model(config, spec).train(), spec.model


def test_the_base_shape_is_left_as_it_is() -> None:
    plain, model = made(32, 2)
    scaled, _ = made(32, 2, BASE)
    assert all(torch.equal(one, other) for one, other in zip(plain.parameters(), scaled.parameters(), strict=True))
    factor = rate_factors(model, BaseShape(32, 2, 64))
    assert {factor(name) for name, _ in plain.named_parameters()} == {1.0}


def test_rates_and_decay_by_name() -> None:
    vit, model = made(128, 6, BASE)
    factor = rate_factors(model, BaseShape(32, 2, 64))
    wanted = {
        "patch_embed.weight": 1, "pos_embed": 1, "blocks.0.norm1.weight": 1, "blocks.5.attn.qkv.weight": 1 / 4,
        "blocks.5.attn.qkv.bias": 1, "blocks.0.attn.proj.weight": 1 / 12, "blocks.0.attn.proj.bias": 1 / 3,
        "blocks.0.mlp.fc1.weight": 1 / 4, "blocks.0.mlp.fc2.weight": 1 / 12, "map_head.mlp.fc2.weight": 1 / 4,
        "map_head.kv.weight": 1 / 4, "map_head.probe": 1, "head.weight": 1 / 4, "head.bias": 1,
    }  # fmt: skip
    assert {name: factor(name) for name in wanted} == pytest.approx(wanted)
    assert wanted.keys() <= dict(vit.named_parameters()).keys()
    groups = parameter_groups(vit, weight_decay=0.1, rate_factor=factor)
    assert {round(group["lr_scale"] * group["weight_decay"], 9) for group in groups} == {0.0, 0.1}


def steps(vit: ViT, factor: object, rate: float) -> float:
    """The mean change of the features after ten steps of Adam on one batch."""
    torch.manual_seed(0)
    image, target = torch.randn(32, 3, 8, 8), torch.arange(32) % 10
    groups = parameter_groups(vit, weight_decay=0.0, rate_factor=factor)  # type: ignore[arg-type]
    for group in groups:
        group["lr"] = rate * group["lr_scale"]
    optimizer = torch.optim.Adam(groups)
    before = vit(image).tokens.detach()
    for _ in range(10):
        nn.functional.cross_entropy(vit(image).logits, target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return float((vit(image).tokens - before).detach().abs().mean())


def test_features_change_alike_in_all_shapes_and_did_not_before() -> None:
    changes: dict[str, list[float]] = {"mup": [], "plain": []}
    for width, depth in ((32, 2), (256, 2), (32, 24)):
        vit, model = made(width, depth, BASE)
        factor = rate_factors(model, BaseShape(32, 2, 64))
        changes["mup"].append(steps(vit, factor, 1e-3))
        changes["plain"].append(steps(made(width, depth)[0], None, 1e-3))
    spread = {name: max(values) / min(values) for name, values in changes.items()}
    assert spread["mup"] < 2
    assert spread["plain"] > 2 * spread["mup"]


@pytest.mark.parametrize(("width", "mlp_dim"), [(128, 64), (32, 256), (256, 64)])
def test_the_first_activations_do_not_depend_on_the_shape(width: int, mlp_dim: int) -> None:
    shape = [f"width={width}", "depth=2", f"mlp_dim={mlp_dim}", f"num_heads={width // 16}"]
    config = recipe("digits", [*shape, BASE])
    sizes = {}
    for name, vit in (("base", made(32, 2, BASE)[0]), ("other", first_model(config, spec_of(config, CLASSES)))):
        first, second = vit.blocks[0].mlp.fc1.weight, vit.blocks[0].mlp.fc2.weight  # type: ignore[union-attr]
        sizes[name] = [float(weight.detach().var() * weight.shape[1]) for weight in (first, second)]  # type: ignore[operator,index]
    assert sizes["other"] == pytest.approx(sizes["base"], rel=0.1)


@pytest.mark.parametrize("settings", [["optimizer=sgd"], ["mup_depth=0,2,64"], ["init=folder"]])
def test_it_is_for_new_models_and_adam(settings: list[str]) -> None:
    with pytest.raises(ConfigError, match="mup_depth is three sizes"):
        recipe("digits", [BASE, *settings])
