"""A run's claim on its folder: `run.json` says what runs there."""

from __future__ import annotations

import shutil
from pathlib import Path

from sovit.errors import ConfigError
from sovit.jsonio import read_json, to_dict, write_json
from train.config import FREE_TO_CHANGE, TrainConfig
from train.data.dataset import Dataset
from train.state import states


def claim(out: Path, config: TrainConfig, data: Dataset, *, restart: bool) -> None:
    """Write down what runs in this folder. Raises `ConfigError` where something else was begun there.

    `restart` forgets what was begun; the checkpoint stays until another takes its place.
    """
    if restart:
        for name in ("state", "run.json", "log.jsonl", "tensorboard"):
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    begun = {"config": to_dict(config), "data": data.name, "images": len(data), "classes": list(data.classes)}
    path = out / "run.json"
    if states(out / "state") and path.is_file():
        last = read_json(path)
        settings = [name for name in begun["config"] if name not in FREE_TO_CHANGE]  # type: ignore[attr-defined]
        pairs = [(name, last["config"].get(name), begun["config"][name]) for name in settings]  # type: ignore[index]
        pairs += [(name, last[name], begun[name]) for name in ("data", "images", "classes")]
        for name, old, new in pairs:
            if old != new:
                raise ConfigError(
                    f"{out} holds a run with {name} {old}, not {new}: choose another --out, or --restart to forget it."
                )
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, begun)
