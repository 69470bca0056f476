"""How long the import of a full-size checkpoint takes, and how much memory.

    python -m benchmarks.convert --out benchmarks/results/convert-so400m.json

Writes So400m/14 with random weights in each public layout into a temporary folder (7 GB), and runs `sovit convert` on
each as a process of its own, with the files just written still in the page cache. Goals: under 60 s, peak resident
memory under 2.5 times the weights file. The resident memory counts pages of mapped files, which the system takes back
when it needs them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.conditions import conditions
from benchmarks.foreign import write_big_vision, write_timm, write_transformers
from sovit.config import variant_config
from sovit.errors import ServiceError
from sovit.jsonio import write_json
from sovit.model import ViT


def main() -> None:
    """Measure each layout and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="So400m/14")
    parser.add_argument("--out", type=Path, help="write the rows and conditions as JSON there")
    arguments = parser.parse_args()
    writers: dict[str, tuple[str, Callable[[ViT, Path], int]]] = {
        "big_vision, scan-stacked": ("model.npz", write_big_vision),
        "timm": ("timm", lambda model, path: write_timm(model, path, "vit_so400m_patch14_siglip_224")),
        "transformers": ("transformers", write_transformers),
    }
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for layout, (name, write) in writers.items():
            torch.manual_seed(0)
            source = Path(temporary) / name
            size = write(ViT(variant_config(arguments.variant)), source)
            rows.append({"layout": layout, "weights_bytes": size, **measure(source, Path(temporary) / "out")})
    table = Table("layout", "weights MB", "seconds", "peak MB", "peak / weights")
    for row in rows:
        peak, size = row["peak_rss_bytes"], row["weights_bytes"]
        table.add_row(
            row["layout"], f"{size / 1e6:,.0f}", f"{row['seconds']:.1f}", f"{peak / 1e6:,.0f}", f"{peak / size:.2f}"
        )
    Console().print(table)
    if arguments.out:
        found = {"variant": arguments.variant, "page_cache": "warm", "rows": rows, "conditions": conditions()}
        write_json(arguments.out, found)


# What a forked process has used so far begins with its parent's memory; VmHWM begins anew with the program.
_PROGRAM: Final = """
import sys
from sovit.cli import main
code = main(sys.argv[1:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


def measure(source: Path, out: Path) -> dict[str, Any]:
    """Wall time and peak resident memory of `sovit convert` in a process of its own (Linux)."""
    began = time.perf_counter()
    command = [sys.executable, "-c", _PROGRAM, "convert", str(source), "--to", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServiceError(f"sovit convert {source} failed: {done.stderr}")
    return {"seconds": time.perf_counter() - began, "peak_rss_bytes": int(done.stdout.split()[-1]) * 1024}


if __name__ == "__main__":
    main()
