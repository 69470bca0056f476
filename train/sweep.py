"""One run of a sweep: a trunk at a rate that hardly falls, and a cooldown off it for every horizon.

    RUN/trunk               to where the last cooldown begins
    RUN/steps-000000500     the cooldown that ends at 500 steps: a model trained for 500 steps, measured
    RUN/result.json         the points of all horizons, once they are all there

Each part is a training as any other: stopped at any moment, it goes on from its last state.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from rich.console import Console

from sovit.cost import cost
from sovit.errors import ConfigError
from sovit.jsonio import to_dict, write_json
from sovit.laws.runs import RESULT, RunPoint, RunResult
from sovit.laws.sweep import MOST_SAVES, Run
from train.build import spec_of
from train.config import TrainConfig
from train.data.dataset import Dataset
from train.data.load import load_dataset
from train.loop import train
from train.samples import decoded
from train.settings import recipe

_LOOKED_AT: Final = 64  # test images that a trunk is evaluated on: it is no result


@dataclass(frozen=True)
class Sets:
    """What all runs of a sweep learn from and are judged by."""

    train_set: Dataset
    test_set: Dataset

    @classmethod
    def load(cls, data: str) -> Sets:
        """Both splits of what `--data` names. Raises `ConfigError`."""
        return cls(load_dataset(data, "train"), load_dataset(data, "test"))


def carry_out(run: Run, sets: Sets, folder: Path, *, threads: int, console: Console) -> RunResult:
    """Train what is left of a run; its result is what its line in the table is given, its points and the data.

    Raises what training raises.
    """
    starts = run.starts
    trunk = _config(run, starts[-1], threads, save_every=math.gcd(*starts), keep_states=MOST_SAVES + 1)
    spec = spec_of(trunk, sets.train_set.classes)
    flops = float(cost(spec.model).flops)
    # Decoded once for all parts of a run, where the recipe keeps its images.
    known = decoded(sets.train_set, spec.preprocess) if trunk.keep_decoded else sets.train_set
    glimpse = _first(sets.test_set, _LOOKED_AT)
    train(trunk, known, glimpse, folder / "trunk", console=console)
    points = []
    for start, steps in zip(starts, run.horizons, strict=True):
        config = _config(run, steps, threads, save_every=steps, keep_states=1, cooldown_steps=steps - start)
        branch = folder / "trunk" / "state" / f"step-{start:09d}"
        result = train(config, known, sets.test_set, folder / f"steps-{steps:09d}", console=console, branch=branch)
        points.append(
            RunPoint(
                steps=steps,
                images=steps * run.batch_size,
                forward_flops=flops * run.batch_size * steps,
                error=1 - result.evaluation.top1,
                loss=result.final_loss,
            )
        )
    found = RunResult(
        data=sets.train_set.name, train_images=len(sets.train_set), test_images=len(sets.test_set),
        classes=len(sets.train_set.classes), pool=spec.model.pool, warmup_steps=_warmup(run), points=tuple(points),
    )  # fmt: skip
    write_json(folder / RESULT, to_dict(found))
    shutil.rmtree(folder / "trunk" / "state", ignore_errors=True)
    return found


def check(run: Run, sets: Sets) -> None:
    """Raises `ConfigError` for a run that the recipe or the data do not allow, before any is trained."""
    spec_of(check_settings(run), sets.train_set.classes)


def check_settings(run: Run) -> TrainConfig:
    """The configuration of its shortest part. Raises `ConfigError` for a run that the recipe does not allow."""
    config = _config(run, run.horizons[0], 1)
    warmup = _warmup(run)
    if warmup > run.starts[0]:
        raise ConfigError(
            f"run {run.name} warms up for {warmup} steps and first cools down at {run.starts[0]}: give it "
            f"--set warmup_steps=N, at most {run.starts[0]}, or longer --steps."
        )
    return config


def _warmup(run: Run) -> int:
    """Steps, the same for the trunk and all that branches off: a fraction is of the shortest."""
    return recipe(run.recipe, [*run.settings, f"steps={run.horizons[0]}"]).warmup(run.horizons[0])


def _config(run: Run, steps: int, threads: int, **more: object) -> TrainConfig:
    shape = {name: getattr(run, name) for name in ("width", "depth", "mlp_dim", "num_heads", "patch_size")}
    settings = [one for one in run.settings if not one.startswith("warmup_")]
    own = {
        **shape, "warmup_steps": _warmup(run), "image_size": "x".join(map(str, run.image_size)),
        "learning_rate": run.learning_rate, "batch_size": run.batch_size, "seed": run.seed, "steps": steps, "epochs": 0,
        "schedule": "rsqrt", "eval_every": 0, "threads": threads, "log_every": 50, **more,
    }  # fmt: skip
    return recipe(run.recipe, [*settings, *(f"{name}={value}" for name, value in own.items())])


def _first(dataset: Dataset, count: int) -> Dataset:
    return replace(dataset, images=dataset.images[:count], targets=dataset.targets[:count])
