"""Augmentation of one image: crops at full and at reduced scale, shifts, flips and RandAugment's operations."""

from __future__ import annotations

import io
import math
import multiprocessing
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from sovit.decode import DecodeOptions, ImageSource, decode
from sovit.errors import ConfigError, InvalidImage, UnsupportedImage
from sovit.jpeg import JpegHeader, decode_jpeg
from train.augment import crop, randaugment
from train.augment.crop import crop_box, decode_for_crop, flip, inception_crop, pad_crop, resized, scaled_box
from train.augment.randaugment import OPERATIONS, Operation, RandAugment, operated

Pixels = NDArray[np.uint8]
FULL = DecodeOptions(reduced_scale=False)
NO_STRENGTH = ("autocontrast", "equalize", "invert")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def smooth(height: int, width: int) -> Pixels:
    """Every place has its own colour, and neighbours are nearly alike."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * y / height, 255 * x / width, 127 + 100 * np.sin(y / 90 + x / 70)], axis=2).astype(np.uint8)


def file_of(image: Image.Image, kind: str = "JPEG", orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    image.save(content, kind, **({"quality": 95, "exif": exif} if kind == "JPEG" else {}))
    return content.getvalue()


def gap(one: Pixels, two: Pixels) -> int:
    return int(np.abs(one.astype(int) - two.astype(int)).max())


# The box.


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2**32))
def test_a_box_lies_in_the_image(height: int, width: int, seed: int) -> None:
    box = crop_box(height, width, rng(seed))
    assert box.height >= 1
    assert box.width >= 1
    assert 0 <= box.top <= height - box.height
    assert 0 <= box.left <= width - box.width


@given(st.integers(300, 900), st.integers(300, 900), st.floats(0.05, 0.4), st.integers(0, 2**32))
def test_a_box_keeps_to_area_and_aspect(height: int, width: int, least: float, seed: int) -> None:
    box = crop_box(height, width, rng(seed), area=(least, 0.4), aspect=(0.8, 1.25))
    assert least * 0.96 < box.height * box.width / (height * width) < 0.4 * 1.04
    assert 0.8 * 0.96 < box.width / box.height < 1.25 * 1.04


def test_areas_are_uniform_and_aspects_symmetric() -> None:
    draw = rng()
    areas = [math.prod(crop_box(500, 500, draw, aspect=(1, 1))[2:]) / 500**2 for _ in range(3000)]
    assert np.mean(areas) == pytest.approx(0.525, abs=0.02)
    assert np.std(areas) == pytest.approx(0.95 / math.sqrt(12), abs=0.02)
    boxes = [crop_box(500, 500, draw, area=(0.2, 0.2)) for _ in range(3000)]
    logs = [math.log(box.width / box.height) for box in boxes]
    assert np.mean(logs) == pytest.approx(0, abs=0.02)
    assert np.std(logs) == pytest.approx(2 * math.log(4 / 3) / math.sqrt(12), abs=0.02)
    assert np.mean([box.top + box.height / 2 for box in boxes]) == pytest.approx(250, abs=6)


@pytest.mark.parametrize(
    ("size", "box"), [((400, 100), (133, 0, 133, 100)), ((100, 400), (0, 133, 100, 133)), ((1, 90), (0, 44, 1, 1))]
)
def test_where_no_box_fits_it_is_the_largest_centred_one(size: tuple[int, int], box: tuple[int, ...]) -> None:
    assert crop_box(*size, rng(), area=(1, 1)) == box


def test_all_of_the_area_is_all_of_the_image_where_its_aspect_is_allowed() -> None:
    for seed in range(20):
        box = crop_box(90, 110, rng(seed), area=(1, 1), aspect=(1, 1.25))
        assert box.height * box.width >= 0.98 * 90 * 110


@pytest.mark.parametrize("area", [(0, 1), (0.5, 0.4), (0.1, 1.1), (math.nan, 1)])
def test_no_area_is_refused(area: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="area"):
        crop_box(9, 9, rng(), area=area)


@pytest.mark.parametrize("aspect", [(0, 1), (2, 1), (1, math.inf), (math.nan, 1)])
def test_no_aspect_is_refused(aspect: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="aspect"):
        crop_box(9, 9, rng(), aspect=aspect)


# Resizing.


@given(st.tuples(*[st.integers(1, 300)] * 2), st.tuples(*[st.integers(1, 120)] * 2), st.integers(0, 99))
def test_resizing_is_pillows_within_1(size_yx: tuple[int, int], to_yx: tuple[int, int], seed: int) -> None:
    image_YXC = noise(*size_yx, seed)
    expected = Image.fromarray(image_YXC).resize(to_yx[::-1], Image.Resampling.BILINEAR)
    found = resized(image_YXC, to_yx)
    assert found.shape == (*to_yx, 3)
    assert found.flags.c_contiguous
    assert gap(found, np.asarray(expected)) <= 1


def test_resizing_takes_views_and_arrays_that_are_not_to_be_written_to() -> None:
    image_YXC = noise(90, 70)
    expected = resized(np.ascontiguousarray(image_YXC[5:65, 10:60]), (32, 32))
    image_YXC.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(resized(image_YXC[5:65, 10:60], (32, 32)), expected)
        np.testing.assert_array_equal(resized(image_YXC, (90, 70)), image_YXC)


def crop_of(seed: int) -> Pixels:
    return inception_crop(noise(120, 90), (32, 32), rng(seed))


def test_threads_and_processes_give_the_same() -> None:
    expected = [crop_of(seed) for seed in range(40)]
    assert len({pixels.tobytes() for pixels in expected}) == len(expected)
    with ThreadPoolExecutor(4) as threads:
        np.testing.assert_array_equal(list(threads.map(crop_of, range(40))), expected)
    with multiprocessing.get_context("spawn").Pool(1) as processes:
        np.testing.assert_array_equal(processes.map(crop_of, range(40)), expected)


def test_a_crop_is_its_box_resized() -> None:
    image_YXC = smooth(200, 300)
    top, left, height, width = crop_box(200, 300, rng(3))
    part = image_YXC[top : top + height, left : left + width]
    np.testing.assert_array_equal(inception_crop(image_YXC, (40, 50), rng(3)), resized(part, (40, 50)))


# Decoding for a crop.


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("options", [FULL, DecodeOptions(reduced_scale=True)])
def test_a_jpeg_is_upright_whatever_its_orientation(orientation: int, options: DecodeOptions) -> None:
    content = file_of(Image.fromarray(smooth(240, 400)), orientation=orientation)
    whole = np.asarray(decode(content, DecodeOptions()))
    assert whole.shape[:2] == ((240, 400) if orientation < 5 else (400, 240))
    for seed in range(5):
        found = decode_for_crop(content, (24, 32), rng(seed), options=options)
        expected = inception_crop(whole, (24, 32), rng(seed))
        assert gap(found, expected) <= (0 if options is FULL else 12)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF", "array", "image", "path"])
def test_any_source_gives_the_crop_of_what_it_shows(kind: str, tmp_path: Path) -> None:
    image = Image.fromarray(smooth(100, 140))
    if kind == "path":
        (tmp_path / "image").write_bytes(file_of(image))
    others: dict[str, ImageSource] = {"array": np.asarray(image), "image": image, "path": tmp_path / "image"}
    source = others[kind] if kind in others else file_of(image, kind)
    expected = inception_crop(np.asarray(decode(source, DecodeOptions())), (40, 40), rng(1))
    np.testing.assert_array_equal(decode_for_crop(source, (40, 40), rng(1), options=FULL), expected)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_four_colours(mode: str) -> None:
    content = file_of(Image.fromarray(smooth(160, 200)).convert(mode))
    whole = np.asarray(decode(content, DecodeOptions()))
    np.testing.assert_array_equal(
        decode_for_crop(content, (48, 48), rng(2), options=FULL), inception_crop(whole, (48, 48), rng(2))
    )
    reduced = decode_for_crop(content, (16, 16), rng(2), area=(0.9, 1))
    assert gap(reduced, inception_crop(whole, (16, 16), rng(2), area=(0.9, 1))) <= 12


@pytest.mark.parametrize(
    ("size_yx", "scale"),
    [((201, 300), 1), ((200, 301), 1), ((200, 300), 2), ((101, 150), 2), ((100, 150), 4), ((50, 75), 8), ((9, 9), 8)],
)
def test_the_smallest_scale_that_keeps_the_crop_as_large(size_yx: tuple[int, int], scale: int) -> None:
    content = file_of(Image.fromarray(smooth(400, 600)))
    with patch.object(crop, "decode_jpeg", side_effect=decode_jpeg) as decoding:
        found = decode_for_crop(content, size_yx, rng(), area=(1, 1), aspect=(1.5, 1.5))
    assert found.shape == (*size_yx, 3)
    assert decoding.call_args.args[2] == (None if scale == 1 else (400 // scale, 600 // scale))


@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32))
def test_the_scaled_crop_is_in_the_image_and_no_smaller_than_the_target(
    height: int, width: int, size_y: int, size_x: int, seed: int
) -> None:
    box = crop_box(height, width, rng(seed), area=(0.3, 1))
    for factor in (2, 4, 8):
        part = scaled_box(box, factor)
        assert part.top + part.height <= -(-height // factor)
        assert part.left + part.width <= -(-width // factor)
        assert abs(part.top - box.top / factor) <= 0.5
        assert abs(part.left - box.left / factor) <= 0.5
        if box.height >= factor * size_y and box.width >= factor * size_x:
            assert part.height >= size_y
            assert part.width >= size_x


def test_an_odd_header_does_not_move_the_crop() -> None:
    # Such a file is decoded by Pillow, at its full size.
    content = file_of(Image.fromarray(smooth(400, 600))).replace(b"JFIF\0\1", b"JFIF\0\7")
    header = JpegHeader(400, 600, 3, 1)
    assert decode_jpeg(content, header, (100, 150)).shape[:2] == (400, 600)
    for seed in range(5):
        found = decode_for_crop(content, (32, 32), rng(seed))
        assert gap(found, decode_for_crop(content, (32, 32), rng(seed), options=FULL)) == 0


def test_bad_images_are_told_as_ever(tmp_path: Path) -> None:
    whole = file_of(Image.fromarray(smooth(100, 100)))
    assert decode_for_crop(whole, (8, 8), rng(), options=DecodeOptions(max_pixels=10_000)).shape == (8, 8, 3)
    with pytest.raises(InvalidImage, match="over the limit"):
        decode_for_crop(whole, (8, 8), rng(), options=DecodeOptions(max_pixels=9_999))
    for content in (whole[: len(whole) // 2], whole[:30], whole[:3], b""):
        with pytest.raises(InvalidImage):
            decode_for_crop(content, (8, 8), rng())
    with pytest.raises(InvalidImage, match="cannot be read"):
        decode_for_crop(tmp_path / "none.jpg", (8, 8), rng())
    with pytest.raises(UnsupportedImage):
        decode_for_crop(b"no image", (8, 8), rng())


# Shifts and flips.


def test_a_shift_is_a_window_of_the_padded_image() -> None:
    image_YXC = noise(5, 6)
    rows, columns = [2, 1, 0, 1, 2, 3, 4, 3, 2], [2, 1, 0, 1, 2, 3, 4, 5, 4, 3]
    padded = image_YXC[rows][:, columns]
    windows = {padded[y : y + 5, x : x + 6].tobytes() for y in range(5) for x in range(5)}
    draw = rng()
    found = [pad_crop(image_YXC, draw, padding=2) for _ in range(400)]
    assert {image.tobytes() for image in found} == windows
    assert {image.shape for image in found} == {(5, 6, 3)}


def test_a_shift_by_nothing_and_paddings_that_are_refused() -> None:
    image_YXC = noise(5, 6)
    np.testing.assert_array_equal(pad_crop(image_YXC, rng(), padding=0), image_YXC)
    for padding in (-1, 5):
        with pytest.raises(ConfigError, match="padding"):
            pad_crop(image_YXC, rng(), padding=padding)


def test_half_of_the_images_are_flipped() -> None:
    image_YXC = noise(4, 5)
    image_YXC.flags.writeable = False
    draw, flipped = rng(), 0
    for _ in range(400):
        found = flip(image_YXC, draw)
        if found is not image_YXC:
            flipped += 1
            np.testing.assert_array_equal(found, image_YXC[:, ::-1])
    assert 160 < flipped < 240


# RandAugment.


def after(image_YXC: Pixels, operation: Operation, strength: float) -> Pixels:
    return np.asarray(operated(Image.fromarray(image_YXC), operation, strength))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_keeps_size_and_type_and_does_something(operation: Operation) -> None:
    image_YXC = noise(23, 31) // 2
    for strength in (-1.0, -0.3, 0.3, 1.0):
        found = after(image_YXC, operation, strength)
        assert (found.shape, found.dtype) == (image_YXC.shape, image_YXC.dtype)
        if operation != "solarize" or abs(strength) == 1:  # the values are below 256 * 0.7
            assert gap(found, image_YXC) > 0
        np.testing.assert_array_equal(found, after(image_YXC, operation, strength))


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name not in NO_STRENGTH])
def test_no_strength_changes_nothing(operation: Operation) -> None:
    image_YXC = noise(17, 26)
    np.testing.assert_array_equal(after(image_YXC, operation, 0.0), image_YXC)
    np.testing.assert_array_equal(after(image_YXC, operation, -0.0), image_YXC)


@pytest.mark.parametrize("operation", NO_STRENGTH)
def test_operations_without_a_strength(operation: Operation) -> None:
    image_YXC = noise(17, 26) // 2
    np.testing.assert_array_equal(after(image_YXC, operation, 0.0), after(image_YXC, operation, -1.0))


@pytest.mark.parametrize("strength", [-1.0, -0.5, 0.3, 1.0])
def test_operations_on_values_by_hand(strength: float) -> None:
    image_YXC = noise(16, 16)
    value, size = image_YXC.astype(int), abs(strength)
    np.testing.assert_array_equal(after(image_YXC, "invert", strength), 255 - value)
    bits = {1.0: 4, 0.5: 6, 0.3: 7}[size]
    np.testing.assert_array_equal(after(image_YXC, "posterize", strength), value >> (8 - bits) << (8 - bits))
    threshold = {1.0: 0, 0.5: 128, 0.3: 179}[size]
    solarized = np.where(value < threshold, value, 255 - value)
    np.testing.assert_array_equal(after(image_YXC, "solarize", strength), solarized)
    added = np.where(value < 128, value + {1.0: 110, 0.5: 55, 0.3: 33}[size], value)
    np.testing.assert_array_equal(after(image_YXC, "solarize_add", strength), added)
    brighter = (value * (1 + 0.9 * strength)).clip(0, 255)
    assert np.abs(after(image_YXC, "brightness", strength) - brighter).max() <= 1
    grey = value @ [0.299, 0.587, 0.114]
    colored = (grey[..., None] + (value - grey[..., None]) * (1 + 0.9 * strength)).clip(0, 255)
    assert np.abs(after(image_YXC, "color", strength) - colored).max() <= 2
    contrasted = (grey.mean() + (value - grey.mean()) * (1 + 0.9 * strength)).clip(0, 255)
    assert np.abs(after(image_YXC, "contrast", strength) - contrasted).max() <= 2
    sharper = after(image_YXC, "sharpness", strength).astype(float).std()
    assert (sharper > image_YXC.std()) == (strength > 0)


def test_autocontrast_and_equalize_by_hand() -> None:
    image_YXC = np.zeros((2, 2, 3), np.uint8)
    image_YXC[..., 0] = [[50, 61], [71, 101]]
    image_YXC[..., 1] = [[0, 51], [102, 255]]
    image_YXC[..., 2] = 7
    found = after(image_YXC, "autocontrast", 1.0)
    np.testing.assert_array_equal(found[..., 0], [[0, 55], [105, 255]])
    np.testing.assert_array_equal(found[..., 1:], image_YXC[..., 1:])
    # Four values, equally frequent: the histogram's sum below each, spread over 0..255.
    steps_YXC = np.repeat(np.array([10, 11, 12, 13], np.uint8), 255).reshape(30, 34, 1).repeat(3, axis=2)
    np.testing.assert_array_equal(after(steps_YXC, "equalize", 1.0), (steps_YXC - 10) * 85)


@pytest.mark.parametrize(("strength", "pixels"), [(1.0, 9), (-1.0, -9), (0.4, 4), (-0.4, -4)])
def test_translations_by_hand(strength: float, pixels: int) -> None:
    image_YXC = noise(20, 20)
    expected = np.full_like(image_YXC, 128)
    if pixels > 0:
        expected[pixels:] = image_YXC[:-pixels]
    else:
        expected[:pixels] = image_YXC[-pixels:]
    np.testing.assert_array_equal(after(image_YXC, "translate_y", strength), expected)
    turned = after(image_YXC.swapaxes(0, 1).copy(), "translate_x", strength)
    np.testing.assert_array_equal(turned.swapaxes(0, 1), expected)


@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_shears_by_hand(strength: float) -> None:
    y, x = np.mgrid[0:20, 0:24]
    ramp_YXC = (5 * x + 20)[..., None].repeat(3, axis=2).astype(np.uint8)
    place = x + 0.3 * strength * (y + 0.5)
    inside = (place >= 0) & (place <= 23)
    found = after(ramp_YXC, "shear_x", strength)
    assert np.abs(found[inside] - (5 * place + 20)[inside][:, None]).max() <= 1
    assert np.all(found[(place < -0.5) | (place >= 23.5)] == 128)
    turned = after(ramp_YXC.swapaxes(0, 1).copy(), "shear_y", strength)
    np.testing.assert_array_equal(turned.swapaxes(0, 1), found)


def test_a_rotation_by_hand() -> None:
    y, x = np.mgrid[0:21, 0:21] - 10.0
    ramp_YXC = (5 * x + 100)[..., None].repeat(3, axis=2).astype(np.uint8)
    # Counter-clockwise by 30 degrees, with y downwards: what is at (x, y) was at x cos - y sin before.
    place = x * math.cos(math.pi / 6) - y * math.sin(math.pi / 6)
    inside = np.hypot(x, y) < 9
    assert np.abs(after(ramp_YXC, "rotate", 1.0)[inside] - (5 * place + 100)[inside][:, None]).max() <= 1
    assert after(ramp_YXC, "rotate", -1.0)[0, 0].tolist() == [128] * 3


def test_operations_and_signs_are_drawn_uniformly() -> None:
    with patch.object(randaugment, "operated", side_effect=lambda image, *_: image) as calls:
        for seed in range(300):
            RandAugment(count=3, magnitude=4)(noise(2, 2), rng(seed))
    drawn = [call.args[1:] for call in calls.call_args_list]
    assert {abs(strength) for _, strength in drawn} == {0.4}
    assert {name for name, _ in drawn} == set(OPERATIONS)
    for name in OPERATIONS:
        assert 35 < sum(name == other for other, _ in drawn) < 90
    assert 400 < sum(strength > 0 for _, strength in drawn) < 500


@given(st.integers(0, 3), st.integers(0, 10), st.integers(0, 2**32), st.integers(1, 20), st.integers(1, 20))
def test_the_same_generator_gives_the_same_image(
    count: int, magnitude: int, seed: int, height: int, width: int
) -> None:
    augment, image_YXC = RandAugment(count=count, magnitude=magnitude), noise(height, width)
    before = image_YXC.copy()
    found = augment(image_YXC, rng(seed))
    assert (found.shape, found.dtype) == (image_YXC.shape, image_YXC.dtype)
    np.testing.assert_array_equal(found, augment(image_YXC, rng(seed)))
    np.testing.assert_array_equal(image_YXC, before)


@pytest.mark.parametrize("field", [{"count": -1}, {"magnitude": -1}, {"magnitude": 11}])
def test_randaugment_out_of_its_range_is_refused(field: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(field))):
        RandAugment(**field)
