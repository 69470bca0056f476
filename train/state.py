"""What a run resumes from: weights, optimiser and averages as one of torch's distributed checkpoints, by step.

A state is written beside its place and put there by a rename, so that a kill at any moment leaves the older ones
whole. It can be read by another number of processes than wrote it.
"""

from __future__ import annotations

import logging
import re
import shutil
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from sovit.errors import CheckpointMismatch, ConfigError, SoViTError
from sovit.folder import sync
from sovit.jsonio import read_json, write_json
from train.optim.ema import Ema
from train.world import World

_STEP: Final = re.compile(r"step-(\d{9})")
_EMA: Final = "ema"
_SUMS: Final = "sums.json"
_BLOCK: Final = 1 << 24
_LOADER: Final = logging.getLogger()  # torch's loader logs there


class StateNotSaved(SoViTError):
    """A state could not be written, as on a full disk; those before it are intact."""


@dataclass(frozen=True)
class State:
    """What is saved and restored together."""

    model: nn.Module
    optimizer: Any
    ema: Ema | None


def states(folder: Path) -> dict[int, Path]:
    """The complete states in a folder by step, the oldest first."""
    found = {int(match[1]): path for path in folder.glob("step-*") if (match := _STEP.fullmatch(path.name))}
    return dict(sorted(found.items()))


def step_of(path: Path) -> int:
    """The step of a state's folder. Raises `ConfigError` for any other folder."""
    match = _STEP.fullmatch(path.name)
    if match is None or not path.is_dir():
        raise ConfigError(f"{path} is no state: it is a folder such as RUN/state/step-000001000.")
    return int(match[1])


def save(folder: Path, step: int, state: State, world: World, keep: int) -> None:
    """Write the state after `step` steps and drop all but the last `keep`. Raises `StateNotSaved`."""
    target, aside = folder / f"step-{step:09d}", folder / f".step-{step:09d}"
    if target.exists():
        return
    error = ""
    if world.is_main:
        shutil.rmtree(aside, ignore_errors=True)
    world.barrier()
    try:
        aside.mkdir(parents=True, exist_ok=True)
        with _quietly():
            save_distributed(_tensors(state), storage_writer=FileSystemWriter(aside), no_dist=world.size == 1)
    except (OSError, CheckpointException, RuntimeError) as found:
        error = _reason(found)
    if any(errors := [one for one in world.gathered(error) if one]):
        if world.is_main:
            shutil.rmtree(aside, ignore_errors=True)
        last = list(states(folder).values())[-1:]
        rest = f"the last one is intact: {last[0]}" if last else "there is none before it"
        raise StateNotSaved(f"the state at step {step} could not be saved ({errors[0]}); {rest}.")
    if world.is_main:
        write_json(aside / _SUMS, _sums(aside))
        aside.rename(target)
        sync(folder)
        for old in list(states(folder).values())[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    world.barrier()


def restore(path: Path, state: State, world: World) -> None:
    """Read a state into the model, the optimiser and the averages. Raises `CheckpointMismatch`."""
    reason = _torn(path) if world.is_main else ""
    if any(reasons := [one for one in world.gathered(reason) if one]):
        raise CheckpointMismatch(f"{path} is damaged: {reasons[0]}.")
    tensors = _tensors(state)
    try:
        with _quietly():
            load_distributed(tensors, storage_reader=FileSystemReader(path), no_dist=world.size == 1)
        set_state_dict(
            state.model, state.optimizer, model_state_dict=tensors["model"], optim_state_dict=tensors["optimizer"]
        )
        if state.ema is not None:
            state.ema.load_state_dict(tensors[_EMA])
    except (OSError, CheckpointException, RuntimeError, ValueError, KeyError, CheckpointMismatch) as error:
        reason = _reason(error)
    if any(reasons := [one for one in world.gathered(reason) if one]):
        raise CheckpointMismatch(f"{path} is no state of this run, or is damaged ({reasons[0]}).")


def _sums(folder: Path) -> dict[str, int]:
    """A checksum of every file: against a disk that forgets, not against anybody's intent."""
    found = {}
    for path in sorted(path for path in folder.iterdir() if path.name != _SUMS):
        with path.open("rb") as file:
            total = 0
            while block := file.read(_BLOCK):
                total = zlib.crc32(block, total)
        found[path.name] = total
    return found


def _torn(folder: Path) -> str:
    """What is wrong with a state's files, or ""."""
    try:
        wanted, found = read_json(folder / _SUMS), _sums(folder)
    except (ConfigError, OSError) as error:
        return str(error).rstrip(".")
    odd = sorted(name for name in {**wanted, **found} if wanted.get(name) != found.get(name))
    return f"{odd[0]} is not as it was written" if odd else ""


@contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's warnings that there is no process group, and its logged traceback of a damaged state."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        _LOADER.addFilter(_nothing)
        try:
            yield
        finally:
            _LOADER.removeFilter(_nothing)


def _nothing(_: logging.LogRecord) -> bool:
    return False


def _tensors(state: State) -> dict[str, Any]:
    model, optimizer = get_state_dict(state.model, state.optimizer)
    averages = {} if state.ema is None else {_EMA: state.ema.state_dict()}
    return {"model": model, "optimizer": optimizer, **averages}


def _reason(error: BaseException) -> str:
    """The first failure of a distributed checkpoint in its own words, on one line."""
    inner = error
    if isinstance(error, CheckpointException) and error.failures:
        inner = next(iter(error.failures.values()))[0]
    lines = str(inner).strip().splitlines() or [type(inner).__name__]
    return lines[0][:200].rstrip(".")
