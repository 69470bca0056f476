"""PyTorch and ONNX Runtime on a GPU: images/s, MFU and parity of each, for shapes from S to G.

    python -m benchmarks.studies.gpu --images IMAGES --out benchmarks/results/gpu.json

Rows: eager PyTorch in fp32 (TF32 off; the reference of the others), bf16 by autocast, the same compiled, the same
compiled with CUDA graphs, and ONNX Runtime's CUDA provider in fp32 and bf16. Random weights. No GPU has run it yet: the
tests run it on a CPU, where it skips what needs CUDA.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.conditions import conditions
from export.reference import reference_images
from export.to_onnx import ExportOptions, Source, export_onnx, from_random
from sovit.artifact import Precision
from sovit.config import parse_image_size, variant_config
from sovit.cost import cost
from sovit.errors import SoViTError
from sovit.jsonio import write_json
from sovit.machine import this_machine
from sovit.parity import compare
from sovit.runtime.open import open_runtime
from sovit.runtime.ort import has_provider
from sovit.runtime.pytorch import Graph

VARIANTS: Final = ("S/16", "B/16", "L/16", "So150m/14", "So400m/14", "H/14", "g/14", "G/14")
# Dense bf16 products of the tensor cores, TFLOP/s, by the makers' data sheets.
PEAKS: Final = {"H200": 989.4, "H100": 989.4, "A100": 312.0, "L40S": 362.1, "L4": 121.0, "A10": 125.0}
_WARMUPS: Final = 3

Outputs = dict[str, NDArray[np.float32]]
Run = Callable[[NDArray[np.uint8]], Outputs]


def main() -> None:
    """Measure every variant and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--image-size", default="224")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--images", type=Path, help="folder of real photographs (default: crops of two)")
    parser.add_argument("--out", type=Path, help="write the rows and conditions as JSON there")
    arguments = parser.parse_args()
    before = conditions()
    rows = []
    for variant in arguments.variants:
        source = from_random(variant, variant_config(variant, image_size=parse_image_size(arguments.image_size)))
        images = reference_images(source.spec.preprocess, arguments.images)
        rows += measure(source, images, arguments.batch, rounds=arguments.rounds, device=arguments.device)
    table = Table("variant", "what", "batch", "ms", "images/s", "MFU", "relative error", "cosine")
    for row in rows:
        mfu = f"{row['mfu']:.1%}" if row.get("mfu") is not None else ""
        table.add_row(
            row["variant"], row["what"], str(row["batch"]), f"{row['p50_ms']:.2f}",
            f"{row['images_per_second']:,.1f}", mfu, f"{row['relative_error']:.1e}", f"{row['cosine']:.6f}",
        )  # fmt: skip
    Console().print(table)
    if arguments.out:
        write_json(arguments.out, {"benchmark": "gpu", "device": arguments.device, "rows": rows, "conditions": before})


def measure(
    source: Source, images_BYXC: NDArray[np.uint8], batches: list[int], *, rounds: int, device: str
) -> list[dict[str, Any]]:
    """All rows of one model. A batch's time is from pixels on the host to outputs on the host."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    rows = []
    with tempfile.TemporaryDirectory(prefix="sovit-gpu-") as scratch:
        reference: Outputs | None = None
        for what, precision, run in _candidates(source, images_BYXC, device, Path(scratch)):
            outputs = run(images_BYXC)
            reference = reference or outputs
            parity = compare(outputs, reference, runtime=what, precision=precision)
            for batch in batches:
                seconds = _median_seconds(run, images_BYXC[np.arange(batch) % len(images_BYXC)], rounds)
                flops = cost(source.spec.model).flops * batch / seconds
                peak = next((peak for name, peak in PEAKS.items() if name in this_machine().gpu), None)
                rows.append(
                    {
                        "variant": source.name,
                        "what": what,
                        "precision": precision,
                        "batch": batch,
                        "p50_ms": seconds * 1e3,
                        "images_per_second": batch / seconds,
                        "mfu": flops / (peak * 1e12) if peak and precision == "bf16" and device == "cuda" else None,
                        "relative_error": parity.relative_error,
                        "cosine": parity.cosine,
                    }
                )
    return rows


def _candidates(
    source: Source, images_BYXC: NDArray[np.uint8], device: str, scratch: Path
) -> Iterator[tuple[str, str, Run]]:
    """Ways to run a model, the reference first; what needs CUDA is left out on a CPU."""
    graph = Graph(source.model, source.spec.preprocess).eval().to(device)
    yield "torch eager", "fp32", partial(_torch_run, graph, graph, device, nullcontext())
    half: AbstractContextManager[Any] = torch.autocast(device, dtype=torch.bfloat16)
    yield "torch eager", "bf16", partial(_torch_run, graph, graph, device, half)
    if device == "cuda":
        for what, mode in (("torch.compile", "default"), ("torch.compile, CUDA graphs", "reduce-overhead")):
            torch.compiler.reset()
            yield what, "bf16", partial(_torch_run, torch.compile(graph, mode=mode), graph, device, half)
    graph.to("cpu")
    if device == "cuda" and has_provider("onnxruntime-cuda"):
        precisions: tuple[Precision, ...] = ("fp32", "bf16")
        for precision in precisions:
            try:
                artifact = export_onnx(source, scratch / precision, images_BYXC, ExportOptions(precision=precision))
                runtime = open_runtime(artifact, "onnxruntime-cuda")
            except SoViTError as error:
                Console(stderr=True).print(f"{source.name}, ONNX Runtime {precision}: {error}", markup=False)
                continue
            yield "onnxruntime-cuda", precision, runtime.run
            runtime.close()


@torch.inference_mode()
def _torch_run(
    call: Any, graph: Graph, device: str, precision: AbstractContextManager[Any], image_BYXC: NDArray[np.uint8]
) -> Outputs:
    with precision:
        outputs = call(torch.from_numpy(np.array(image_BYXC)).to(device))
    return {name: value.float().cpu().numpy() for name, value in zip(graph.output_names, outputs, strict=True)}


def _median_seconds(run: Run, image_BYXC: NDArray[np.uint8], rounds: int) -> float:
    for _ in range(_WARMUPS):
        run(image_BYXC)
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        run(image_BYXC)
        times.append(time.perf_counter() - began)
    return float(np.median(times))


if __name__ == "__main__":
    main()
