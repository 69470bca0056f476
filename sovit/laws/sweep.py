"""Which runs a law is to be fitted to: a star around a centre or a grid, as rows of the run table.

The star follows section 4.1 of Alabdulmohsin et al. 2023 (arXiv 2305.13035): one dimension at a time goes down from the
centre in equal ratios while the others stay, so that only it can be what is missing. The grid is section 3's: all
combinations of a few sizes. The paper's centre (1968, 40, 6144) is not trained, it is what the law is asked about; here
it may be, with `with_centre`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Final, Literal

from pydantic import ConfigDict

from sovit.config import ViTConfig
from sovit.errors import ConfigError
from sovit.jsonio import STRICT, from_dict, to_dict

MOST_SAVES: Final = 64  # of a trunk
# Fields of a recipe that a run has a place of its own for, or that follow from it.
_OWN: Final = frozenset(
    {"width", "depth", "mlp_dim", "num_heads", "patch_size", "image_size", "learning_rate", "batch_size", "seed",
     "steps", "epochs", "schedule", "cooldown_steps", "eval_every", "save_every", "keep_states", "threads", "log_every"}
)  # fmt: skip
DesignKind = Literal["star", "grid"]
MULTIPLE: Final = 8  # of MLP sizes
SIZES: Final = 4  # of each dimension
EVERY: Final = 4  # so many shapes one is trained at other learning rates too
STAR_RATIO: Final = 0.8  # from one size to the next one down: steps of about 20 %, as in the paper's grid


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a sweep: a shape, how it is trained, and at how many steps it is measured.

    `settings` are fields of the recipe besides the shape, as they would be typed after `--set`. At each of `horizons`,
    a number of steps, a cooldown of the fraction `cooldown` ends that branches off the trunk.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    patch_size: int
    image_size: tuple[int, int]
    recipe: str
    settings: tuple[str, ...]
    learning_rate: float
    batch_size: int
    horizons: tuple[int, ...]
    cooldown: float
    seed: int

    def __post_init__(self) -> None:
        if not self.horizons or list(self.horizons) != sorted(set(self.horizons)) or self.horizons[0] < 1:
            raise ConfigError(
                f"the horizons are {list(self.horizons)}: they must be rising numbers of steps, 1 or more."
            )
        if not 0 < self.cooldown < 1:
            raise ConfigError(f"the cooldown is {self.cooldown}, it must be a fraction above 0 and below 1.")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"the learning rate is {self.learning_rate}, it must be above 0 and finite.")
        if self.batch_size < 1 or self.seed < 0:
            raise ConfigError(f"batch size {self.batch_size} and seed {self.seed}: at least 1, and at least 0.")
        for setting in self.settings:
            if setting.partition("=")[0] in _OWN:
                raise ConfigError(f"--set {setting} is what the sweep itself says of its runs: leave it out.")
        self.starts  # noqa: B018 - raises
        # A shape that cannot be built is told before anything is trained.
        ViTConfig(
            width=self.width, depth=self.depth, mlp_dim=self.mlp_dim, num_heads=self.num_heads,
            patch_size=self.patch_size, image_size=self.image_size,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """A hash of all that decides the run: the same run has the same name in every table."""
        words = json.dumps(to_dict(self), sort_keys=True)
        return hashlib.sha256(words.encode()).hexdigest()[:12]

    @property
    def starts(self) -> tuple[int, ...]:
        """The step of the trunk at which each cooldown begins.

        Raises `ConfigError` for horizons whose starts have no common interval that a trunk could save its states at.
        """
        starts = tuple(steps - round(self.cooldown * steps) for steps in self.horizons)
        if starts[0] < 1 or starts[-1] // math.gcd(*starts) > MOST_SAVES:
            raise ConfigError(
                f"cooldowns of {self.cooldown:g} to {', '.join(map(str, self.horizons))} steps begin at "
                f"{', '.join(map(str, starts))}: choose horizons such as 500, 1000, 2000, so that these are multiples "
                "of one number."
            )
        return starts

    def row(self) -> dict[str, Any]:
        """As a line of the run table."""
        return {"run": self.name, **to_dict(self)}


def run_of(row: dict[str, Any], where: str) -> Run:
    """A run from its line. Raises `ConfigError` for a line that does not say what its name says."""
    known = {field.name for field in fields(Run)}
    run = from_dict(Run, {name: value for name, value in row.items() if name in known}, where)
    if row.get("run") != run.name:
        raise ConfigError(f"{where}: the run is {run.name} by its content, not {row.get('run')}: it was edited.")
    return run


def ladder(largest: int, *, count: int, ratio: float, multiple: int) -> tuple[int, ...]:
    """`count` sizes below `largest`, each `ratio` of the one above, to the nearest multiple; rising and all different.

    Raises `ConfigError` where that many do not fit.
    """
    if count < 1 or multiple < 1:
        raise ConfigError(f"{count} sizes that are multiples of {multiple}: both must be at least 1.")
    if count > largest // multiple:
        raise ConfigError(_no_room(count, largest, multiple))
    if not 0 < ratio < 1:
        raise ConfigError(f"the ratio is {ratio}, it must be above 0 and below 1.")
    sizes = [largest]
    for step in range(1, count + 1):
        nearest = round(largest * ratio**step / multiple) * multiple
        sizes.append(min(nearest, sizes[-1] - multiple))  # where steps are finer than the multiple
    if sizes[-1] < multiple:
        raise ConfigError(_no_room(count, largest, multiple))
    return tuple(reversed(sizes[1:]))


def _no_room(count: int, largest: int, multiple: int) -> str:
    return (
        f"there are no {count} sizes below {largest} that are multiples of {multiple}: take fewer, a larger centre, or "
        "a smaller multiple."
    )


def star(
    centre: Run, *, widths: Sequence[int], depths: Sequence[int], mlp_dims: Sequence[int], head_dim: int,
    with_centre: bool = False,
) -> tuple[Run, ...]:  # fmt: skip
    """The centre with one dimension changed at a time."""
    arms = {"width": widths, "depth": depths, "mlp_dim": mlp_dims}
    runs = [_resized(centre, head_dim, **{name: size}) for name, sizes in arms.items() for size in sizes]
    return _different([*runs, *([centre] if with_centre else [])])


def grid(
    centre: Run, *, widths: Sequence[int], depths: Sequence[int], mlp_dims: Sequence[int], head_dim: int
) -> tuple[Run, ...]:  # fmt: skip
    """All combinations."""
    shapes = itertools.product(widths, depths, mlp_dims)
    return _different([_resized(centre, head_dim, width=w, depth=d, mlp_dim=m) for w, d, m in shapes])


def with_learning_rates(runs: Sequence[Run], factors: Sequence[float], every: int) -> tuple[Run, ...]:
    """The runs, and every `every`-th of them at other learning rates: whether the rate is what is measured."""
    if every < 1:
        raise ConfigError(f"every {every}th shape is none: it must be 1 or more.")
    more = [replace(run, learning_rate=run.learning_rate * factor) for run in runs[::every] for factor in factors]
    return _different([*runs, *more])


def _resized(centre: Run, head_dim: int, **sizes: int) -> Run:
    width = sizes.get("width", centre.width)
    if width % head_dim:
        raise ConfigError(f"width {width} is no multiple of head_dim {head_dim}.")
    return replace(
        centre, num_heads=width // head_dim, width=width, depth=sizes.get("depth", centre.depth),
        mlp_dim=sizes.get("mlp_dim", centre.mlp_dim),
    )  # fmt: skip


def _different(runs: Sequence[Run]) -> tuple[Run, ...]:
    return tuple({run.name: run for run in runs}.values())
