"""Which attentions TensorRT for RTX computes in one fused kernel: by model, precision and GPU, without a GPU.

    python -m benchmarks.studies.fusion --images PHOTOGRAPHS --out benchmarks/results/fusion.json

Each engine is built by the code of `sovit compile --for rtx`, of two blocks of the model's true width, heads and tokens
(So400m/14 at 224 px in full depth), with random weights. "fused" means that it builds with `decomposable=False`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from rich.console import Console

from benchmarks.arguments import run
from benchmarks.conditions import conditions
from export.reference import calibration_images, reference_images
from export.to_onnx import ExportOptions, export_onnx, from_random
from sovit.artifact import Artifact, Precision
from sovit.config import variant_config
from sovit.errors import RuntimeFailure
from sovit.jsonio import must_be_writable, write_json
from sovit.runtime.tensorrt.compile import build_engine
from sovit.runtime.tensorrt.library import TENSORRT_RTX
from sovit.runtime.tensorrt.options import CompileOptions

MODELS: Final = (  # variant, image size, blocks (0: all)
    ("So400m/14", 224, 0), ("So400m/14", 384, 2), ("So150m-896/16", 256, 2), ("L/16", 224, 2), ("B/16", 224, 2),
    ("Ti/16", 224, 2),
)  # fmt: skip
PRECISIONS: Final[tuple[Precision, ...]] = ("fp16", "bf16", "int8-bf16", "fp8-bf16")
CAPABILITIES: Final = ("8.0", "8.9", "12.0")
BATCH: Final = (1, 8, 32)


@dataclass(frozen=True)
class Row:
    """One engine. `attention` is what became of it in each part of the model; without any, `failure` says why."""

    model: str
    image_size: int
    blocks: int
    head_dim: int
    tokens: int
    precision: str
    compute_capability: str
    attention: dict[str, str]
    seconds: float
    megabytes: float
    failure: str = ""


def rows(
    models: Sequence[tuple[str, int, int]], precisions: Sequence[Precision], images: Path, console: Console
) -> list[Row]:
    """Export every model in every precision and build it for every GPU."""
    results = []
    for variant, size, blocks in models:
        config = variant_config(variant, image_size=(size, size))
        config = replace(config, depth=blocks) if blocks else config
        source = from_random(variant, config)
        reference = reference_images(source.spec.preprocess, images)
        calibration = calibration_images(source.spec.preprocess, images, reference)[:16]
        for precision in precisions:
            with tempfile.TemporaryDirectory(prefix="sovit-bench-") as folder:
                quantized = calibration if precision.startswith(("int8", "fp8")) else []
                options = ExportOptions(precision=precision)
                artifact = export_onnx(source, Path(folder) / "artifact", reference, options, quantized)
                for capability in CAPABILITIES:
                    row = _row(artifact, variant, size, capability)
                    results.append(row)
                    console.print(f"{variant} {size} {precision} {capability}: {row.attention or row.failure}")
    return results


def _row(artifact: Artifact, variant: str, size: int, capability: str) -> Row:
    manifest = artifact.manifest
    config = manifest.model
    attention: dict[str, str] = {}
    failure, megabytes = "", 0.0
    began = time.perf_counter()
    try:
        engine = build_engine(
            TENSORRT_RTX.load(), TENSORRT_RTX, artifact, CompileOptions(batch=BATCH), capabilities=(capability,)
        )
        attention = {str(part): str(fusion) for part, fusion in engine.attention.items()}
        megabytes = len(engine.content) / 1e6
    except RuntimeFailure as error:
        failure = str(error).replace(str(artifact.folder), variant)
    return Row(
        model=variant, image_size=size, blocks=config.depth, head_dim=config.head_dim, tokens=config.num_tokens,
        precision=manifest.precision, compute_capability=capability, attention=attention,
        seconds=time.perf_counter() - began, megabytes=megabytes, failure=failure,
    )  # fmt: skip


def table(results: Sequence[Row]) -> str:
    """A Markdown table: a row for each model and precision, a column for each GPU; blocks, then the MAP head."""
    lines = [
        f"| model, image, head_dim, tokens | precision | {' | '.join(CAPABILITIES)} |",
        "|---|---|" + "---|" * len(CAPABILITIES),
    ]
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for row in results:
        groups.setdefault((row.model, row.image_size, row.precision), []).append(row)
    for (model, size, precision), group in groups.items():
        cells = [", ".join(row.attention.values()) if row.attention else "does not build" for row in group]
        name = f"{model} {size}, {group[0].head_dim}, {group[0].tokens}"
        lines.append(f"| {name} | {precision} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs, for parity and calibration")
    parser.add_argument("--models", nargs="+", choices=sorted({name for name, _, _ in MODELS}), help="all by default")
    parser.add_argument("--out", type=Path, help="write the result as JSON there")
    arguments = parser.parse_args()
    must_be_writable(arguments.out)
    models = [model for model in MODELS if not arguments.models or model[0] in arguments.models]
    results = rows(models, PRECISIONS, arguments.images, Console(stderr=True))
    if arguments.out:
        result = {"benchmark": "fusion", "batch": BATCH, "conditions": conditions()}
        write_json(arguments.out, result | {"rows": [asdict(row) for row in results]})
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
