from __future__ import annotations

import io
import json
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sovit.decode import DecodeOptions, decode
from sovit.errors import ConfigError, InvalidImage, UnsupportedImage
from sovit.preprocess import Preprocess, ResizeRule, naflex_size, to_patches
from tests.conftest import SHARED, jpeg

SQUASH = Preprocess(image_size=(8, 8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixel(content: bytes) -> list[int]:
    found: list[int] = np.asarray(decode(content, DecodeOptions()))[0, 0].tolist()
    return found


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (3, 2), (10, 20, 30)), [10, 20, 30]),
        (Image.new("L", (3, 2), 77), [77, 77, 77]),
        (Image.new("LA", (3, 2), (77, 0)), [77, 77, 77]),
        (Image.new("RGBA", (3, 2), (10, 20, 30, 0)), [10, 20, 30]),
        (Image.new("1", (3, 2), 1), [255, 255, 255]),
        (Image.new("RGB", (3, 2), (0, 0, 255)).quantize(4), [0, 0, 255]),
        (Image.fromarray(np.full((2, 3), 0x8040, np.uint16)), [0x80, 0x80, 0x80]),
    ],
    ids=["rgb", "grey", "grey+alpha", "rgba", "bilevel", "palette", "16-bit grey"],
)
def test_every_mode_becomes_rgb(image: Image.Image, expected: list[int]) -> None:
    assert pixel(encoded(image)) == expected


def test_a_palette_with_transparency_becomes_rgb() -> None:
    image = Image.new("RGB", (3, 2), (0, 0, 255)).quantize(4)
    assert pixel(encoded(image, transparency=0)) == [0, 0, 255]


def test_a_cmyk_jpeg_becomes_rgb() -> None:
    found = pixel(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100))
    assert np.abs(np.array(found) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_every_format_is_told_by_its_bytes(kind: str) -> None:
    assert SQUASH(encoded(Image.new("RGB", (20, 10), (90, 90, 90)), kind)).shape == (8, 8, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = np.zeros((4, 6, 3), np.uint8)
    upright[0, 0] = 255
    undo = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: lambda a: np.rot90(a, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(np.ascontiguousarray(undo(upright))), exif=exif)
    np.testing.assert_array_equal(np.asarray(decode(content, DecodeOptions())), upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_block_does_not_lose_the_image() -> None:
    good = jpeg()
    exif = b"Exif\x00\x00" + b"MM\x00\x2a\xff\xff\xff\xff" + b"\xff" * 20
    content = good[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + good[2:]
    assert decode(content, DecodeOptions()).size == (40, 30)


@pytest.mark.parametrize(
    "content",
    [b"hello, I am a jpeg", b"\xff", b"%PDF-1.7", b"II*\x00", b"<svg/>", b"RIFF\x00\x00\x00\x00WAVE", b"%!PS-Adobe"],
)
def test_other_bytes_are_unsupported(content: bytes) -> None:
    with pytest.raises(UnsupportedImage, match="no image of a format we take"):
        decode(content, DecodeOptions())


@pytest.mark.parametrize("keep", [3, 20, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_image_is_invalid(kind: str, keep: float) -> None:
    rng = np.random.default_rng(0)
    content = encoded(Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)), kind)
    count = int(keep * len(content)) if keep < 1 else max(int(keep), {"JPEG": 3, "PNG": 8, "WEBP": 12}[kind])
    with pytest.raises(InvalidImage):
        decode(content[:count], DecodeOptions())


def test_pixels_are_limited_by_the_header_before_decoding() -> None:
    # Only a header: were it decoded, it would fail as truncated.
    header = encoded(Image.new("L", (60_000, 1)))
    huge = header[:16] + (60_000).to_bytes(4, "big") + (60_000).to_bytes(4, "big") + header[24:33]
    import zlib

    huge = huge[:29] + zlib.crc32(huge[12:29]).to_bytes(4, "big") + header[33:]
    with pytest.raises(InvalidImage, match="over the limit of 50,000,000 pixels"):
        decode(huge, DecodeOptions())
    with pytest.raises(InvalidImage, match="over the limit of 100 pixels"):
        decode(jpeg(size=(11, 10)), DecodeOptions(max_pixels=100))
    assert decode(jpeg(size=(10, 10)), DecodeOptions(max_pixels=100)).size == (10, 10)


@pytest.mark.parametrize("size", [(65_536, 1), (1, 65_536)])
def test_a_side_is_limited_too(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidImage, match="65,535 pixels for a side"):
        decode(encoded(Image.new("1", size)), DecodeOptions())


@pytest.mark.parametrize("rule", ["crop", "squash", "border"])
@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000)])
def test_what_is_long_and_thin_takes_no_memory(rule: ResizeRule, size: tuple[int, int]) -> None:
    content = encoded(Image.new("RGB", size))
    preprocess = Preprocess(image_size=(224, 224), resize=rule)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if rule == "crop":  # the shorter side would be 224, and the longer 13 million
        with pytest.raises(InvalidImage, match="too long and thin"):
            preprocess(content)
    else:
        assert preprocess(content).shape == (224, 224, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_an_animation_is_refused() -> None:
    frames = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (0, 100, 200)]
    for kind in ("GIF", "PNG", "WEBP"):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        with pytest.raises(InvalidImage, match="more than one frame"):
            decode(content, DecodeOptions())


def test_a_phones_second_picture_behind_a_jpeg_is_no_animation() -> None:
    first, second = Image.new("RGB", (8, 6), (250, 250, 250)), Image.new("RGB", (8, 6), (0, 0, 0))
    content = encoded(first, "MPO", save_all=True, append_images=[second])
    assert pixel(content) == [250, 250, 250]


def test_sources_of_every_kind_agree(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    image = Image.fromarray(array)
    (tmp_path / "x.png").write_bytes(encoded(image))
    expected = SQUASH(array)
    for source in (tmp_path / "x.png", str(tmp_path / "x.png"), encoded(image), image):
        np.testing.assert_array_equal(SQUASH(source), expected)


def test_a_pil_image_of_the_caller_is_left_as_it_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(encoded(Image.new("RGB", (6, 4)), exif=exif)))
    SQUASH(image)
    assert image.size == (6, 4)


@pytest.mark.parametrize(
    "array", [np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2), np.float32), np.zeros((0, 2), np.uint8)]
)
def test_an_array_of_another_form_is_invalid(array: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    with pytest.raises(InvalidImage):
        SQUASH(array)


def test_a_missing_file_and_an_empty_one_are_invalid(tmp_path: Path) -> None:
    with pytest.raises(InvalidImage, match="No such file"):
        SQUASH(tmp_path / "none.jpg")
    with pytest.raises(InvalidImage, match="empty"):
        SQUASH(b"")


@given(
    st.integers(1, 60), st.integers(1, 60), st.integers(1, 24), st.integers(1, 24), st.sampled_from([1.0, 0.9, 0.5]),
    st.sampled_from(["squash", "crop", "border"]),
)  # fmt: skip
def test_the_output_has_the_size_asked_for(
    height: int, width: int, y: int, x: int, crop: float, rule: ResizeRule
) -> None:
    image = np.full((height, width, 3), 128, np.uint8)
    preprocess = Preprocess(image_size=(y, x), resize=rule, crop_fraction=crop)
    found = preprocess(image)
    assert found.shape == (y, x, 3)
    assert found.dtype == np.uint8
    assert (found == 128).all()  # 128 is the border's colour, too


def test_squash_with_a_crop_fraction_cuts_the_border_off() -> None:
    image = np.zeros((10, 20, 3), np.uint8)
    image[:, 5:15] = 255
    assert (Preprocess(image_size=(8, 8), crop_fraction=0.5, interpolation="nearest")(image) == 255).all()


@pytest.mark.parametrize("size", [(4, 20), (20, 4)])
def test_border_keeps_all_of_the_image_between_bars_of_the_mean_colour(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 200, np.uint8)
    found = Preprocess(image_size=(8, 8), resize="border", mean=(0.0, 0.5, 1.0))(image)
    inside = (found == 200).all(axis=2)
    wanted = np.zeros((8, 8), np.bool_)
    wanted[3:5] = True  # 8 long, 1.6 wide: 2
    np.testing.assert_array_equal(inside, wanted if size == (4, 20) else wanted.T)
    assert (found[~inside] == [0, 128, 255]).all()


@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 32), st.integers(1, 400))
def test_naflex_fills_its_patches_without_going_over(height: int, width: int, patch: int, limit: int) -> None:
    y, x = naflex_size(height, width, patch, limit)
    assert y % patch == x % patch == 0
    rows, columns = y // patch, x // patch
    assert 1 <= rows * columns <= max(limit, rows, columns)
    if min(rows, columns) > 1:
        assert (rows + 1) * (columns + 1) > limit
        # As near to the image's aspect ratio as whole patches allow.
        assert (rows - 1) / columns < height / width < rows / (columns - 1)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4), st.integers(1, 4))
def test_patches_hold_the_pixels_in_order(grids: list[tuple[int, int]], patch: int) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (r * patch, c * patch, 3), dtype=np.uint8) for r, c in grids]
    batch = to_patches(images, patch)
    assert batch.patches_BNP.shape[1] == max(r * c for r, c in grids)
    for row, (image, (rows, columns)) in enumerate(zip(images, grids, strict=True)):
        assert batch.grid_B2[row].tolist() == [rows, columns]
        assert batch.mask_BN[row].sum() == rows * columns
        for index in range(rows * columns):
            top, left = index // columns * patch, index % columns * patch
            expected = image[top : top + patch, left : left + patch].reshape(-1)
            np.testing.assert_array_equal(batch.patches_BNP[row, index], expected)
        assert not batch.patches_BNP[row, rows * columns :].any()


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF0000WEBP"]),
)
def test_no_bytes_raise_anything_but_our_two_errors(tail: bytes, head: bytes) -> None:
    try:
        decode(head + tail, DecodeOptions())
    except (InvalidImage, UnsupportedImage) as error:
        assert "object at 0x" not in str(error)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize": "crop", "crop_fraction": 1.5}, "crop_fraction"),
        ({"resize": "naflex"}, "needs a patch_size and max_patches"),
        ({"resize": "naflex", "patch_size": 4, "max_patches": 0}, "needs a patch_size and max_patches"),
        ({"resize": "naflex", "patch_size": 4, "max_patches": 9, "crop_fraction": 0.9}, "means nothing"),
        ({"max_patches": 9}, "mean nothing to the resize rule 'squash'"),
        ({"std": (0.5, 0.0, 0.5)}, "std"),
        ({"image_size": (0, 8)}, "image_size"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preprocess(**({"image_size": (8, 8)} | changes))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_pixels"):
        DecodeOptions(max_pixels=0)


REFERENCE = SHARED / "reference" / "preprocess"


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference photographs are not part of the repository")
def test_pixels_equal_timm_and_transformers() -> None:
    configs = json.loads((REFERENCE / "configs.json").read_text())
    pixels = np.load(REFERENCE / "pixels.npz")
    compared = 0
    for key in pixels.files:
        name, photo = key.rsplit("/", 1)
        if photo.endswith((".shape", ".mask")):
            continue
        config = configs[name]
        path = SHARED / "data" / "imagenet_samples" / photo
        if "naflex" in name:
            patch, limit = config["patch_size"], config["max_num_patches"]
            preprocess = Preprocess(
                image_size=(16 * patch, 16 * patch), resize="naflex", interpolation="bilinear", patch_size=patch,
                max_patches=limit,
            )  # fmt: skip
            batch = to_patches([preprocess(path)], patch)
            found = np.zeros_like(pixels[key])
            found[: batch.patches_BNP.shape[1]] = batch.patches_BNP[0]
            assert batch.grid_B2[0].tolist() == pixels[f"{key}.shape"].tolist()
            assert batch.mask_BN[0].sum() == pixels[f"{key}.mask"].sum()
            difference = np.abs(found.astype(int) - pixels[key])[pixels[f"{key}.mask"] == 1]
        else:
            if name.startswith("timm/"):
                preprocess = Preprocess(
                    image_size=tuple(config["input_size"][1:]),
                    resize="squash" if config["crop_mode"] == "squash" else "crop",
                    crop_fraction=config["crop_pct"],
                    interpolation=config["interpolation"],
                )
            else:
                preprocess = Preprocess(
                    image_size=(config["size"]["height"], config["size"]["width"]),
                    interpolation={2: "bilinear", 3: "bicubic"}[config["resample"]],  # type: ignore[arg-type]
                )
            difference = np.abs(preprocess(path).astype(int) - pixels[key])
        assert difference.max() <= 1, key
        compared += 1
    assert compared == 33
