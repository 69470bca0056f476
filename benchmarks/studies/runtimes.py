"""Every runtime and precision of one shape side by side, with nncf's quantisation and the matrix products alone.

    python -m benchmarks.studies.runtimes So400m/14 --images IMAGES --out benchmarks/results/runtimes-so400m.json

Two interleaved races: fp32 against its own matrix products alone; every precision in every runtime, with eager PyTorch
and the peer beside them. Weights are random; `--images` are real photographs, for calibration and parity. The peer
needs `pip install 'sovit[nncf]'`. On 2 cores So400m/14 takes about 25 minutes, 15 GB of memory and 10 GB of disk.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from benchmarks.conditions import conditions
from benchmarks.studies.lanes import Entry, Lane, race
from benchmarks.studies.products import write_products
from export.reference import calibration_images, reference_images
from export.to_onnx import ExportOptions, export_onnx, from_random
from sovit.artifact import Artifact, Precision
from sovit.checkpoint import save_checkpoint
from sovit.config import parse_image_size, variant_config
from sovit.jsonio import write_json
from sovit.parity import compare
from sovit.progress import progress


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant")
    parser.add_argument("--image-size", default="224")
    parser.add_argument("--images", type=Path, required=True, help="folder of real photographs")
    parser.add_argument("--precisions", nargs="+", choices=get_args(Precision), default=list(get_args(Precision)))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, help="write the rows and conditions as JSON there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sovit-runtimes-") as scratch:
        found = measure(arguments, Path(scratch))
    if arguments.out:
        write_json(arguments.out, found)
    for title in ("products", "precisions"):
        Console().print(_table(title, found[title]))


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Export what is compared, and let it race."""
    before = conditions()
    config = variant_config(arguments.variant, image_size=parse_image_size(arguments.image_size))
    source = from_random(arguments.variant, config)
    images = reference_images(source.spec.preprocess, arguments.images)
    calibration = calibration_images(source.spec.preprocess, arguments.images, images)
    artifacts = {
        precision: export_onnx(
            source, scratch / precision, images, ExportOptions(precision=precision), calibration
        )
        for precision in dict.fromkeys(["fp32", *arguments.precisions])
    }  # fmt: skip
    for name, attention in (("dense", False), ("all", True)):
        (scratch / name).mkdir()
        write_products(scratch / name / "products.onnx", config, attention=attention)
    save_checkpoint(scratch / "checkpoint", source.model, source.spec, {"weights": "random"})
    del source
    gc.collect()

    fp32 = str(artifacts["fp32"].folder)
    own = [Entry(title=f"fp32, {name}", runtime=name, artifact=fp32) for name in ("onnxruntime", "openvino")]
    alone = [
        Entry(
            title=f"{which} products, {name}", runtime=name, artifact=fp32,
            graph=str(scratch / which / "products.onnx"),
        )
        for which in ("all", "dense")
        for name in ("onnxruntime", "openvino")
    ]  # fmt: skip
    entries = [own[0]] + [
        Entry(title=f"{precision}, {parity.runtime}", runtime=parity.runtime, artifact=str(artifact.folder))
        for precision, artifact in artifacts.items()
        for parity in artifact.manifest.parity
        if (precision, parity.runtime) != ("fp32", "onnxruntime")
    ]
    entries.append(Entry(title="fp32, torch", runtime="torch", artifact=fp32, graph=str(scratch / "checkpoint")))
    result: dict[str, Any] = {
        "benchmark": "runtimes", "variant": arguments.variant, "image_size": list(config.image_size), "batch": 1,
        "weights": "random", "rounds": arguments.rounds, "calibration_images": len(calibration), "conditions": before,
    }  # fmt: skip
    result["products"] = _race([*own, *alone], arguments.rounds)
    peer = None
    if find_spec("nncf"):
        from benchmarks.studies.nncf_peer import quantize_with_nncf, run_openvino

        peer = scratch / "nncf" / "model.xml"
        quantize_with_nncf(artifacts["fp32"], calibration, peer)
        entries.append(Entry(title="int8 by nncf, openvino", runtime="openvino", artifact=fp32, graph=str(peer)))
    rows = _race(entries, arguments.rounds)
    for row in rows:
        precision, _, runtime = row["title"].partition(", ")
        if artifact := artifacts.get(precision):
            row.update(_parity(artifact, runtime))
            row["graph_bytes"] = sum(f.bytes for n, f in artifact.manifest.files.items() if n.startswith("model.onnx"))
        elif peer is not None and precision == "int8 by nncf":
            reference_images_BYXC, reference = artifacts["fp32"].reference()
            outputs = run_openvino(peer, artifacts["fp32"], reference_images_BYXC)
            found = compare(outputs, {"pre_logits": reference["pre_logits"]}, runtime="nncf", precision="int8")
            row.update(relative_error=found.relative_error, cosine=found.cosine)
            row["graph_bytes"] = sum(file.stat().st_size for file in peer.parent.iterdir())
    result["precisions"] = rows
    return result


def _race(entries: list[Entry], rounds: int) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        lanes = []
        with progress("loading", len(entries)) as advance:
            for entry in entries:
                lanes.append(stack.enter_context(Lane(entry)))
                advance(1)
        with progress("measuring", len(entries) * rounds) as advance:
            times = race(lanes, rounds, advance)
        return [
            {"title": lane.entry.title, **row, **lane.loaded} for lane, row in zip(lanes, times, strict=True)
        ]  # fmt: skip


def _parity(artifact: Artifact, runtime: str) -> dict[str, float]:
    for parity in artifact.manifest.parity:
        if parity.runtime == runtime:
            return {"relative_error": parity.relative_error, "cosine": parity.cosine}
    return {}


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "what", "ms", "x faster than the first", "cosine", "graph MB", "resident MB", "of it files", title=title
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            row["title"],
            f"{row['p50_ms']:,.1f}",
            f"{row['speedup']:.2f} ({row['speedup_p25']:.2f} to {row['speedup_p75']:.2f})",
            f"{row['cosine']:.5f}" if "cosine" in row else "",
            f"{row['graph_bytes'] / 1e6:,.0f}" if "graph_bytes" in row else "",
            f"{row['resident_bytes'] / 1e6:,.0f}",
            f"{row['file_bytes'] / 1e6:,.0f}",
        )
    return table


if __name__ == "__main__":
    main()
