"""`sovit bench scenario`."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from typing import Any

from rich.console import Console

from benchmarks.conditions import conditions
from benchmarks.process import ended_like_ctrl_c, run_child
from benchmarks.scenarios.child import Order
from benchmarks.scenarios.loadgen import Outcome, Scenario, loadgen
from sovit.artifact import open_artifact
from sovit.commands.result import Result, aligned
from sovit.cores import require_threads
from sovit.errors import ConfigError
from sovit.jsonio import from_dict, must_be_writable, write_json
from sovit.runtime.open import setting_for


def scenario(arguments: argparse.Namespace) -> Result:
    """Run one scenario on an artifact."""
    must_be_writable(arguments.out)
    require_threads(arguments.threads)
    if arguments.max_batch is not None and arguments.max_batch < 1:
        raise ConfigError(f"--max-batch {arguments.max_batch} must be at least 1.")
    loadgen()
    artifact = open_artifact(arguments.artifact)
    setting = setting_for(artifact, runtime=arguments.runtime, threads=arguments.threads or 0, lanes=1)
    asked = Scenario(
        name=arguments.scenario,
        min_seconds=arguments.seconds,
        rate=arguments.rate,
        limit_ms=arguments.limit_ms,
        percentile=arguments.percentile,
        max_batch=arguments.max_batch or setting.batch,
        seed=arguments.seed,
    )
    before = conditions()
    label = f"{asked.name}, at least {asked.min_seconds:g} s"
    with (
        ended_like_ctrl_c(),
        tempfile.TemporaryDirectory(prefix="sovit-loadgen-") as scratch,
        Console(stderr=True).status(label, refresh_per_second=1),  # drawing takes of the cores that are measured
    ):
        order = Order(artifact=str(artifact.folder.resolve()), setting=setting, scenario=asked, scratch=scratch)
        outcome = from_dict(Outcome, run_child("benchmarks.scenarios.child", order), "the outcome")
    data: dict[str, Any] = {
        "benchmark": "scenario",
        "artifact": artifact.manifest.name,
        "precision": artifact.manifest.precision,
        "runtime": setting.runtime,
        "threads": setting.threads,
        "conditions": before,
        "settings": asdict(asked),
        "outcome": asdict(outcome),
    }
    if arguments.out:
        write_json(arguments.out, data)
    rows = [
        ("runtime", f"{setting.runtime} {artifact.manifest.precision}, {setting.threads} threads"),
        ("images", f"{outcome.images:,} in {outcome.batches:,} runs"),
        ("images/s", _number(outcome.images_per_second)),
        *((name, _number(getattr(outcome, f"{name}_ms")) + " ms") for name in ("p50", "p90", "p99")),
        ("load generator", f"not met: {', '.join(outcome.unmet)}" if outcome.unmet else "all its conditions are met"),
    ]
    return Result(data, aligned(f"{asked.name} of {artifact.manifest.name}", rows))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}"
