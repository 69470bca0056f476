"""Mixup, CutMix and random erasing: exact parts, one result however a batch is split, and the distributions drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sovit.errors import ConfigError
from train.augment.mix import Mix, erased_boxes, mixed, pair_mixes

MIXES = st.builds(
    Mix, mixup=st.sampled_from([0.0, 0.2, 1.0]), cutmix=st.sampled_from([0.0, 0.5, 1.0]), erase=st.floats(0, 1)
)
SIDES = st.integers(1, 9)
TYPES = st.sampled_from([torch.float32, torch.bfloat16])
NUMBERS = st.integers(0, 2**40)


def batch_of(count: int, height: int, width: int, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    image_BCYX = torch.randn(count, 3, height, width, generator=generator)
    target_BL = torch.eye(classes)[torch.randint(classes, (count,), generator=generator)]
    return image_BCYX, target_BL


@given(MIXES, SIDES, SIDES, TYPES, NUMBERS, NUMBERS)
def test_targets_stay_distributions_and_types_are_kept(
    mix: Mix, height: int, width: int, dtype: torch.dtype, seed: int, step: int
) -> None:
    image_BCYX, target_BL = batch_of(8, height, width)
    image, target = mixed(image_BCYX.to(dtype), target_BL, mix, seed=seed, step=step, first=6)
    assert (image.shape, image.dtype) == (image_BCYX.shape, dtype)
    assert (target.shape, target.dtype) == (target_BL.shape, torch.float32)
    assert target.min() >= 0
    torch.testing.assert_close(target.sum(dim=1), torch.ones(8))
    # A pair together is what it was.
    torch.testing.assert_close(target[0::2] + target[1::2], target_BL[0::2] + target_BL[1::2])
    assert image.abs().max() <= image_BCYX.abs().max() * 1.01


@given(MIXES, SIDES, SIDES, TYPES, NUMBERS, st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_a_batch_gives_the_same_however_it_is_split(
    mix: Mix, height: int, width: int, dtype: torch.dtype, step: int, pairs: list[int]
) -> None:
    image_BCYX, target_BL = batch_of(2 * sum(pairs), height, width, classes=7)
    whole = mixed(image_BCYX.to(dtype), target_BL, mix, seed=5, step=step, first=0)
    parts, first = [], 0
    for images in (2 * count for count in pairs):
        part = slice(first, first + images)
        parts.append(mixed(image_BCYX[part].to(dtype), target_BL[part], mix, seed=5, step=step, first=first))
        first += images
    for found, expected in zip(map(torch.cat, zip(*parts, strict=True)), whole, strict=True):
        assert torch.equal(found, expected)


def test_erasing_alone_needs_no_pairs() -> None:
    image_BCYX, target_BL = batch_of(7, 12, 12)
    mix = Mix(erase=0.7)
    whole, target = mixed(image_BCYX, target_BL, mix, seed=1, step=2, first=0)
    parts = [
        mixed(image_BCYX[begin:end], target_BL[begin:end], mix, seed=1, step=2, first=begin)[0]
        for begin, end in ((0, 3), (3, 4), (4, 7))
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert target is target_BL
    assert 0 < int((whole == 0).any(dim=1).flatten(1).any(dim=1).sum()) < 7


def test_nothing_on_changes_nothing() -> None:
    image_BCYX, target_BL = batch_of(3, 4, 4)
    image, target = mixed(image_BCYX, target_BL, Mix(), seed=0, step=0, first=1)
    assert image is image_BCYX
    assert target is target_BL


def test_inputs_are_not_written_to() -> None:
    image_BCYX, target_BL = batch_of(4, 8, 8)
    copies = image_BCYX.clone(), target_BL.clone()
    mixed(image_BCYX, target_BL, Mix(mixup=1, cutmix=1, erase=1), seed=0, step=0, first=0)
    assert torch.equal(image_BCYX, copies[0])
    assert torch.equal(target_BL, copies[1])


@given(st.sampled_from([Mix(mixup=0.2), Mix(mixup=1)]), NUMBERS, NUMBERS)
def test_mixup_by_hand(mix: Mix, seed: int, step: int) -> None:
    image_BCYX, target_BL = batch_of(6, 5, 3)
    image, target = mixed(image_BCYX, target_BL, mix, seed=seed, step=step, first=10)
    shares = pair_mixes(mix, 5, 3, seed=seed, step=step, first=5, count=3).share_P
    for pair, share in enumerate(shares.tolist()):
        for own, other in ((2 * pair, 2 * pair + 1), (2 * pair + 1, 2 * pair)):
            torch.testing.assert_close(image[own], share * image_BCYX[own] + (1 - share) * image_BCYX[other])
            torch.testing.assert_close(target[own], share * target_BL[own] + (1 - share) * target_BL[other])


@given(st.integers(1, 40), st.integers(1, 40), TYPES, NUMBERS)
def test_cutmix_pastes_a_box_of_exactly_the_others_part(height: int, width: int, dtype: torch.dtype, step: int) -> None:
    image_BCYX, _ = batch_of(2, height, width)
    image_BCYX, target_BL = image_BCYX.to(dtype), torch.eye(2)
    mix = Mix(cutmix=1.0)
    image, target = mixed(image_BCYX, target_BL, mix, seed=3, step=step, first=8)
    top, bottom, left, right = pair_mixes(mix, height, width, seed=3, step=step, first=4, count=1).box_P4[0]
    assert 0 <= top <= bottom <= height
    assert 0 <= left <= right <= width
    expected = image_BCYX.clone()
    expected[:, :, top:bottom, left:right] = image_BCYX.flip(0)[:, :, top:bottom, left:right]
    assert torch.equal(image, expected)
    pasted = (image != image_BCYX).any(dim=1).float().mean(dim=(1, 2))
    torch.testing.assert_close(1 - target.diagonal(), pasted)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 4.0])
def test_the_parts_are_of_the_beta_distribution(alpha: float) -> None:
    shares = pair_mixes(Mix(mixup=alpha), 8, 8, seed=0, step=1, first=0, count=4000).share_P
    deviation = math.sqrt(1 / (4 * (2 * alpha + 1)))
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.std() == pytest.approx(deviation, rel=0.05)


def test_cutmix_boxes_are_square_root_sides_around_uniform_centres() -> None:
    # With a large alpha every part is one half: sides of sqrt(1/2), cut at the border.
    pairs = pair_mixes(Mix(cutmix=1e9), 200, 100, seed=0, step=0, first=0, count=2000)
    tops, bottoms, lefts, rights = pairs.box_P4.T
    assert (bottoms - tops).max() == round(200 * math.sqrt(0.5))
    assert (rights - lefts).max() == round(100 * math.sqrt(0.5))
    assert ((tops + bottoms) / 2).mean() == pytest.approx(100, abs=4)
    # E[side] of a side r around a uniform centre, cut at 0 and 1: r - r^2 / 4.
    expected = math.sqrt(0.5) - 0.5 / 4
    assert ((bottoms - tops) / 200).mean() == pytest.approx(expected, abs=0.02)
    assert pairs.share_P.mean() == pytest.approx(1 - expected**2, abs=0.02)


def test_with_both_on_each_pair_gets_one_or_the_other() -> None:
    blend_P, share_P, box_P4 = pair_mixes(Mix(mixup=1, cutmix=1), 32, 32, seed=0, step=0, first=0, count=1000)
    is_cut = box_P4.any(axis=1)
    assert 430 < is_cut.sum() < 570
    assert set(blend_P[is_cut]) == {1.0}
    assert np.array_equal(blend_P[~is_cut], share_P[~is_cut])


def test_an_erased_box_is_zeros_and_the_rest_is_as_it_was() -> None:
    image_BCYX, target_BL = batch_of(40, 24, 30)
    mix = Mix(erase=0.5)
    image, _ = mixed(image_BCYX, target_BL, mix, seed=2, step=9, first=100)
    expected = image_BCYX.clone()
    boxes = erased_boxes(mix, 24, 30, seed=2, step=9, first=100, count=40)
    for row, (top, bottom, left, right) in enumerate(boxes.tolist()):
        expected[row, :, top:bottom, left:right] = 0
    assert torch.equal(image, expected)
    assert not torch.equal(image, image_BCYX)


def test_how_much_is_erased_and_how_often() -> None:
    boxes = erased_boxes(Mix(erase=0.25), 100, 100, seed=0, step=0, first=0, count=4000)
    sides = boxes[:, 1::2] - boxes[:, ::2]
    sides = sides[sides.min(axis=1) > 0]
    assert len(sides) / 4000 == pytest.approx(0.25, abs=0.02)
    area, ratio = sides.prod(axis=1) / 100**2, sides[:, 0] / sides[:, 1]
    assert 0.015 < area.min() < 0.04
    assert 0.3 < area.max() < 0.345
    assert 0.27 < ratio.min() < 0.35
    assert 2.9 < ratio.max() < 3.7
    assert np.log(ratio).mean() == pytest.approx(0, abs=0.08)
    assert boxes.min() >= 0
    assert boxes.max() <= 100


def test_steps_seeds_and_places_draw_their_own() -> None:
    mix = Mix(mixup=1, erase=1)
    numbers = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    drawn = [{"seed": seed, "step": step, "first": place, "count": 1} for seed, step, place in numbers]
    shares = {float(pair_mixes(mix, 8, 8, **one).share_P[0]) for one in drawn}
    boxes = {tuple(erased_boxes(mix, 99, 99, **one)[0].tolist()) for one in drawn}
    assert len(shares) == len(boxes) == len(numbers)


@pytest.mark.parametrize("mix", [Mix(mixup=0.1), Mix(cutmix=1)])
def test_half_a_pair_and_class_numbers_are_refused(mix: Mix) -> None:
    image_BCYX, target_BL = batch_of(4, 4, 4)
    with pytest.raises(ConfigError, match="pairs"):
        mixed(image_BCYX, target_BL, mix, seed=0, step=0, first=1)
    with pytest.raises(ConfigError, match="pairs"):
        mixed(image_BCYX[:3], target_BL[:3], mix, seed=0, step=0, first=0)
    with pytest.raises(ConfigError, match="distributions"):
        mixed(image_BCYX, target_BL.argmax(dim=1), mix, seed=0, step=0, first=0)


@pytest.mark.parametrize(
    ("field", "value"), [("mixup", -0.1), ("cutmix", math.inf), ("cutmix", math.nan), ("erase", 1.1), ("erase", -1.0)]
)
def test_what_is_no_setting_is_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        Mix(**{field: value})


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_gives_the_same(dtype: torch.dtype) -> None:
    image_BCYX, target_BL = batch_of(64, 32, 40)
    mix = Mix(mixup=0.2, cutmix=1, erase=0.25)
    image, target = mixed(image_BCYX.to(dtype), target_BL, mix, seed=0, step=3, first=64)
    on_gpu = mixed(image_BCYX.to("cuda", dtype), target_BL.cuda(), mix, seed=0, step=3, first=64)
    assert torch.equal(on_gpu[0].cpu(), image)
    assert torch.equal(on_gpu[1].cpu(), target)
