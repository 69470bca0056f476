"""`sovit shape run`."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from sovit.commands.result import Result
from sovit.cores import available_cores
from sovit.errors import ConfigError
from sovit.laws.runs import RunTable, is_done
from train.cluster import LOCAL
from train.signals import StopNow, Stopped, ending_at_once


def run(arguments: argparse.Namespace) -> Result:
    """Train the runs of a table that are not done. Stopped by a signal, the same command goes on."""
    try:
        with ending_at_once():
            return _run(arguments)
    except (StopNow, Stopped):
        return Result({"stopped_by_signal": int(signal.SIGTERM)}, "stopped; the same command goes on from there.")


def _run(arguments: argparse.Namespace) -> Result:
    from rich.console import Console

    from train.sweep import Sets, carry_out, check

    console = Console(stderr=True)
    if arguments.jobs is not None and arguments.jobs < 1:
        raise ConfigError(f"--jobs is {arguments.jobs}, it must be at least 1.")
    if arguments.jobs is not None and arguments.ray not in (None, LOCAL):
        raise ConfigError("--jobs is how many run on this machine: a cluster runs as many as its cores allow.")
    jobs = arguments.jobs or 1
    if arguments.threads is not None and arguments.threads < 1:
        raise ConfigError(f"--threads is {arguments.threads}, it must be at least 1.")
    table = RunTable.at(arguments.table, arguments.out)
    runs = table.runs()
    if unknown := [name for name in arguments.only or () if name not in runs]:
        raise ConfigError(f"{arguments.table} has no run {', '.join(unknown)}.")
    rows = table.collect()
    asked = set(arguments.only or runs)
    left = [name for name, row in rows.items() if name in asked and not is_done(row)]
    threads = arguments.threads or max(1, available_cores() // jobs)
    if left:
        sets = Sets.load(arguments.data)
        for row in rows.values():
            if is_done(row) and row.get("data") != sets.train_set.name:
                raise ConfigError(
                    f"{arguments.table} has runs on {row.get('data')}, and --data is {sets.train_set.name}: a law is "
                    "of one data set, so write another table for this one."
                )
        for name in left:
            check(runs[name], sets)
    if left and arguments.ray:
        from train.cluster import run_on_ray

        run_on_ray(
            table, [runs[name] for name in left], str(Path(arguments.data).resolve()) if Path(arguments.data).is_dir()
            else arguments.data, address=arguments.ray, threads=threads, jobs=jobs, console=console,
        )  # fmt: skip
    elif len(left) == 1 and arguments.only:
        carry_out(runs[left[0]], sets, table.folder / left[0], threads=threads, console=console)
    elif left:
        from train.jobs import run_here

        def command(name: str) -> list[str]:
            words = ["shape", "run", str(table.path), "--data", arguments.data, "--out", str(table.folder)]
            return [*words, "--only", name, "--threads", str(threads)]

        run_here(table, left, command, jobs, console)
    rows = table.collect()
    done = sum(map(is_done, rows.values()))
    return Result(
        {"table": str(table.path), "runs": len(rows), "done": done, "trained_now": len(left)},
        f"{table.path}: {done} of {len(rows)} runs are done, {len(left)} of them now",
    )
