from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, get_args

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from sovit.errors import CheckpointMismatch, ConfigError
from sovit.model import ViT
from tests.conftest import random_model, tiny_spec
from train.optim.build import OptimizerName, build_optimizer, set_learning_rate
from train.optim.ema import Ema
from train.optim.groups import freeze, parameter_groups

each_optimizer = pytest.mark.parametrize("name", get_args(OptimizerName))


def model(**changes: object) -> ViT:
    return random_model(tiny_spec(**{"pool": "map"} | changes).model)


def names_of(model: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter] for parameter in parameters}


def give_gradients(model: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def full(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


class Wrapper(nn.Module):
    """Names its content as DDP does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


# Groups.


@pytest.mark.parametrize("changes", [{}, {"pool": "tok", "registers": 2, "layer_scale": True}])
def test_only_matrices_are_decayed(changes: dict[str, object]) -> None:
    vit = model(**changes)
    decayed, kept = parameter_groups(vit, weight_decay=0.5)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.5, 0)
    assert decayed["lr_scale"] == kept["lr_scale"] == 1
    assert decayed["name"] != kept["name"]
    matrices = ("patch_embed.weight", "qkv.weight", ".q.weight", "kv.weight", "proj.weight", "fc1.weight", "fc2.weight")
    assert all(name.endswith((*matrices, "head.weight")) for name in names_of(vit, decayed["params"]))
    few = {"pos_embed", "norm.weight", "head.bias", "blocks.0.norm1.weight"}
    few |= {"cls", "registers", "blocks.1.ls2.gamma"} if changes else {"map_head.probe"}
    assert few <= names_of(vit, kept["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(list(vit.parameters()))


def test_layers_learn_faster_towards_the_head() -> None:
    vit = model(pool="tok", registers=2)
    groups = parameter_groups(vit, weight_decay=0.1, layer_decay=0.5)
    scales = {name: group["lr_scale"] for group in groups for name in names_of(vit, group["params"])}
    assert {scales[name] for name in ("patch_embed.weight", "patch_embed.bias", "pos_embed", "cls", "registers")} == {
        0.5**3
    }
    assert {scale for name, scale in scales.items() if name.startswith("blocks.0.")} == {0.5**2}
    assert {scale for name, scale in scales.items() if name.startswith("blocks.1.")} == {0.5}
    assert {scale for name, scale in scales.items() if name.startswith(("norm.", "head."))} == {1}
    keys = [(group["lr_scale"], group["weight_decay"]) for group in groups]
    assert keys == [(scale, decay) for scale in (0.125, 0.25, 0.5, 1.0) for decay in (0.1, 0.0)]
    assert len({group["name"] for group in groups}) == len(groups)


@pytest.mark.parametrize("pool", ["map", "gap"])
def test_the_poolings_layers_learn_at_the_full_rate(pool: str) -> None:
    vit = model(pool=pool)
    for group in parameter_groups(vit, weight_decay=0.1, layer_decay=0.7):
        if group["lr_scale"] < 1:
            assert all(
                name.startswith(("patch_embed", "pos_embed", "blocks")) for name in names_of(vit, group["params"])
            )


def test_the_head_has_a_decay_of_its_own_and_equal_groups_are_one() -> None:
    vit = model()
    groups = {group["weight_decay"]: group for group in parameter_groups(vit, weight_decay=0.1, head_decay_factor=100)}
    assert list(groups) == [10, 0.1, 0]
    assert names_of(vit, groups[10.0]["params"]) == {"head.weight"}
    assert len(parameter_groups(vit, weight_decay=0, head_decay_factor=100)) == 1


@given(st.integers(1, 40), st.floats(0.3, 1), st.floats(0, 1))
def test_every_parameter_is_in_one_group(depth: int, layer_decay: float, weight_decay: float) -> None:
    with torch.device("meta"):
        vit = ViT(tiny_spec(depth=depth, pool="map").model)
    groups = parameter_groups(vit, weight_decay=weight_decay, layer_decay=layer_decay)
    parameters = [parameter for group in groups for parameter in group["params"]]
    assert len(parameters) == len(set(parameters))
    assert set(parameters) == set(vit.parameters())
    scales = [group["lr_scale"] for group in groups]
    assert scales == sorted(scales)
    assert scales[0] == pytest.approx(layer_decay ** (depth + 1))
    assert scales[-1] == 1


@pytest.mark.parametrize(
    "wrap", [Wrapper, lambda vit: torch.compile(Wrapper(vit)), lambda vit: Wrapper(cast(nn.Module, torch.compile(vit)))]
)
def test_wrapped_models_have_the_same_groups(wrap: Callable[[ViT], nn.Module]) -> None:
    vit = model()
    settings: dict[str, Any] = {"weight_decay": 0.1, "layer_decay": 0.8, "head_decay_factor": 3}
    plain, wrapped = (parameter_groups(found, **settings) for found in (vit, wrap(vit)))
    assert [group["name"] for group in plain] == [group["name"] for group in wrapped]
    for one, two in zip(plain, wrapped, strict=True):
        assert all(p is q for p, q in zip(one["params"], two["params"], strict=True))
    parameter_groups(wrap(vit), weight_decay=0, frozen=["patch_embed"])
    assert not vit.patch_embed.weight.requires_grad


def test_frozen_parts_are_left_out() -> None:
    vit = model(depth=11)
    groups = parameter_groups(vit, weight_decay=0.1, frozen=["patch_embed", "pos_embed", "blocks.1"])
    trained = names_of(vit, [parameter for group in groups for parameter in group["params"]])
    left_out = {name for name, _ in vit.named_parameters()} - trained
    assert {name.rsplit(".", 1)[0] for name in left_out if not name.startswith("blocks.1.")} == {
        "patch_embed", "pos_embed",
    }  # fmt: skip
    assert not any(name.startswith("blocks.1.") for name in trained)
    assert any(name.startswith("blocks.10.") for name in trained)
    assert all(parameter.requires_grad == (name in trained) for name, parameter in vit.named_parameters())
    vit(torch.zeros(1, 3, 16, 16)).logits.sum().backward()
    assert vit.patch_embed.weight.grad is None


def test_wrong_settings_of_groups_are_named() -> None:
    with pytest.raises(
        ConfigError, match="frozen names 'block', which has no parameters; the model's parts are pos_emb"
    ):
        freeze(model(), ["block"])
    with pytest.raises(ConfigError, match="every parameter is frozen"):
        parameter_groups(model(), weight_decay=0, frozen=[name for name, _ in model().named_children()] + ["pos_embed"])
    with pytest.raises(ConfigError, match="layer_decay is 0, it must be above 0"):
        parameter_groups(model(), weight_decay=0, layer_decay=0)
    with pytest.raises(ConfigError, match="weight_decay is nan, it must not be negative"):
        parameter_groups(model(), weight_decay=float("nan"))


# Optimisers.


@each_optimizer
def test_every_optimiser_learns_a_line(name: OptimizerName) -> None:
    torch.manual_seed(0)
    line = nn.Linear(40, 40)
    x_BD, y_BD = torch.randn(256, 40), torch.randn(256, 40)
    y_BD = x_BD @ torch.randn(40, 40) + 0.01 * y_BD
    rate = 0.5 if name == "sgd" else 0.03
    optimizer = build_optimizer(parameter_groups(line, weight_decay=0), name=name, learning_rate=rate)
    for step in range(300):
        set_learning_rate(optimizer, rate * (1 - step / 300))
        value = (line(x_BD) - y_BD).square().mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert value.item() < 0.1  # from about 40


@each_optimizer
def test_a_layers_rate_is_the_rate_times_its_scale(name: OptimizerName) -> None:
    groups = parameter_groups(model(), weight_decay=0.1, layer_decay=0.5)
    optimizer = build_optimizer(groups, name=name, learning_rate=0.8)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.4, 0.4, 0.8, 0.8])
    set_learning_rate(optimizer, 8)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1, 1, 2, 2, 4, 4, 8, 8])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0] * 4


@each_optimizer
def test_weight_decay_is_decoupled_and_follows_the_rate(name: OptimizerName) -> None:
    with_decay, without = model(), model()
    for vit, decay in ((with_decay, 0.3), (without, 0.0)):
        optimizer = build_optimizer(parameter_groups(vit, weight_decay=decay), name=name, learning_rate=0.01)
        give_gradients(vit)
        optimizer.step()
    before = snapshot(model())
    for key, parameter in with_decay.named_parameters():
        expected = dict(without.named_parameters())[key].detach()
        if key.endswith("weight") and "norm" not in key:
            expected = expected - 0.01 * 0.3 * before[key]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-6)


@each_optimizer
def test_a_resumed_optimiser_goes_on_exactly(name: OptimizerName) -> None:
    def build(vit: ViT) -> torch.optim.Optimizer:
        groups = parameter_groups(vit, weight_decay=0.1, layer_decay=0.9)
        return build_optimizer(groups, name=name, learning_rate=0.01)

    straight, stopped = model(), model()
    one, two = build(straight), build(stopped)
    for seed in range(6):
        if seed == 3:
            saved = copy.deepcopy(two.state_dict())
            two = build(stopped)
            two.load_state_dict(saved)
        for vit, optimizer in ((straight, one), (stopped, two)):
            give_gradients(vit, seed)
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(straight.parameters(), stopped.parameters(), strict=True))
    assert [group["name"] for group in two.param_groups] == [group["name"] for group in one.param_groups]


def test_sgd_is_pytorchs_where_nothing_is_decayed() -> None:
    ours, theirs = model(), model()
    one = build_optimizer(parameter_groups(ours, weight_decay=0), name="sgd", learning_rate=0.03)
    two = torch.optim.SGD(theirs.parameters(), lr=0.03, momentum=0.9)
    for seed in range(4):
        for vit, optimizer in ((ours, one), (theirs, two)):
            give_gradients(vit, seed)
            optimizer.step()
    for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-6, atol=1e-7)
        assert one.state[parameter]["momentum"].dtype == torch.float32


def test_the_betas_are_passed_on() -> None:
    groups = parameter_groups(model(), weight_decay=0)
    assert build_optimizer(groups, name="adamw", learning_rate=1).param_groups[0]["betas"] == (0.9, 0.999)
    chosen = build_optimizer(groups, name="adamw", learning_rate=1, betas=(0.9, 0.99))
    assert chosen.param_groups[0]["betas"] == (0.9, 0.99)


# Averaged weights.


@given(st.floats(0, 0.9999), st.lists(st.integers(0, 10_000), min_size=1, max_size=5))
def test_averages_by_hand(decay: float, steps: list[int]) -> None:
    layer = nn.Linear(1, 1, bias=False)
    ema = Ema(layer, decay=decay)
    expected = layer.weight.item()
    for step in steps:
        with torch.no_grad():
            layer.weight.add_(1)
        ema.update(layer, step)
        kept = min(decay, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * layer.weight.item()
    assert ema.state_dict()["weight"].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_buffers_are_averaged_and_whole_numbers_are_left_out() -> None:
    norm = nn.BatchNorm1d(3)
    ema = Ema(norm, decay=0.5)
    assert set(ema.state_dict()) == {"weight", "bias", "running_mean", "running_var"}
    norm.running_mean = torch.full((3,), 10.0)
    ema.update(norm, 1_000)
    assert ema.state_dict()["running_mean"].tolist() == [5, 5, 5]
    with ema.applied(norm):
        assert norm.running_mean.tolist() == [5, 5, 5]
    assert norm.running_mean.tolist() == [10, 10, 10]


@pytest.mark.parametrize("raises", [False, True])
def test_averages_are_swapped_in_and_out_again(raises: bool) -> None:
    vit = model()
    ema = Ema(vit, decay=0.9)
    give_gradients(vit)
    torch.optim.SGD(vit.parameters(), lr=0.1).step()
    before, places = snapshot(vit), [parameter.data_ptr() for parameter in vit.parameters()]
    averages = snapshot(model())  # what the model was at first, as there was no update
    try:
        with ema.applied(vit):
            assert all(torch.equal(averages[name], parameter) for name, parameter in vit.named_parameters())
            if raises:
                raise RuntimeError("the evaluation failed")
    except RuntimeError:
        assert raises
    assert all(torch.equal(before[name], parameter) for name, parameter in vit.named_parameters())
    assert all(torch.equal(averages[name], value) for name, value in ema.state_dict().items())
    assert [parameter.data_ptr() for parameter in vit.parameters()] == places


def test_averages_of_bfloat16_weights_are_float32() -> None:
    layer = nn.Linear(2, 2, dtype=torch.bfloat16)
    ema = Ema(layer, decay=0.999)
    for step in range(1_000, 1_010):
        ema.update(layer, step + 10_000)
    kept = layer.weight.detach().clone()
    assert all(value.dtype == torch.float32 for value in ema.state_dict().values())
    with ema.applied(layer):
        torch.testing.assert_close(layer.weight, kept)
    assert torch.equal(layer.weight, kept)
    assert layer.weight.dtype == torch.bfloat16


def test_averages_are_loaded_by_name_and_misfits_are_named() -> None:
    vit = model()
    ema = Ema(vit, decay=0.9)
    give_gradients(vit)
    torch.optim.SGD(vit.parameters(), lr=0.1).step()
    ema.update(vit, 5)
    other = Ema(Wrapper(model()), decay=0.9)
    other.load_state_dict(ema.state_dict())
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in ema.state_dict().items())
    ema.update(vit, 6)
    assert not torch.equal(other.state_dict()["head.weight"], ema.state_dict()["head.weight"])  # a copy
    state = ema.state_dict()
    with pytest.raises(CheckpointMismatch, match="another model: cls, probe do not fit"):
        ema.load_state_dict(state | {"probe": torch.zeros(1), "cls": torch.zeros(1)})
    with pytest.raises(CheckpointMismatch, match=r"head\.bias do not fit"):
        ema.load_state_dict(state | {"head.bias": torch.zeros(9)})
    with pytest.raises(ConfigError, match="ema is 1, it must be at least 0 and below 1"):
        Ema(vit, decay=1)


# Processes.


def sharded(rank: int, folder: str, names: list[OptimizerName]) -> None:
    """What two processes check of FSDP2 and DDP against a model of their own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(9))
    settings: dict[str, Any] = {"weight_decay": 0.1, "layer_decay": 0.7}
    for name in names:
        whole, shards = (model(width=34, mlp_dim=45) for _ in range(2))  # parts of unequal sizes
        for block in shards.blocks:
            fully_shard(block, mesh=init_device_mesh("cpu", (2,)))
        fully_shard(shards, mesh=init_device_mesh("cpu", (2,)))
        groups, sharded_groups = parameter_groups(whole, **settings), parameter_groups(shards, **settings)
        assert [(group["name"], len(group["params"])) for group in groups] == [
            (group["name"], len(group["params"])) for group in sharded_groups
        ]
        one, two = (build_optimizer(found, name=name, learning_rate=1e-2) for found in (groups, sharded_groups))
        averages, sharded_averages = Ema(whole, decay=0.9), Ema(shards, decay=0.9)
        for step in range(3):
            for vit, optimizer, ema in ((whole, one, averages), (shards, two, sharded_averages)):
                optimizer.zero_grad()
                vit(image + step).logits.square().mean().backward()
                optimizer.step()
                ema.update(vit, step)
                with ema.applied(vit), torch.no_grad():
                    vit(image)  # FSDP2 keeps the outermost weights gathered after it
            if step == 1:
                two.load_state_dict(two.state_dict())
        for (key, parameter), shard in zip(whole.named_parameters(), shards.parameters(), strict=True):
            assert isinstance(shard, DTensor)
            for value in two.state[shard].values():
                assert not isinstance(value, DTensor) or not any(part.is_partial() for part in value.placements)
            average, sharded_average = averages.state_dict()[key], full(sharded_averages.state_dict()[key])
            if not key.endswith(
                "kv.bias"
            ):  # the key's bias has no effect: its gradient is noise, blown up to full size
                torch.testing.assert_close(full(shard), parameter.detach(), rtol=1e-4, atol=2e-5)
                torch.testing.assert_close(sharded_average, average, rtol=1e-4, atol=2e-5)
    wrapped = DistributedDataParallel(model())
    assert [group["name"] for group in parameter_groups(wrapped, **settings)] == [
        group["name"] for group in parameter_groups(model(), **settings)
    ]
    assert Ema(wrapped, decay=0.9).state_dict().keys() == Ema(model(), decay=0.9).state_dict().keys()
    dist.destroy_process_group()


def test_two_processes_take_the_steps_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", os.environ.get("GLOO_SOCKET_IFNAME", "lo"))
    # It raises what a process raised.
    spawn(sharded, (str(tmp_path), list(get_args(OptimizerName))), nprocs=2)  # type: ignore[no-untyped-call]
