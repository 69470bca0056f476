"""`sovit train` and `sovit evaluate`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sovit.cli import Result
from sovit.errors import ConfigError
from train.data import load_dataset
from train.evaluate import Evaluation, evaluate_classifier
from train.recipes import recipe


def train(arguments: argparse.Namespace) -> Result:
    """Run a recipe."""
    from rich.console import Console

    from train.loop import train as run

    config = recipe(arguments.recipe, arguments.set)
    result = run(
        config,
        load_dataset(arguments.data, "train"),
        load_dataset(arguments.data, "test"),
        arguments.out,
        console=Console(stderr=True),
    )
    data = {
        "checkpoint": str(result.checkpoint),
        "train_seconds": result.seconds,
        "final_loss": result.final_loss,
        "evaluation": asdict(result.evaluation),
    }
    text = (
        f"trained {config.steps} steps in {result.seconds:.1f} s, last loss {result.final_loss:.4f}\n"
        f"{result.evaluation.data}: top-1 {result.evaluation.top1:.2%} of {result.evaluation.images} images\n"
        f"checkpoint: {result.checkpoint}"
    )
    return Result(data, text)


def evaluate(arguments: argparse.Namespace) -> Result:
    """Evaluate a checkpoint, an artifact or a running service."""
    from sovit.artifact import is_artifact
    from sovit.checkpoint import is_checkpoint
    from sovit.client import Client
    from sovit.predict import load_artifact, load_checkpoint

    dataset = load_dataset(arguments.data, "test")
    folder = Path(arguments.target)
    if arguments.target.startswith(("http://", "https://")):
        with Client(arguments.target) as client:
            found = evaluate_classifier(client.classify, client.labels(), dataset)
    elif is_artifact(folder) or is_checkpoint(folder):
        predictor = load_artifact(folder) if is_artifact(folder) else load_checkpoint(folder)
        found = evaluate_classifier(predictor.classify, predictor.spec.labels, dataset)
    else:
        raise ConfigError(f"{arguments.target} is no checkpoint folder, no artifact folder and no http:// URL.")
    return Result({"target": arguments.target, **asdict(found)}, _table(arguments.target, found))


def _table(target: str, found: Evaluation) -> Any:
    from rich.markup import escape
    from rich.table import Table

    caption = (
        f"{escape(target)}: top-1 {found.top1:.2%}, top-5 {found.top5:.2%}, {found.images_per_second:,.0f} images/s "
        "(decoding and the model's run, one batch at a time)"
    )
    table = Table(
        "class", "images", "correct", "accuracy", title=f"{escape(found.data)}, {found.images} images", caption=caption
    )
    for name, images, correct in found.per_class:
        table.add_row(escape(name), str(images), str(correct), f"{correct / images:.1%}" if images else "")
    return table
