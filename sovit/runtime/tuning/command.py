"""`sovit tune`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table

from sovit.artifact import open_artifact
from sovit.commands.result import Result
from sovit.runtime.open import RUNTIMES, unknown_runtime
from sovit.runtime.profile import AUTO, GOALS, Setting, best, save_profile
from sovit.runtime.tuning.tune import Tuned, TuneOptions, tune


def tune_artifact(arguments: argparse.Namespace) -> Result:
    """Measure an artifact's settings on this machine and keep them where the service finds them."""
    names = tuple(arguments.runtime or ())
    for name in names:
        if name not in RUNTIMES or name == AUTO:
            raise unknown_runtime(name)
    artifact = open_artifact(arguments.artifact)
    options = TuneOptions(runtimes=names, max_batch=arguments.max_batch, rounds=arguments.rounds)
    tuned = tune(artifact, options)
    path = save_profile(artifact, tuned.profile)
    measured = tuned.profile.measured
    data: dict[str, Any] = {
        "artifact": str(artifact.folder),
        "profile": str(path),
        "machine": asdict(tuned.profile.machine),
        "rounds": options.rounds,
        **{goal: asdict(setting) for goal in GOALS if (setting := best(measured, goal))},
        "measured": [asdict(measurement) for measurement in measured],
        "left_out": tuned.left_out,
    }
    return Result(data, _table(tuned))


def _table(tuned: Tuned) -> Table:
    measured, machine = tuned.profile.measured, tuned.profile.machine
    chosen = {goal: best(measured, goal) for goal in GOALS}
    lines = [f"{machine.gpu or machine.processor}, {machine.cores} cores, at least {tuned.profile.rounds} turns each"]
    lines += [f"for {goal}: {_in_words(setting)}" for goal, setting in chosen.items() if setting]
    lines += [f"left out: {escape(name)}: {escape(reason)}" for name, reason in tuned.left_out.items()]
    table = Table("runtime", "threads", "lanes", "batch", "ms a run", "images/s", caption="\n".join(lines))
    table.caption_justify = "left"
    for column in table.columns[1:]:
        column.justify = "right"
    for m in measured:
        table.add_row(
            m.runtime, str(m.threads), str(m.lanes), str(m.batch), f"{m.milliseconds:,.2f}",
            f"{m.images_per_second:,.2f}", style="bold" if m.setting in chosen.values() else "",
        )  # fmt: skip
    return table


def _in_words(setting: Setting) -> str:
    lanes = "one lane" if setting.lanes == 1 else f"{setting.lanes} lanes"
    threads = "one thread" if setting.threads == 1 else f"{setting.threads} threads"
    batch = "one image at a time" if setting.batch == 1 else f"up to {setting.batch} images at a time"
    return f"{setting.runtime}, {lanes}, {threads}, {batch}"
