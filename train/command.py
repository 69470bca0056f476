"""`sovit train` and `sovit evaluate`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from sovit.artifact import Precision, is_artifact
from sovit.checkpoint import is_checkpoint
from sovit.client import Client
from sovit.commands.result import Result
from sovit.errors import EXIT_FAILED, ConfigError
from sovit.predict import Predictor, load_artifact, load_checkpoint
from train.data.dataset import load_dataset
from train.evaluate import Evaluation, evaluate_classifier
from train.probing import ProbeResult, evaluate_probe
from train.settings import recipe
from train.signals import StopNow, Stopped, ending_at_once


def train(arguments: argparse.Namespace) -> Result | None:
    """Run a recipe, and deliver what it trained where that is asked for. Of several processes the first one tells."""
    # SIGTERM costs nothing before the loop and after it: a checkpoint that is there stays.
    try:
        with ending_at_once():
            return _train(arguments)
    except StopNow:
        said = "stopped between the steps of a run; the same command goes on from there."
        return Result({"stopped_by_signal": int(signal.SIGTERM)}, said)


def _train(arguments: argparse.Namespace) -> Result | None:
    from rich.console import Console

    from train.deliver import check_delivery, deliver, serve
    from train.loop import train as run
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
        f"{_failures(result.evaluation)}\ncheckpoint: {result.checkpoint}"
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


def evaluate(arguments: argparse.Namespace) -> Result:
    """Evaluate a checkpoint, an artifact or a running service; a probe evaluates its embeddings."""
    if arguments.probe and arguments.against:
        raise ConfigError("--against compares classes, and a probe has its own: leave one of them out.")
    test_set = load_dataset(arguments.data, "test")
    with _opened(arguments.target) as model:
        if arguments.probe:
            train_set = load_dataset(arguments.data, "train")
            probe = evaluate_probe(arguments.probe, model.embed, train_set, test_set)
            return _result(arguments.target, probe, _probe_table(arguments.target, probe))
        labels = model.labels() if isinstance(model, Client) else model.spec.labels
        with _opened(arguments.against) if arguments.against else nullcontext() as other:
            found = evaluate_classifier(model.classify, labels, test_set, other.classify if other else None)
        return _result(arguments.target, found, _table(arguments.target, found))


@contextmanager
def _opened(target: str) -> Iterator[Predictor | Client]:
    folder = Path(target)
    if target.lower().startswith(("http://", "https://")):
        with Client(target) as client:
            yield client
    elif is_artifact(folder) or is_checkpoint(folder):
        predictor = load_artifact(folder) if is_artifact(folder) else load_checkpoint(folder)
        try:
            yield predictor
        finally:
            predictor.close()
    else:
        hint = f" (foreign weights are imported first: sovit convert {target} --to DIR)" if folder.exists() else ""
        raise ConfigError(f"{target} is no checkpoint folder, no artifact folder and no http:// URL{hint}.")


def _result(target: str, found: Evaluation | ProbeResult, table: Any) -> Result:
    """Images that could not be decoded make the command fail, with everything else in its result."""
    for name, reason in found.failed:
        print(f"{name}: {reason}", file=sys.stderr)
    return Result({"target": target, **asdict(found)}, table, EXIT_FAILED if found.failed else 0)


def _table(target: str, found: Evaluation) -> Any:
    summary = (
        f"{escape(target)}: top-1 {found.top1:.2%}, top-5 {found.top5:.2%}, {found.images_per_second:,.0f} images/s "
        f"(decoding and the model's run, one batch at a time){_failures(found)}"
    )
    if found.agreement is not None:
        summary += f"\nthe other model gives the same class for {found.agreement:.2%} of the images"
    table = Table("class", "images", "top-1", "top-5")
    for row in found.per_class:
        shares = (f"{row.top1 / row.images:.1%}", f"{row.top5 / row.images:.1%}") if row.images else ("", "")
        table.add_row(escape(row.name), str(row.images), *shares)
    return Group(f"{escape(found.data)}, {found.images} images", table, summary)


def _probe_table(target: str, found: ProbeResult) -> Any:
    settings = ", ".join(f"{name} {value:g}" for name, value in found.settings.items() if name != "converged")
    settings += "" if found.settings.get("converged", True) else ", not converged"
    summary = (
        f"{escape(target)}: {found.probe} probe on {found.train_images} training images, {settings}, "
        f"{found.images_per_second:,.0f} images/s{_failures(found)}"
    )
    table = Table("score", "accuracy")
    for name, value in found.scores.items():
        table.add_row(name, f"{value:.2%}")
    return Group(f"{escape(found.data)}, {found.images} images", table, summary)


def _failures(found: Evaluation | ProbeResult) -> str:
    return f"; {len(found.failed)} more could not be decoded and are not counted" if found.failed else ""
