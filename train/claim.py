"""A run's claim on its folder: `run.json` says what runs there."""

from __future__ import annotations

import shutil
from pathlib import Path

from sovit.errors import ConfigError
from sovit.jsonio import read_json, to_dict, write_json
from train.config import FREE_TO_CHANGE, TrainConfig
from train.data.dataset import Dataset
from train.state import states


def claim(out: Path, config: TrainConfig, data: Dataset, branch: Path | None, *, restart: bool) -> None:
    """Write down what runs in this folder. Raises `ConfigError` where something else was begun there, or is there.

    `restart` forgets what was begun; the checkpoint stays until another takes its place.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: --out is the folder of the run.")
    path = out / "run.json"
    if not path.is_file() and ((out / "log.jsonl").exists() or (out / "state").exists()):
        raise ConfigError(f"{out} holds a log.jsonl or a state folder, and no run of ours: choose another --out.")
    if restart and path.is_file():
        for state in [*(out / "state").glob("step-*"), *(out / "state").glob(".step-*")]:
            shutil.rmtree(state)
        for file in [out / "log.jsonl", *(out / "tensorboard").glob("events.out.tfevents*"), path]:
            file.unlink(missing_ok=True)
    begun = {
        "config": to_dict(config), "data": data.name, "images": len(data), "classes": list(data.classes),
        "branch": str(branch.resolve()) if branch else None,
    }  # fmt: skip
    if states(out / "state") and path.is_file():
        last = read_json(path)
        settings = [name for name in begun["config"] if name not in FREE_TO_CHANGE]  # type: ignore[attr-defined]
        pairs = [(name, last.get("config", {}).get(name), begun["config"][name]) for name in settings]  # type: ignore[index]
        pairs += [(name, last.get(name), begun[name]) for name in ("data", "images", "classes", "branch")]
        for name, old, new in pairs:
            if old != new:
                raise ConfigError(
                    f"{out} holds a run with {name} {old}, not {new}: choose another --out, or --restart to forget it."
                )
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, begun)
