"""Where a run goes on: after its newest state that is whole, where it branches off another run, or at its beginning."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from sovit.errors import CheckpointMismatch, ConfigError
from train.claim import check_branch
from train.config import TrainConfig
from train.data.dataset import Dataset
from train.state import State, restore, states, step_of
from train.world import World


class Origin(NamedTuple):
    """Steps that were done before, and states that turned out to be damaged."""

    done: int
    damaged: tuple[Path, ...]


def branch_wanted(out: Path, branch: Path | None, config: TrainConfig, data: Dataset, *, restart: bool) -> Path | None:
    """The branch, where the run has no state of its own; raises `ConfigError` for one that it cannot begin from."""
    if branch is None or (states(out / "state") and not restart):
        return None
    step_of(branch)
    check_branch(branch, config, data)
    if restart and branch.resolve().is_relative_to(out.resolve()):
        raise ConfigError(f"{branch} is in the folder that --restart forgets: choose another --out.")
    return branch


def restored(
    own: dict[int, Path], branch: Path | None, state: State, steps: int, world: World, console: Console
) -> Origin:
    """Restore the newest of a run's own states that is whole, or else the branch. Changes nothing on the disk.

    What a damaged state held is computed again, to the same bits. Raises `CheckpointMismatch` where all are damaged,
    and `ConfigError` for a state beyond the run's end.
    """
    older = list(own.items())
    damaged: list[Path] = []
    while older:
        done, path = older.pop()
        _check_within(done, path, steps)
        try:
            restore(path, state, world)
        except CheckpointMismatch as error:
            if not older:
                raise CheckpointMismatch(f"{error} None before it is whole: --restart begins anew.") from error
            console.print(f"warning: {error} Going on from an older one.", highlight=False, markup=False)
            damaged.append(path)
        else:
            return Origin(done, tuple(damaged))
    if branch is None:
        return Origin(0, ())
    done = step_of(branch)
    _check_within(done, branch, steps)
    restore(branch, state, world)
    return Origin(done, ())


def _check_within(done: int, path: Path, steps: int) -> None:
    if done > steps:
        raise ConfigError(f"{path} is beyond the {steps} steps of this run: raise steps.")
