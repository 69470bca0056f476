"""`sovit shape sweep`."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from sovit.commands.result import Result
from sovit.config import parse_image_size
from sovit.errors import ConfigError
from sovit.laws.runs import RunTable
from sovit.laws.sweep import EVERY, SIZES, STAR_RATIO, Run, grid, ladder, star, with_learning_rates
from train.sweep import check_settings

N = TypeVar("N", int, float)


def sweep(arguments: argparse.Namespace) -> Result:
    """Write the runs of a design into a table; those that it lists already stay as they are."""
    if arguments.with_centre and arguments.design != "star":
        raise ConfigError("--with-centre is the star's: a grid has what its sizes make.")
    typed = None not in (arguments.widths, arguments.depths, arguments.mlp_dims)
    if typed and (arguments.sizes is not None or arguments.ratio is not None):
        raise ConfigError("--sizes and --ratio make sizes that are not typed: all three are.")
    centre = _centre(arguments)
    widths = _sizes(arguments, "widths", centre.width, arguments.head_dim)
    depths = _sizes(arguments, "depths", centre.depth, 1)
    mlp_dims = _sizes(arguments, "mlp_dims", centre.mlp_dim, arguments.multiple)
    design = {"widths": widths, "depths": depths, "mlp_dims": mlp_dims, "head_dim": arguments.head_dim}
    if arguments.design == "star":
        runs = star(centre, with_centre=arguments.with_centre, **design)
    else:
        runs = grid(centre, **design)
    if arguments.other_rates is not None:
        factors = _numbers("--other-rates", arguments.other_rates, float)
        if 1 in factors:
            raise ConfigError("--other-rates 1 is the design's own rate: name others.")
        runs = with_learning_rates(runs, factors, EVERY if arguments.every is None else arguments.every)
    elif arguments.every is not None:
        raise ConfigError("--every is of --other-rates: it says which shapes get them.")
    seeds = _numbers("--seeds", arguments.seeds, int)
    runs = tuple(replace(run, seed=seed) for run, seed in itertools.product(runs, seeds))
    # What a recipe does not allow is told before it is in the table, where it would stop all others.
    for run in runs:
        check_settings(run)
    table = RunTable.at(arguments.out)
    added = table.add(runs)
    steps = sum(run.horizons[-1] for run in runs)
    text = (
        f"{arguments.out}: {len(runs)} runs of a {arguments.design}, {added} of them new; widths {_words(widths)}, "
        f"depths {_words(depths)}, MLP sizes {_words(mlp_dims)}; about {steps:,} steps of {centre.batch_size} images"
    )
    sizes_of = {"widths": list(widths), "depths": list(depths), "mlp_dims": list(mlp_dims)}
    return Result({"table": str(arguments.out), "runs": len(runs), "added": added, **sizes_of}, text)


def _centre(arguments: argparse.Namespace) -> Run:
    try:
        width, depth, mlp_dim = map(int, arguments.centre.split(","))
    except ValueError as error:
        raise ConfigError(f"--centre is {arguments.centre!r}, it must be three numbers: WIDTH,DEPTH,MLP.") from error
    if arguments.head_dim < 1 or width % arguments.head_dim:
        raise ConfigError(f"the centre's width {width} is no multiple of --head-dim {arguments.head_dim}.")
    if arguments.multiple < 1 or mlp_dim % arguments.multiple:
        raise ConfigError(f"the centre's MLP size {mlp_dim} is no multiple of --multiple {arguments.multiple}.")
    return Run(
        width=width, depth=depth, mlp_dim=mlp_dim, num_heads=width // arguments.head_dim,
        patch_size=arguments.patch_size, image_size=parse_image_size(arguments.image_size), recipe=arguments.recipe,
        settings=tuple(arguments.set), learning_rate=arguments.learning_rate, batch_size=arguments.batch_size,
        horizons=_numbers("--steps", arguments.steps, int), cooldown=arguments.cooldown, seed=0,
    )  # fmt: skip


def _sizes(arguments: argparse.Namespace, name: str, largest: int, multiple: int) -> tuple[int, ...]:
    """Those that were typed, or so many below the centre's."""
    text = getattr(arguments, name)
    if text is None:
        count, ratio = arguments.sizes, arguments.ratio
        try:
            return ladder(
                largest, count=SIZES if count is None else count, ratio=STAR_RATIO if ratio is None else ratio,
                multiple=multiple,
            )  # fmt: skip
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
    option = f"--{name.replace('_', '-')}"
    sizes = _numbers(option, text, int)
    most = largest - 1 if arguments.design == "star" else largest
    for size in sizes:
        if size % multiple or not 1 <= size <= most:
            below = "below" if arguments.design == "star" else "at most"
            raise ConfigError(
                f"{option} has {size}: it must be a multiple of {multiple}, and {below} the centre's {largest}."
            )
    return sizes


def _numbers(option: str, text: str, kind: Callable[[str], N]) -> tuple[N, ...]:
    try:
        found = tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{option} is {text!r}, it must be numbers with commas between them.") from error
    if len(set(found)) < len(found):
        raise ConfigError(f"{option} is {text!r}: it names a number twice.")
    return found


def _words(sizes: tuple[int, ...]) -> str:
    return ", ".join(map(str, sizes))
