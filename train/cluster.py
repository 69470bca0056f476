"""The runs of a table as tasks of a Ray cluster; all its machines see the table's folder and the data by these paths.

A worker that is killed costs nothing: Ray starts the task again, and the run goes on from its last state.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from rich.console import Console

from sovit.errors import ConfigError, MissingDependency, SoViTError
from sovit.laws.runs import RunResult, RunTable
from sovit.laws.sweep import Run
from train.jobs import RunsFailed, told

_RETRIES: Final = 5  # of a task whose worker died
_ANSWERS_SECONDS: Final = 5.0
LOCAL: Final = "local"


def run_on_ray(
    table: RunTable, runs: Sequence[Run], data: str, *, address: str, threads: int, jobs: int, console: Console
) -> None:
    """Run them where the cluster has `threads` cores free for each; `local` starts one here for as many as `jobs`.

    Raises `RunsFailed` when all have ended and some did so with an error; what the others found is in the table.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingDependency("--ray needs Ray: pip install 'sovit[cluster]'.") from error
    try:
        if address == LOCAL:
            # Without an address of its own Ray may look for one of the machine's that does not answer.
            ray.init(
                num_cpus=jobs * threads, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False
            )
        else:
            _must_answer(address)
            ray.init(address=address, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"--ray {address}: no cluster could be joined there ({error}).") from error
    try:
        task = ray.remote(num_cpus=threads, max_retries=_RETRIES)(_job)
        waiting = {task.remote(run, data, str((table.folder / run.name).resolve()), threads): run.name for run in runs}
        failed: list[str] = []
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting))
            name = waiting.pop(ready)
            try:
                result = ray.get(ready)
            except ray.exceptions.RayError as error:
                failed.append(name)
                console.print(f"{name}: {_reason(error)}", highlight=False, markup=False)
            else:
                with suppress(ConfigError):  # of another run's result: the end of the command tells it
                    table.collect()
                console.print(f"{name}: {told(result)}", highlight=False, markup=False)
    finally:
        ray.shutdown()
    if failed:
        raise RunsFailed(failed, len(runs))


def _must_answer(address: str) -> None:
    """Raises `OSError` where nothing listens: Ray itself would wait for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _ANSWERS_SECONDS).close()


def _job(run: Run, data: str, folder: str, threads: int) -> RunResult:
    from train.sweep import Sets, carry_out

    return carry_out(run, Sets.load(data), Path(folder), threads=threads, console=Console(quiet=True))


def _reason(error: Exception) -> str:
    cause = getattr(error, "cause", None)
    return str(cause if isinstance(cause, SoViTError) else error).strip().splitlines()[-1]
