"""`sovit shape fit`."""

from __future__ import annotations

import argparse
from typing import Any, Final

import numpy as np
from rich.console import Group
from rich.table import Table

from sovit.commands.result import Result
from sovit.cost import TRAINING
from sovit.errors import ConfigError
from sovit.jsonio import must_be_writable, to_dict
from sovit.laws.bootstrap import Interval, bootstrap
from sovit.laws.fit import fit
from sovit.laws.holdout import HoldOut, each_shape, hold_out
from sovit.laws.holdout import doubts as held_out_doubts
from sovit.laws.law_file import LawFile, seen_in, setting_of, training_of, write_law
from sovit.laws.paper import EXPONENTS
from sovit.laws.rates import doubts as rate_doubts
from sovit.laws.rates import other_rates, unpaired
from sovit.laws.rates import told as rates_told
from sovit.laws.report import write_report
from sovit.laws.table import Points, read_table

_MOST: Final = 100_000


def fit_table(arguments: argparse.Namespace) -> Result:
    """Fit the law to a table of runs, with intervals and the error of predictions for what was held out."""
    _check(arguments)
    rows, points, not_run, images = read_table(arguments.table)
    others, left_out = other_rates(rows)
    if left_out:
        points = points.subset(np.array([points.runs[run] not in left_out for run in points.run_P.tolist()]))
    fitted = [row for row in rows if row["run"] not in left_out]
    asked: dict[str, Any] = {"method": arguments.method, "starts": arguments.starts, "seed": arguments.seed}
    if arguments.delta is not None:
        asked["delta"] = arguments.delta
    setting, training = setting_of(rows, str(arguments.table)), training_of(fitted, str(arguments.table))
    found = fit(points, **asked)
    held_out, why_not = _held_out(points, asked)
    replicates = bootstrap(points, found, replicates=arguments.replicates, seed=arguments.seed)
    warnings = (
        *found.warnings,
        *(held_out_doubts(held_out, found.warnings) if held_out else ()),
        *replicates.warnings,
        *rate_doubts(others),
        *unpaired(others, left_out),
        *([f"{not_run} runs of the table have no points yet: they took no part."] if not_run else []),
    )
    law = LawFile(
        setting=setting, training=training, seen=seen_in(points, images), fit=found,
        laws=replicates.laws, intervals=replicates.intervals,
        hold_out=held_out, not_held_out=why_not, each_shape=each_shape(points, found), other_rates=others,
        warnings=warnings,
    )  # fmt: skip
    if arguments.report:
        # First, so that there is no law without the page that was asked for.
        write_report(arguments.report, law, points, _worth(law))
    write_law(arguments.out, law)
    data = {name: value for name, value in to_dict(law).items() if name != "laws"} | {"law": str(arguments.out)}
    return Result(data, _told(law, points))


def _check(arguments: argparse.Namespace) -> None:
    """Before the work, not after it."""
    for name, least, most in (("starts", 1, _MOST), ("replicates", 1, _MOST), ("seed", 0, 2**63)):
        if not least <= getattr(arguments, name) <= most:
            raise ConfigError(f"--{name} is {getattr(arguments, name)}, it must lie in {least:,}..{most:,}.")
    if arguments.delta is not None and arguments.method != "huber":
        raise ConfigError("--delta is the Huber loss's: it needs --method huber.")
    paths = [path for path in (arguments.table, arguments.out, arguments.report) if path is not None]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError("the table, --out and --report must be different files: one would overwrite another.")
    must_be_writable(arguments.out)
    must_be_writable(arguments.report, "--report")


def _held_out(points: Points, asked: dict[str, Any]) -> tuple[HoldOut | None, str]:
    try:
        return hold_out(points, **asked), ""
    except ConfigError as error:
        return None, str(error)


def _told(law: LawFile, points: Points) -> Group:
    lines = [
        f"{law.fit.points} points of {law.fit.runs} runs on {law.setting.data}, {law.fit.parameters} parameters",
        f"compute: {points.compute_P.min():.3g} to {points.compute_P.max():.3g} GFLOPs forward, the paper's t; with "
        f"the backward pass {TRAINING * points.compute_P.min():.3g} to {TRAINING * points.compute_P.max():.3g}",
        *_worth(law),
    ]
    table = Table("", "value", "80 %", "95 %", "paper")
    published = {f"s_{name}": f"{value:g}" for name, value in EXPONENTS._asdict().items()}
    for one in law.intervals:
        table.add_row(one.name, _number(one.value), _between(one, 80), _between(one, 95), published.get(one.name, ""))
    return Group(*lines, table, *(f"warning: {warning}" for warning in law.warnings))


def _worth(law: LawFile) -> list[str]:
    """Sentences about what the law is worth, for a terminal and a page."""
    convergence = law.fit.convergence
    return [
        held_out_told(law),
        each_shape_told(law),
        *([rates_told(law.other_rates)] if law.other_rates else []),
        f"objective {convergence.objective!r}; {convergence.reached} of {convergence.starts} starts reached it, "
        f"gradient {convergence.gradient_norm:.1e}, condition number {convergence.condition:.1e}",
    ]


def held_out_told(law: LawFile) -> str:
    """What the law is worth beyond what it was fitted to, in a sentence."""
    found = law.hold_out
    if found is None:
        return f"held out: nothing could be. {law.not_held_out}"
    return (
        f"held out: the {found.predicted_points} points of most compute, up to "
        f"{found.largest_compute / found.compute:.2g} times that of the other {found.fitted_points}, are predicted "
        f"with a mean error of {found.mean_error:.1%}, at most {found.max_error:.1%}, bias {found.bias:+.1%}"
    )


def each_shape_told(law: LawFile) -> str:
    """What it is worth for shapes that were not run, in a sentence."""
    found = law.each_shape
    if found is None:
        return "each shape left out: without any of them a dimension has too few sizes to be told"
    return (
        f"each of {found.shapes} shapes left out and predicted by the others: median error {found.median_error:.1%}, "
        f"at most {found.max_error:.1%}"
    )


def _between(one: Interval, percent: int) -> str:
    low, high = (one.low_80, one.high_80) if percent == 80 else (one.low_95, one.high_95)
    said = "" if low is None else f"{_number(low)} to {_number(high)}"
    return f"{said}{f' ({one.undefined:.0%} say nothing)' if one.undefined > 0.005 and percent == 95 else ''}"


def _number(value: float | None) -> str:
    return "not told" if value is None else f"{value:.4g}"
