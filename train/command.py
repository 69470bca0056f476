"""`sovit train`. What takes long to import is imported where SIGTERM has its meaning already."""

from __future__ import annotations

import argparse
import signal
from dataclasses import asdict
from pathlib import Path

from sovit.artifact import Precision
from sovit.commands.result import Result
from sovit.errors import ConfigError
from train.signals import StopNow, Stopped, ending_at_once


def train(arguments: argparse.Namespace) -> Result | None:
    """Run a recipe, and deliver what it trained where that is asked for. Of several processes the first one tells."""
    # SIGTERM costs nothing before the loop and after it: a checkpoint that is there stays.
    try:
        with ending_at_once():
            return _train(arguments)
    except StopNow:
        said = "stopped where no step was being made; the same command goes on from there."
        return Result({"stopped_by_signal": int(signal.SIGTERM)}, said)


def _train(arguments: argparse.Namespace) -> Result | None:
    from rich.console import Console

    from train.data.load import load_dataset
    from train.deliver import check_delivery, deliver, serve
    from train.evaluate import not_decoded
    from train.loop import train as run
    from train.settings import recipe
    from train.world import launched

    config = recipe(arguments.recipe, arguments.set)
    precision: Precision | None = arguments.export or ("fp32" if arguments.serve is not None else None)
    if arguments.serve is not None and arguments.json:
        raise ConfigError("--json prints a result and --serve has no end: leave one of them out.")
    rank, processes = launched()
    if precision and processes > 1:
        raise ConfigError("--export and --serve are for one process: run `sovit export` when torchrun has ended.")
    artifact: Path = arguments.out / "artifact"
    if precision:
        check_delivery(artifact, arguments.serve)
    console = Console(stderr=True)
    train_set, test_set = load_dataset(arguments.data, "train"), load_dataset(arguments.data, "test")
    try:
        result = run(
            config, train_set, test_set, arguments.out, console=console, restart=arguments.restart,
            branch=arguments.branch,
        )  # fmt: skip
    except Stopped as stopped:
        return Result({"stopped_by_signal": stopped.signal}, str(stopped), stopped.exit_code)
    if rank:
        return None
    data = {
        "checkpoint": str(result.checkpoint),
        "train_seconds": result.seconds,
        "final_loss": result.final_loss,
        "evaluation": asdict(result.evaluation),
    }
    text = (
        f"trained {result.steps} steps in {result.seconds:.1f} s, last loss {result.final_loss:.4f}\n"
        f"{result.evaluation.data}: top-1 {result.evaluation.top1:.2%} of {result.evaluation.images} images"
        f"{not_decoded(result.evaluation.failed)}\ncheckpoint: {result.checkpoint}"
    )
    if precision:
        found = deliver(result.checkpoint, artifact, precision, arguments.data, train_set, console)
        data |= {"artifact": str(artifact), "artifact_evaluation": found}
        text += (
            f"\nartifact: {artifact}, {precision}: top-1 {found['top1']:.2%}, the checkpoint's class "
            f"for {found['agreement']:.2%} of the images"
        )
    if arguments.serve is not None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)
        serve(artifact, arguments.serve, console)
    return Result(data, text)
