"""`sovit convert`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import Any

from rich.console import Console

from sovit.commands.result import Result, aligned
from sovit.config import parse_image_size
from sovit.convert.foreign import ImportOptions
from sovit.convert.importer import import_checkpoint
from sovit.cost import cost
from sovit.labels import read_labels


def convert(arguments: argparse.Namespace) -> Result:
    """Import a foreign checkpoint and say what came of it."""
    options = ImportOptions(
        image_size=None if arguments.image_size is None else parse_image_size(arguments.image_size),
        position_resampling=arguments.resample,
        drop_head=arguments.drop_head,
        num_classes=arguments.num_classes,
        labels=None if arguments.labels is None else read_labels(arguments.labels),
        score=arguments.score,
        resize=arguments.resize,
        crop_fraction=arguments.crop_fraction,
        interpolation=arguments.interpolation,
    )
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status("importing") as status:
            # The hub's own progress bars need the line for themselves.
            if arguments.source.startswith("hf:"):
                status.stop()
            found = import_checkpoint(arguments.source, arguments.to, options)
    else:
        found = import_checkpoint(arguments.source, arguments.to, options)
    for note in found.notes:
        print(f"note: {note}.", file=sys.stderr)
    spec = found.spec
    model = spec.model
    rows = [
        ("from", f"{arguments.source} ({found.layout})"),
        ("width, depth", f"{model.width}, {model.depth}"),
        ("mlp_dim, num_heads", f"{model.mlp_dim}, {model.num_heads} (head_dim {model.head_dim})"),
        ("parameters", f"{cost(model).parameters:,}"),
        ("pooling, GELU", f"{model.pool}, {model.gelu}"),
        *([("with", model.traits)] if model.traits else []),
        ("images", spec.preprocess.summary),
        ("classes", f"{model.num_classes} ({spec.score})" if model.num_classes else "no head"),
        ("text tower", f"{found.text_keys} tensors kept" if found.text_keys else "none in the source"),
    ]
    data: dict[str, Any] = {
        "checkpoint": str(found.folder),
        "source": arguments.source,
        "layout": found.layout,
        "model": asdict(model),
        "preprocess": asdict(spec.preprocess),
        "score": spec.score,
        "labels": len(spec.labels),
        "text_tensors": found.text_keys,
        "notes": list(found.notes),
    }
    return Result(data, aligned(f"{found.folder}: imported", rows))
