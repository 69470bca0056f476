"""What it saves, and what it changes, to decode large JPEGs at a reduced scale (`sovit serve --reduced-scale`).

    python -m benchmarks.studies.reduced_scale ARTIFACT --images FOLDER --out benchmarks/results/reduced-scale.json

The photographs of the folder become 12-megapixel JPEGs in two ways: each enlarged, which has little fine detail, and
many side by side, which has more than any camera delivers. Both ways of decoding take turns; times are of decoding and
resizing, drift is the cosine between the artifact's embeddings of the two.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.conditions import conditions
from benchmarks.load.loops import read_images
from sovit.decode import DecodeOptions
from sovit.jsonio import write_json
from sovit.predict import Predictor, load_artifact, to_embeddings

SIZE: Final = (4000, 3000)
TILE: Final = (400, 300)
FULL: Final = DecodeOptions()
REDUCED: Final = DecodeOptions(reduced_scale=True)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Medians over the rounds; `cosine` and the largest difference of a pixel are the worst of the images."""

    images: int
    rounds: int
    bytes_each: int
    full_ms: float
    reduced_ms: float
    faster: float
    cosine: float
    cosine_mean: float
    pixel_difference: int


def enlarged(photographs: Sequence[bytes]) -> list[bytes]:
    """Each photograph at 12 megapixels."""
    return [
        _jpeg(Image.open(io.BytesIO(one)).convert("RGB").resize(SIZE, Image.Resampling.BICUBIC)) for one in photographs
    ]


def mosaics(photographs: Sequence[bytes], count: int) -> list[bytes]:
    """12 megapixels of photographs side by side, each time in another order."""
    generator = np.random.default_rng(0)
    tiles = [Image.open(io.BytesIO(one)).convert("RGB").resize(TILE) for one in photographs]
    found = []
    for _ in range(count):
        canvas = Image.new("RGB", SIZE)
        for y in range(0, SIZE[1], TILE[1]):
            for x in range(0, SIZE[0], TILE[0]):
                canvas.paste(tiles[generator.integers(len(tiles))], (x, y))
        found.append(_jpeg(canvas))
    return found


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def compare(predictor: Predictor, images: Sequence[bytes], rounds: int) -> Comparison:
    """Both ways in turns on every image."""
    preprocess = predictor.spec.preprocess
    seconds: dict[DecodeOptions, list[float]] = {FULL: [], REDUCED: []}
    pixels = {options: [preprocess(image, options) for image in images] for options in seconds}
    for number in range(rounds):
        for image in images:
            for options in (FULL, REDUCED) if number % 2 else (REDUCED, FULL):
                began = time.perf_counter()
                preprocess(image, options)
                seconds[options].append(time.perf_counter() - began)
    full_BD, reduced_BD = (
        np.concatenate([to_embeddings(predictor.runtime.run([one])["pre_logits"], normalize=True) for one in found])
        for found in (pixels[FULL], pixels[REDUCED])
    )
    cosines_B = (full_BD * reduced_BD).sum(axis=1)
    full, reduced = (np.array(seconds[options]) for options in (FULL, REDUCED))
    differences = [np.abs(a.astype(int) - b).max() for a, b in zip(pixels[FULL], pixels[REDUCED], strict=True)]
    return Comparison(
        images=len(images),
        rounds=rounds,
        bytes_each=round(float(np.mean([len(image) for image in images]))),
        full_ms=1000 * float(np.median(full)),
        reduced_ms=1000 * float(np.median(reduced)),
        faster=float(np.median(full / reduced)),
        cosine=float(cosines_B.min()),
        cosine_mean=float(cosines_B.mean()),
        pixel_difference=int(max(differences)),
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="JPEG photographs or folders of them")
    parser.add_argument("--count", type=int, default=12, help="images of each kind")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the result as JSON there")
    arguments = parser.parse_args()
    photographs = read_images(arguments.images)
    before = conditions()
    predictor = load_artifact(arguments.artifact)
    found = {
        "enlarged": compare(predictor, enlarged(photographs[: arguments.count]), arguments.rounds),
        "mosaic": compare(predictor, mosaics(photographs, arguments.count), arguments.rounds),
    }
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        result = {"benchmark": "reduced scale", "artifact": str(arguments.artifact.name), "conditions": before}
        write_json(arguments.out, result | {name: asdict(one) for name, one in found.items()})
    table = Table("12 megapixels", "full ms", "reduced ms", "times as fast", "worst cosine", "mean", "pixel difference")
    for name, one in found.items():
        table.add_row(
            name, f"{one.full_ms:.1f}", f"{one.reduced_ms:.1f}", f"{one.faster:.2f}", f"{one.cosine:.5f}",
            f"{one.cosine_mean:.5f}", str(one.pixel_difference),
        )  # fmt: skip
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
