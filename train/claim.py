"""A run's claim on its folder: `run.json` says what runs there, and a lock that nobody else runs there now."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from sovit.errors import ConfigError, SoViTError
from sovit.jsonio import read_json, to_dict, write_json
from train.config import FREE_TO_CHANGE, TrainConfig
from train.data.dataset import Dataset
from train.data.identity import difference, identity
from train.state import states
from train.world import World

# What has to be the same where a run begins from another one's state.
_OF_A_STATE: Final = (
    "width", "depth", "mlp_dim", "num_heads", "patch_size", "image_size", "pool", "position_embedding", "optimizer",
)  # fmt: skip


@contextmanager
def claimed(
    out: Path, config: TrainConfig, data: Dataset, branch: Path | None, world: World, *, restart: bool
) -> Iterator[None]:
    """Write down what runs in this folder, and keep others out of it in the block.

    Raises `ConfigError` in all processes where something else was begun there, is there, or runs there now. `restart`
    forgets what was begun; the checkpoint stays until another takes its place.
    """
    locks: list[IO[str]] = []

    def claim() -> None:
        try:
            locks.append(_locked(out))
            _claim(out, config, data, branch, restart=restart)
        except OSError as error:
            raise ConfigError(f"{out} cannot be the folder of a run: {error.strerror or error}.") from error

    try:
        world.on_main(claim)
        yield
    finally:
        for lock in locks:
            lock.close()


def check_branch(branch: Path, config: TrainConfig, data: Dataset) -> None:
    """Raise `ConfigError` where the run of a state has another model, optimiser or classes than one that begins there.

    A state that lies outside its run's folder is taken as it is.
    """
    path = branch.absolute().parent.parent / "run.json"
    if not path.is_file():
        return
    last = _read(path)
    theirs, ours = last.get("config", {}), to_dict(config)
    pairs = [(name, theirs.get(name), ours[name]) for name in _OF_A_STATE]
    pairs.append(("averaged weights (ema)", bool(theirs.get("ema")), bool(config.ema)))
    pairs.append(("classes", last.get("data", {}).get("classes"), list(data.classes)))
    for name, old, new in pairs:
        if old != new:
            raise ConfigError(f"{branch} is of a run with {name} {old}, not {new}: nothing can begin from it here.")


def _locked(out: Path) -> IO[str]:
    """The open lock of a folder. It is the process's own: workers do not inherit it, and it ends with the process."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: --out is the folder of the run.")
    out.mkdir(parents=True, exist_ok=True)
    lock = (out / "run.lock").open("a")
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise ConfigError(f"another run is using {out} now: choose another --out, or wait for its end.") from error
    except OSError:
        pass  # a file system without locks
    return lock


def _claim(out: Path, config: TrainConfig, data: Dataset, branch: Path | None, *, restart: bool) -> None:
    path = out / "run.json"
    if not path.is_file() and ((out / "log.jsonl").exists() or (out / "state").exists()):
        raise ConfigError(f"{out} holds a log.jsonl or a state folder, and no run of ours: choose another --out.")
    board = out / "tensorboard"
    if config.tensorboard and board.exists() and not board.is_dir():
        raise ConfigError(f"{board} is a file, and TensorBoard's events go into a folder of that name: move it away.")
    if restart and path.is_file():
        for state in [*(out / "state").glob("step-*"), *(out / "state").glob(".step-*")]:
            shutil.rmtree(state)
        for file in [out / "log.jsonl", *board.glob("events.out.tfevents*"), path]:
            file.unlink(missing_ok=True)
    begun = {
        "config": to_dict(config), "data": identity(data), "branch": str(branch.resolve()) if branch else None,
    }  # fmt: skip
    if states(out / "state") and path.is_file():
        _check_same(out, _read(path), begun)
    write_json(path, begun)


def _check_same(out: Path, last: dict[str, Any], begun: dict[str, Any]) -> None:
    settings = [name for name in begun["config"] if name not in FREE_TO_CHANGE]
    pairs = [(name, last.get("config", {}).get(name), begun["config"][name]) for name in settings]
    pairs.append(("branch", last.get("branch"), begun["branch"]))
    found = next((f"{name} {old}, not {new}" for name, old, new in pairs if old != new), "")
    found = found or difference(last.get("data", {}), begun["data"])
    if found:
        raise ConfigError(f"{out} holds a run with {found}: choose another --out, or --restart to forget it.")


def _read(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("data", {}), dict):
        raise SoViTError(f"{path} is damaged: it must say what runs there.")
    return found
