"""Write one artifact or checkpoint, in a process of its own: large models take several times their weights' memory.

python -m benchmarks.latency.prepare '{"variant": "So400m/14", "image_size": [224, 224], "precision": "int8", ...}'
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.latency.exports import QUANTISED, Order
from benchmarks.process import first_to_go
from export.reference import calibration_images, reference_images
from export.to_onnx import ExportOptions, export_onnx, from_random
from sovit.checkpoint import save_checkpoint
from sovit.config import variant_config
from sovit.errors import SoViTError


def _write(order: Order) -> None:
    source = from_random(order.variant, variant_config(order.variant, image_size=order.image_size))
    out = Path(order.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if order.precision is None:
        save_checkpoint(out, source.model, source.spec, source.provenance)
        return
    images = None if order.images is None else Path(order.images)
    reference = reference_images(source.spec.preprocess, images)
    quantised = images is not None and order.precision in QUANTISED
    calibration = calibration_images(source.spec.preprocess, images, reference) if quantised and images else []
    export_onnx(source, out, reference, ExportOptions(precision=order.precision), calibration)


def main(words: Sequence[str]) -> int:
    """Write what the first word orders."""
    first_to_go()
    given = json.loads(words[0])
    try:
        _write(Order(**given | {"image_size": tuple(given["image_size"])}))
    except SoViTError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
