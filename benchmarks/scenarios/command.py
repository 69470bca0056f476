"""`sovit bench scenario`."""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import asdict
from typing import Any

from rich.console import Console

from benchmarks.conditions import conditions
from benchmarks.scenarios.loadgen import Scenario, run_scenario
from sovit.artifact import open_artifact
from sovit.commands.result import Result, aligned
from sovit.errors import ConfigError
from sovit.jsonio import must_be_writable, write_json
from sovit.runtime.open import open_lanes, setting_for


def scenario(arguments: argparse.Namespace) -> Result:
    """Run one scenario on an artifact."""
    must_be_writable(arguments.out)
    for name in ("threads", "max_batch"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value} must be at least 1.")
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
    images, _ = artifact.reference()
    label = f"{asked.name}, at least {asked.min_seconds:g} s"
    with closing(open_lanes(artifact, setting)[0]) as runtime, Console(stderr=True).status(label):
        for _ in range(3):
            runtime.run(images[: asked.max_batch])
            runtime.run(images[:1])
        outcome = run_scenario(runtime, images, asked)
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
