from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sovit.errors import ConfigError
from sovit.model import ViT
from tests.conftest import tiny_spec
from train.objective import FINE_TUNING_HEAD_BIAS, Objective, distillation_loss, loss, one_hot

each_objective = pytest.mark.parametrize("objective", get_args(Objective))
smoothings = pytest.mark.parametrize("smoothing", [0.0, 0.1])


def logits(batch: int = 5, classes: int = 7, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return 3 * torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def soft(batch: int = 5, classes: int = 7, *, dtype: torch.dtype = torch.float32) -> Tensor:
    return logits(batch, classes, seed=1).softmax(dim=1).to(dtype)


@smoothings
def test_softmax_is_cross_entropy(smoothing: float) -> None:
    ours = loss(logits(), one_hot(torch.arange(5), 7), objective="softmax", label_smoothing=smoothing)
    torch.testing.assert_close(ours, F.cross_entropy(logits(), torch.arange(5), label_smoothing=smoothing))
    torch.testing.assert_close(
        loss(logits(), soft(), objective="softmax", label_smoothing=smoothing),
        F.cross_entropy(logits(), soft(), label_smoothing=smoothing),
    )


@smoothings
def test_sigmoid_is_the_sum_of_the_classes_cross_entropies(smoothing: float) -> None:
    on, off = 1 - smoothing + smoothing / 7, smoothing / 7
    target = torch.full((5, 7), off).scatter_(1, torch.arange(5)[:, None], on)
    ours = loss(logits(), one_hot(torch.arange(5), 7), objective="sigmoid", label_smoothing=smoothing)
    torch.testing.assert_close(ours, 7 * F.binary_cross_entropy_with_logits(logits(), target))


def test_values_by_hand() -> None:
    target = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    scores = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    softmax = (math.log(4 / 3) + math.log(2)) / 2  # probabilities 3/4 and 1/4, then halves
    assert loss(scores, target, objective="softmax").item() == pytest.approx(softmax)
    sigmoid = (math.log(4 / 3) + math.log(2) + 2 * math.log(2)) / 2  # yes at 3/4, then three halves
    assert loss(scores, target, objective="sigmoid").item() == pytest.approx(sigmoid)
    smoothed = loss(scores[:1], target[:1], objective="softmax", label_smoothing=0.2)
    assert smoothed.item() == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))
    distilled = distillation_loss(scores[1:], scores[:1], objective="softmax")
    assert distilled.item() == pytest.approx(0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    each = distillation_loss(scores[1:], scores[:1], objective="sigmoid")  # the second class agrees
    assert each.item() == pytest.approx(distilled.item())


def test_a_head_of_fine_tuning_begins_at_one_in_a_thousand() -> None:
    assert torch.tensor(FINE_TUNING_HEAD_BIAS).sigmoid().item() == pytest.approx(1e-3, rel=0.01)
    at_start = torch.full((1, 1000), FINE_TUNING_HEAD_BIAS)
    target = one_hot(torch.tensor([3]), 1000)
    assert loss(at_start, target, objective="sigmoid").item() == pytest.approx(6.9 + 1, rel=0.01)
    assert loss(0 * at_start, target, objective="sigmoid").item() == pytest.approx(1000 * math.log(2), rel=1e-5)


@each_objective
@given(st.lists(st.sampled_from([-1e4, -1.0, 0.0, 1.0, 1e4]), min_size=8, max_size=8), st.sampled_from([0.0, 0.1]))
def test_large_logits_are_no_trouble(objective: Objective, values: list[float], smoothing: float) -> None:
    student = torch.tensor(values).reshape(2, 4).requires_grad_()
    teacher = torch.tensor(values[::-1]).reshape(2, 4)
    hard = loss(student, one_hot(torch.tensor([0, 3]), 4), objective=objective, label_smoothing=smoothing)
    distilled = distillation_loss(student, teacher, objective=objective, temperature=2)
    assert hard.item() >= 0
    assert distilled.item() >= -1e-5
    (gradient,) = torch.autograd.grad(hard + distilled, student)
    assert all(torch.isfinite(value).all() for value in (hard, distilled, gradient))


@each_objective
def test_gradients_are_those_of_finite_differences(objective: Objective) -> None:
    student = logits(3, 4, dtype=torch.float64).requires_grad_()
    target, teacher = soft(3, 4, dtype=torch.float64), logits(3, 4, seed=2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: loss(x, target, objective=objective, label_smoothing=0.1), student)
    assert torch.autograd.gradcheck(
        lambda x: distillation_loss(x, teacher, objective=objective, temperature=3), student
    )


@each_objective
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(objective: Objective, dtype: torch.dtype) -> None:
    half, target = logits(dtype=dtype), soft()
    with torch.autocast("cpu", torch.bfloat16):
        ours = loss(half, target, objective=objective)
        distilled = distillation_loss(half, half.flip(0), objective=objective)
    assert ours.dtype == distilled.dtype == torch.float32
    assert torch.equal(ours, loss(half.float(), target, objective=objective))
    assert torch.equal(distilled, distillation_loss(half.float(), half.float().flip(0), objective=objective))


@each_objective
def test_distilling_from_oneself_costs_nothing_and_the_teacher_learns_nothing(objective: Objective) -> None:
    student, teacher = logits().requires_grad_(), logits(seed=3).requires_grad_()
    assert distillation_loss(student, student, objective=objective, temperature=2).item() == pytest.approx(0, abs=1e-6)
    distillation_loss(student, teacher, objective=objective).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert teacher.grad is None


def test_softmax_distillation_is_kl_divergence() -> None:
    student, teacher = logits(), logits(seed=3)
    kl = F.kl_div((student / 4).log_softmax(1), (teacher / 4).softmax(1), reduction="batchmean")
    torch.testing.assert_close(distillation_loss(student, teacher, objective="softmax", temperature=4), 16 * kl)


def test_sigmoid_distillation_is_cross_entropy_less_the_teachers_entropy() -> None:
    student, teacher = logits(), logits(seed=3)
    target = (teacher / 4).sigmoid()
    cross, own = (loss(scores / 4, target, objective="sigmoid") for scores in (student, teacher))
    ours = distillation_loss(student, teacher, objective="sigmoid", temperature=4)
    torch.testing.assert_close(ours, 16 * (cross - own), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [2.0, 8.0])
def test_the_gradient_of_distillation_hardly_depends_on_the_temperature(temperature: float) -> None:
    student, teacher = (0.1 * logits()).requires_grad_(), 0.1 * logits(seed=3)
    norms = [
        torch.autograd.grad(distillation_loss(student, teacher, objective="softmax", temperature=t), student)[0].norm()
        for t in (1.0, temperature)
    ]
    assert 0.8 < norms[0] / norms[1] < 1.25


@each_objective
def test_one_batch_can_be_learnt_by_heart(objective: Objective) -> None:
    torch.manual_seed(0)
    model = ViT(tiny_spec(pool="map").model).train()
    image, target = torch.randn(12, 3, 16, 16), one_hot(torch.arange(12) % 3, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    values = []
    for _ in range(60):
        value = loss(model(image).logits, target, objective=objective)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        values.append(value.item())
    assert values[0] == pytest.approx(math.log(3) if objective == "softmax" else 3 * math.log(2), rel=1e-4)
    assert values[-1] < 0.02
    assert torch.equal(model(image).logits.argmax(1), target.argmax(1))


def test_a_student_becomes_its_teacher() -> None:
    teacher, student = logits(), torch.zeros(5, 7, requires_grad=True)
    optimizer = torch.optim.Adam([student], lr=0.1)
    for _ in range(500):
        optimizer.zero_grad()
        distillation_loss(student, teacher, objective="sigmoid", temperature=2).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.testing.assert_close(student.detach(), teacher, rtol=0, atol=0.05)


def test_wrong_numbers_and_shapes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"targets are \[5\] and logits \[5, 7\]: both must be \[B, L\]; one_hot"):
        loss(logits(), torch.arange(5), objective="softmax")
    with pytest.raises(ConfigError, match="label_smoothing is 1, it must be at least 0 and below 1"):
        loss(logits(), soft(), objective="softmax", label_smoothing=1)
    with pytest.raises(ConfigError, match="temperature of distillation is 0, it must be above 0"):
        distillation_loss(logits(), logits(), objective="softmax", temperature=0)
    with pytest.raises(
        ConfigError, match=r"logits are \[5, 7\] and the teacher's \[5, 6\]: both need the same classes"
    ):
        distillation_loss(logits(), logits(5, 6), objective="softmax")
