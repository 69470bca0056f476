from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.golden_models import GOLDEN
from train.optim.adafactor import Adafactor, factored_dims

NAMES = ("matrix", "tall", "vector", "tensor")
STEPS = 20


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN / "big_vision" / "adafactor.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def optimizer(parameters: dict[str, nn.Parameter], variant: str = "momentum_bf16", **changes: float) -> Adafactor:
    momentum = 0.0 if variant == "no_momentum" else 0.9
    dtype = torch.float32 if variant == "momentum_f32" else torch.bfloat16
    return Adafactor(parameters.values(), **({"lr": 1.0, "momentum": momentum} | changes), momentum_dtype=dtype)


def step(optimizer: Adafactor, parameters: dict[str, nn.Parameter], golden: dict[str, Tensor], index: int) -> None:
    for name, parameter in parameters.items():
        parameter.grad = golden[f"grads/step{index:02}/{name}"].clone().to(parameter.dtype)
    optimizer.step()


def run(golden: dict[str, Tensor], variant: str) -> Iterator[tuple[int, str, Tensor, dict[str, Tensor]]]:
    """Every step's update of every parameter, with the optimiser's state after it."""
    zeros = {name: nn.Parameter(torch.zeros_like(golden[f"params/{name}"])) for name in NAMES}
    ours = optimizer(zeros, variant)
    for index in range(STEPS):
        step(ours, zeros, golden, index)
        for name, parameter in zeros.items():
            yield index, name, -parameter.detach(), ours.state[parameter]
            parameter.data.zero_()  # so that what is there after a step is its update, to the last bit


def parameters(golden: dict[str, Tensor]) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(golden[f"params/{name}"].clone()) for name in NAMES}


@pytest.mark.parametrize("variant", ["momentum_bf16", "momentum_f32", "no_momentum"])
def test_updates_are_those_of_big_vision(golden: dict[str, Tensor], variant: str) -> None:
    for index, name, update, ours in run(golden, variant):
        reference = golden[f"{variant}/step{index:02}/{name}"]
        assert (update - reference).norm() <= 1e-6 * reference.norm(), (index, name)
        if variant == "momentum_bf16":
            ours["momentum"].copy_(reference)  # so that no step inherits another rounding


def test_a_bfloat16_momentum_stays_near_on_its_own(golden: dict[str, Tensor]) -> None:
    """Two float32 results one last bit apart may round to two bfloat16, and the next step inherits that: a few do."""
    near = torch.tensor([0, 0])
    for index, name, update, _ in run(golden, "momentum_bf16"):
        reference = golden[f"momentum_bf16/step{index:02}/{name}"]
        assert (update - reference).norm() <= 2e-4 * reference.norm(), (index, name)
        close = torch.isclose(update, reference, rtol=1e-5, atol=1e-6)
        near += torch.tensor([int(close.sum()), close.numel()])
    assert near[0] >= 0.999 * near[1]


def test_the_step_is_rate_times_update_and_decay(golden: dict[str, Tensor]) -> None:
    ours = parameters(golden)
    rate, decay = 8e-4, 0.03
    step(optimizer(ours, lr=rate, weight_decay=decay), ours, golden, 0)
    for name, parameter in ours.items():
        before, update = golden[f"params/{name}"], golden[f"momentum_bf16/step00/{name}"]
        torch.testing.assert_close(parameter.detach(), before - rate * (update + decay * before), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("shape", "dims"),
    [
        ((48, 40), (1, 0)), ((40, 48), (0, 1)), ((64, 31), None), ((4096,), None), ((3, 36, 34), (2, 1)),
        ((32, 3, 33, 2), (0, 2)), ((32, 32), (0, 1)), ((), None),
    ],
)  # fmt: skip
def test_the_two_largest_dimensions_are_factored(shape: tuple[int, ...], dims: tuple[int, int] | None) -> None:
    assert factored_dims(torch.Size(shape)) == dims


@pytest.mark.parametrize("shape", [(40, 50), (50, 40), (33, 2, 36), (36, 2, 33), (2, 33, 36), (2, 36, 33), (36, 36)])
def test_a_second_moment_of_rank_one_is_kept_whole(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    size = torch.ones(shape)
    for dim, length in enumerate(shape):
        size *= (torch.rand(length) + 0.1).reshape([length if at == dim else 1 for at in range(len(shape))])
    sign = torch.randn(shape).sign()
    parameter = nn.Parameter(torch.zeros(shape))
    parameter.grad = sign * size
    Adafactor([parameter], lr=1.0, momentum=0).step()
    torch.testing.assert_close(parameter.detach(), -sign)  # the factored RMS is then the size itself


def test_a_resumed_run_is_the_same_run(golden: dict[str, Tensor]) -> None:
    whole, resumed = parameters(golden), parameters(golden)
    first = optimizer(resumed)
    for index in range(10):
        step(first, resumed, golden, index)
    saved = copy.deepcopy(first.state_dict())
    second = optimizer(resumed)
    second.load_state_dict(saved)
    at_once = optimizer(whole)
    for index in range(STEPS):
        step(at_once, whole, golden, index)
        if index >= 10:
            step(second, resumed, golden, index)
    for name in NAMES:
        assert torch.equal(whole[name], resumed[name])
        assert second.state[resumed[name]]["momentum"].dtype == torch.bfloat16
    # What was loaded is a copy: the steps since have left the saved state alone.
    assert [state["step"].item() for state in saved["state"].values()] == [10] * len(NAMES)
    assert [state["step"].item() for state in second.state_dict()["state"].values()] == [STEPS] * len(NAMES)


def test_bfloat16_parameters_keep_a_float32_second_moment_through_loading(golden: dict[str, Tensor]) -> None:
    ours = {name: nn.Parameter(parameter.detach().bfloat16()) for name, parameter in parameters(golden).items()}
    first = optimizer(ours, "momentum_f32", lr=0.01)
    step(first, ours, golden, 0)
    second = optimizer(ours, "momentum_f32", lr=0.01)
    second.load_state_dict(first.state_dict())
    for parameter in ours.values():
        assert parameter.dtype == torch.bfloat16
        for name, value in first.state[parameter].items():
            assert second.state[parameter][name].dtype == torch.float32
            assert torch.equal(second.state[parameter][name], value)


def test_its_state_is_hardly_more_than_the_first_moment() -> None:
    parameter = nn.Parameter(torch.zeros(256, 512))
    parameter.grad = torch.ones(256, 512)
    ours = Adafactor([parameter], lr=0.1)
    ours.step()
    stored = sum(value.nbytes for value in ours.state[parameter].values())
    assert stored == 256 * 512 * 2 + (256 + 512 + 1) * 4


def test_no_gradient_and_a_gradient_of_nothing_move_nothing() -> None:
    still, zero = nn.Parameter(torch.ones(40, 40)), nn.Parameter(torch.ones(40, 40))
    zero.grad = torch.zeros(40, 40)
    ours = Adafactor([still, zero], lr=0.1)
    ours.step()
    assert torch.equal(still, torch.ones(40, 40))
    assert torch.equal(zero, torch.ones(40, 40))
    assert not ours.state[still]
