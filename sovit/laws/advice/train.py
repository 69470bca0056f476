"""The command that trains a recommended shape as the runs were trained."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import ClassVar, Final

from pydantic import ConfigDict

from sovit.config import ViTConfig
from sovit.jsonio import STRICT
from sovit.laws.law_file import Training

_BATCH: Final = 128  # where no runs tell
_UNTOLD: Final = "RECIPE"
_LINE: Final = 74  # columns: the narrowest terminal must not break a command


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe and the fields of it that change, as they are typed after `--set`."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    recipe: str
    settings: tuple[str, ...]

    @classmethod
    def of(cls, config: ViTConfig, images: float, training: Training | None) -> Recipe:
        """What trains a shape on so many images, repeats counted; without `training` the recipe is left open."""
        batch_size = training.batch_size if training else _BATCH
        steps = max(1, round(images / batch_size))
        shape = {
            "width": config.width, "depth": config.depth, "mlp_dim": config.mlp_dim, "num_heads": config.num_heads,
            "patch_size": config.patch_size, "image_size": "x".join(map(str, config.image_size)), "pool": config.pool,
            "batch_size": batch_size, "steps": steps,
        }  # fmt: skip
        settings = [f"{name}={value}" for name, value in shape.items()]
        if training is None:
            return cls(recipe=_UNTOLD, settings=tuple(settings))
        # A cooldown off a trunk is a training of its own length by this schedule.
        cooldown = max(1, round(training.cooldown * steps))
        settings += ["schedule=rsqrt", f"cooldown_steps={cooldown}", f"learning_rate={training.learning_rate:g}"]
        own = dict(setting.partition("=")[::2] for setting in training.settings)
        warmup = own.get("warmup_steps") if training.warmup_steps is None else str(training.warmup_steps)
        if warmup is not None:  # a fraction would be of another length, and a short training has no room for all
            own.pop("warmup_fraction", None)
            own["warmup_steps"] = str(min(int(warmup), steps - cooldown)) if warmup.isdigit() else warmup
        settings += [f"{name}={value}" for name, value in own.items()]
        return cls(recipe=training.recipe, settings=tuple(settings))

    def told(self) -> str:
        """As it is typed, in lines that a shell takes for one."""
        how = "by a recipe of yours" if self.recipe == _UNTOLD else "as the runs were"
        fields = [f"--set {shlex.quote(field)}" for field in self.settings]
        lines = [f"sovit train {shlex.quote(self.recipe)} --data DATA --out RUN"]
        for field in fields:
            if len(lines[-1]) + len(field) > _LINE:
                lines.append(" ")
            lines[-1] += f" {field}"
        return f"train it {how}:\n" + " \\\n".join(f"  {line}" for line in lines)
