"""`sovit evaluate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from sovit.artifact import is_artifact
from sovit.checkpoint import is_checkpoint
from sovit.client import Client
from sovit.commands.result import Result
from sovit.errors import EXIT_FAILED, ConfigError
from sovit.predict import Predictor, load_artifact, load_checkpoint
from train.data.load import load_dataset
from train.evaluate import Evaluation, evaluate_classifier, not_decoded
from train.probing import ProbeResult, evaluate_probe


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
        f"(decoding and the model's run, one batch at a time){not_decoded(found.failed)}"
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
        f"{found.images_per_second:,.0f} images/s{not_decoded(found.failed)}"
    )
    table = Table("score", "accuracy")
    for name, value in found.scores.items():
        table.add_row(name, f"{value:.2%}")
    return Group(f"{escape(found.data)}, {found.images} images", table, summary)
