"""How long the export of full-size models takes, how much memory, and how large the artifacts are.

    python -m benchmarks.studies.export --images IMAGES --out benchmarks/results/export.json

Runs `sovit export VARIANT` (random weights, parity in ONNX Runtime and OpenVINO included) as a process of its own for
each row; g/14 takes 14 GB of memory. With `--compile`, `sovit compile --for rtx --batch 1:8:32` follows in another.
Goals: So400m/14 under 5 minutes with under 8 GB at the peak; weights beyond 2 GB in a file of their own.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.conditions import conditions
from benchmarks.studies.commands import run_sovit
from sovit.artifact import open_artifact
from sovit.jsonio import read_json, write_json
from sovit.runtime.tensorrt.engine_folder import DESCRIPTION

ROWS: Final = ("So400m/14:fp32", "So400m/14:int8", "g/14:fp32")


def main() -> None:
    """Measure each row and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of real photographs")
    parser.add_argument("--rows", nargs="+", metavar="VARIANT:PRECISION", default=list(ROWS))
    parser.add_argument("--compile", action="store_true", help="build an engine of TensorRT for RTX of each as well")
    parser.add_argument("--out", type=Path, help="write the rows and conditions as JSON there")
    arguments = parser.parse_args()
    before = conditions()
    rows = []
    for row in arguments.rows:
        variant, _, precision = row.rpartition(":")
        rows.append(measure(variant, precision, arguments.images, compiling=arguments.compile))
    table = Table("variant", "precision", "seconds", "peak GB", "graph MB", "weights outside MB", "worst error")
    for found in rows:
        table.add_row(
            found["variant"], found["precision"], f"{found['seconds']:.0f}", f"{found['peak_rss_bytes'] / 1e9:.1f}",
            f"{found['graph_bytes'] / 1e6:,.1f}", f"{found['external_bytes'] / 1e6:,.0f}",
            f"{max(found['relative_errors'].values()):.1e}",
        )  # fmt: skip
    Console().print(table)
    for found in rows if arguments.compile else ():
        engine = found["engine"]
        Console().print(
            f"{found['variant']} {found['precision']}: engine in {engine['seconds']:.1f} s, peak "
            f"{engine['peak_rss_bytes'] / 1e9:.2f} GB, {engine['bytes'] / 1e6:,.0f} MB, {engine['attention']}"
        )
    if arguments.out:
        write_json(arguments.out, {"benchmark": "export", "rows": rows, "conditions": before})


def measure(variant: str, precision: str, images: Path, *, compiling: bool = False) -> dict[str, Any]:
    """One export, with its artifact opened and checked afterwards, and an engine of it where that is wanted."""
    with tempfile.TemporaryDirectory(prefix="sovit-export-") as scratch:
        out = Path(scratch) / "artifact"
        words = ["export", variant, "--precision", precision, "--reference", str(images), "--out", str(out)]
        if precision.startswith(("int8", "fp8")):
            words += ["--calibrate", str(images)]
        taken = run_sovit(*words)
        manifest = open_artifact(out).manifest
        sizes = {name: info.bytes for name, info in manifest.files.items()}
        engine: dict[str, Any] = {}
        if compiling:
            folder = Path(scratch) / "engine"
            engine |= run_sovit("compile", str(out), "--for", "rtx", "--batch", "1:8:32", "--out", str(folder))
            description = read_json(folder / DESCRIPTION)
            engine |= {name: description[name] for name in ("bytes", "attention", "tensorrt")}
        return {
            **({"engine": engine} if compiling else {}),
            "variant": variant,
            "precision": precision,
            **taken,
            "graph_bytes": sizes["model.onnx"],
            "external_bytes": sizes.get("model.onnx.data", 0),
            "relative_errors": {parity.runtime: parity.relative_error for parity in manifest.parity},
        }


if __name__ == "__main__":
    main()
