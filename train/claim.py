"""A run's claim on its folder: `run.json` says what runs there, and a lock that nobody else runs there now."""

from __future__ import annotations

import errno
import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Final

from sovit.checkpoint import is_checkpoint
from sovit.errors import ConfigError, SoViTError
from sovit.jsonio import read_json, to_dict, write_json
from train.config import FREE_TO_CHANGE, TrainConfig
from train.data.dataset import Dataset
from train.data.identity import difference, identity
from train.world import World

# What has to be the same where a run begins from another one's state.
_OF_A_STATE: Final = (
    "width", "depth", "mlp_dim", "num_heads", "patch_size", "image_size", "pool", "position_embedding", "optimizer",
)  # fmt: skip
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # nobody's wrong usage
_STATES: Final = ("step-*", ".step-*", "damaged-step-*")


@contextmanager
def locked(out: Path, world: World) -> Iterator[None]:
    """Keep others out of a run's folder in the block. Raises `ConfigError` in all processes where another run uses it.

    The lock is the process's own: its workers do not inherit it, and it ends with the process.
    """
    locks: list[IO[str]] = []
    try:
        world.on_main(lambda: locks.append(_lock(out)))
        yield
    finally:
        for lock in locks:
            lock.close()


class Claim:
    """What a run says of itself, against what its folder says."""

    def __init__(
        self, out: Path, config: TrainConfig, train_set: Dataset, test_set: Dataset, branch: Path | None
    ) -> None:
        self._out, self._config, self._branch = out, config, branch
        self._train_set, self._test_set = train_set, test_set

    @cached_property
    def _begun(self) -> dict[str, Any]:
        """What `run.json` is to say. It takes decoding some images, which only the process that asks has to do."""
        return {
            "config": to_dict(self._config),
            "data": identity(self._train_set),
            "test_data": identity(self._test_set),
            "branch": str(self._branch.resolve()) if self._branch else None,
        }

    def check(self, *, going_on: bool) -> None:
        """Raise `ConfigError` for a folder that is somebody else's, and for one of another run than is to go on."""
        out, path = self._out, self._out / "run.json"
        held = out / "state"
        if not path.is_file() and ((out / "log.jsonl").exists() or (held.is_dir() and any(held.iterdir()))):
            raise ConfigError(f"{out} holds a log.jsonl or a state folder, and no run of ours: choose another --out.")
        board = out / "tensorboard"
        if self._config.tensorboard and board.exists() and not board.is_dir():
            raise ConfigError(
                f"{board} is a file, and TensorBoard's events go into a folder of that name: move it away."
            )
        if not going_on:
            return
        last = _read(path)
        settings = [name for name in self._begun["config"] if name not in FREE_TO_CHANGE]
        pairs = [(name, last["config"].get(name), self._begun["config"][name]) for name in settings]
        pairs.append(("branch", last.get("branch"), self._begun["branch"]))
        found = next((f"{name} {old}, not {new}" for name, old, new in pairs if old != new), "")
        found = found or difference(last["data"], self._begun["data"])
        found = found or difference(last["test_data"], self._begun["test_data"])
        if found:
            raise ConfigError(f"{out} holds a run with {found}: choose another --out, or --restart to forget it.")

    def take(self, *, forget: bool, damaged: Sequence[Path]) -> None:
        """Write down what runs here. `forget` drops what was begun; the checkpoint stays until another replaces it.

        A kill in between leaves what can be begun again. Damaged states step aside.
        """
        out, begun = self._out, self._begun  # read before anything is dropped
        for state in damaged:
            aside = state.with_name(f"damaged-{state.name}")
            shutil.rmtree(aside, ignore_errors=True)
            state.rename(aside)
        if forget and (out / "run.json").is_file():
            for state in [path for pattern in _STATES for path in (out / "state").glob(pattern)]:
                shutil.rmtree(state)
            for file in [out / "log.jsonl", *(out / "tensorboard").glob("events.out.tfevents*")]:
                file.unlink(missing_ok=True)
        try:
            write_json(out / "run.json", begun)
        except OSError as error:
            raise SoViTError(f"{out / 'run.json'} cannot be written: {error.strerror or error}.") from error


def check_branch(branch: Path, config: TrainConfig, data: Dataset) -> None:
    """Raise `ConfigError` where the run of a state has another model, optimiser or classes than one that begins there.

    A state that lies outside its run's folder is taken as it is.
    """
    path = branch.absolute().parent.parent / "run.json"
    if not path.is_file():
        return
    last = _read(path)
    theirs, ours = last["config"], to_dict(config)
    pairs = [(name, theirs.get(name), ours[name]) for name in _OF_A_STATE]
    pairs.append(("averaged weights (ema)", bool(theirs.get("ema")), bool(config.ema)))
    pairs.append(("classes", last["data"].get("classes"), list(data.classes)))
    for name, old, new in pairs:
        if old != new:
            raise ConfigError(f"{branch} is of a run with {name} {old}, not {new}: nothing can begin from it here.")


def _lock(out: Path) -> IO[str]:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: --out is the folder of the run.")
    if is_checkpoint(out):
        raise ConfigError(f"{out} is a checkpoint, and --out is the folder of a run: choose another.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / "run.lock").open("a")
    except OSError as error:
        kind = SoViTError if error.errno in _FULL else ConfigError
        raise kind(f"{out} cannot be the folder of a run: {error.strerror or error}.") from error
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise ConfigError(f"another run is using {out} now: choose another --out, or wait for its end.") from error
    except OSError:
        pass  # a file system without locks
    return lock


def _read(path: Path) -> dict[str, Any]:
    found = read_json(path)
    parts = {name: found.get(name) for name in ("config", "data", "test_data")} if isinstance(found, dict) else {}
    if not parts or not all(isinstance(part, dict) for part in parts.values()):
        raise ConfigError(f"{path} does not say what runs there: choose another --out, or --restart to forget it.")
    return {**found, **parts}
