"""How long the import of a full-size checkpoint takes, and how much memory.

    python -m benchmarks.studies.convert --out benchmarks/results/convert-so400m.json

Writes So400m/14 with random weights in each public layout into a temporary folder (7 GB), and runs `sovit convert` on
each as a process of its own, with the files just written still in the page cache. Goals: under 60 s, peak resident
memory under 2.5 times the weights file. The resident memory counts pages of mapped files, which the system takes back
when it needs them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.conditions import conditions
from benchmarks.studies.commands import run_sovit
from benchmarks.studies.foreign import write_big_vision, write_timm, write_transformers
from sovit.config import variant_config
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
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for layout, (name, write) in writers.items():
            torch.manual_seed(0)
            source = Path(temporary) / name
            size = write(ViT(variant_config(arguments.variant)), source)
            taken = run_sovit("convert", str(source), "--to", str(Path(temporary) / "out"))
            rows.append({"layout": layout, "weights_bytes": size, **taken})
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


if __name__ == "__main__":
    main()
