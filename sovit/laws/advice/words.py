"""A recommendation for people: what the law is worth first, then the shape, the front, and what trains it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from sovit.commands.result import aligned
from sovit.config import ViTConfig
from sovit.cost import TRAINING
from sovit.laws.advice.candidates import untold
from sovit.laws.advice.measure import Latencies
from sovit.laws.advice.paper import Scaled
from sovit.laws.advice.recommend import Advice, Recommendation
from sovit.laws.advice.train import Recipe
from sovit.laws.bootstrap import Interval
from sovit.laws.fit_command import each_shape_told, held_out_told
from sovit.laws.form import DIMENSIONS, ShapeLaw
from sovit.laws.law_file import LawFile

_GIGA: Final = 1e9
_MEGA: Final = 1e6


def told(law: LawFile, found: Recommendation, latencies: Latencies | None, train: Recipe) -> Group:
    """All of it."""
    warnings = [*law.warnings, *found.warnings, *(latencies.cautions if latencies else ())]
    facts = [*_facts(found.best, found.budget.batch), _before(law.law, found)]
    return Group(
        Text(f"{held_out_told(law)}."),
        Text(f"{each_shape_told(law)}."),
        *(Text(f"warning: {warning}") for warning in warnings),
        *(Text(f"note: {note}") for note in _notes(law, found, latencies)),
        Text(),
        Text(_compute(found.budget.train_flops)),
        Text(aligned(f"best shape: {found.best.name}", facts)),
        _table("the front, from cheap to good", found.front),
        _table("known shapes at the same budget", found.known),
        Text(
            "* not among the runs' shapes. 95 %: the interval of the error. best: to which share of the bootstrap's "
            "laws the best of all shapes that may keep the limits is this one or a neighbour; to "
            f"{found.elsewhere:.0%} it is elsewhere."
        ),
        Text(),
        Text(train.told()),
    )


def paper_told(found: Scaled, train: Recipe) -> Group:
    """A shape by the paper's law, with its caveat before it."""
    width, depth, mlp_dim = found.sizes
    rows = [
        ("scaled from", f"{found.anchor} by tau = {found.tau:.3g}"),
        ("its compute", f"{found.anchor_flops:.3g} FLOPs forward and backward, {found.anchor_words}"),
        ("before rounding", f"width {width:.1f}, depth {depth:.2f}, mlp_dim {mlp_dim:.1f}"),
        *_size(found.config, found.cost.flops, found.cost.parameters),
        ("images", f"{found.images:.4g} seen in training, repeats counted"),
    ]
    return Group(
        Text(
            "held out: nothing could be. The paper publishes neither coefficients nor points, so no error is predicted."
        ),
        Text(f"warning: {found.caveat}"),
        Text(),
        Text(_compute(found.train_flops)),
        Text(aligned(f"shape: {found.name}", rows)),
        Text(),
        Text(train.told()),
    )


def _compute(train_flops: float) -> str:
    forward = train_flops / TRAINING
    return (
        f"compute: {train_flops:.4g} FLOPs forward and backward ({TRAINING} times forward), which are {forward:.4g} "
        f"forward only, {forward / _GIGA:.4g} GFLOPs"
    )


def _notes(law: LawFile, found: Recommendation, latencies: Latencies | None) -> list[str]:
    notes = [
        f"the law does not tell the best {name}: all shapes looked at have the {name} that most runs have, "
        f"{law.seen.usual(name):g}."
        for name in untold(law.law)
    ]
    measured = "" if latencies is None else "measured and "
    notes.append(f"{found.candidates:,} looked at; {measured}within the budget: {found.within:,}.")
    if latencies is None:
        return notes
    question, rows = latencies.question, latencies.rows
    runtimes = ", ".join(dict.fromkeys(row.runtime for row in rows))
    notes.append(
        f"latencies are medians of batches of {question.batch} in {question.precision} by {runtimes or 'nothing'}, no "
        f"head: {len(rows)} shapes measured, {latencies.new} of them now."
    )
    if any(one.latency_ms is None for one in found.known):
        notes.append("known shapes without milliseconds were not measured here: --measure-known does it.")
    if model := latencies.model:
        notes.append(
            f"the model that chose what to measure predicts each of {model.shapes} shapes from the others to "
            f"{model.mean_error:.0%}, at worst {model.max_error:.0%}; what is recommended was measured."
        )
    return notes


def _facts(one: Advice, batch: int) -> list[tuple[str, str]]:
    latency = [("latency", f"{one.latency_ms:.4g} ms for a batch of {batch}")] if one.latency_ms is not None else []
    return [
        ("error", _with_intervals(one.error)),
        ("best, or near it", _share(one.best_share)),
        *_size(one.config, one.cost.flops, one.cost.parameters),
        ("memory", f"{one.memory_bytes / _MEGA:,.1f} MB of weights and a batch of {batch} in float32"),
        *latency,
        ("training", f"{one.compute:.4g} GFLOPs forward, {one.images:.4g} images, repeats counted"),
        ("beyond the runs", ", ".join(one.outside) or "in nothing"),
    ]


def optimum_of(law: ShapeLaw, found: Recommendation) -> dict[str, float | None]:
    """The law's own optimum for what the best shape is trained with, without limits and rounding (equation 4).

    None in a dimension whose best size it does not tell.
    """
    sizes = law.optimum(found.best.compute).tolist()
    return {name: None if math.isnan(size) else size for name, size in zip(DIMENSIONS, sizes, strict=True)}


def _before(law: ShapeLaw, found: Recommendation) -> tuple[str, str]:
    sizes = optimum_of(law, found).items()
    return "not rounded", ", ".join(f"{name} {'not told' if size is None else f'{size:.3g}'}" for name, size in sizes)


def _share(share: float | None) -> str:
    return (
        "not told: there was no other to compare it with"
        if share is None
        else f"to {share:.0%} of the bootstrap's laws"
    )


def _size(config: ViTConfig, flops: int, parameters: int) -> list[tuple[str, str]]:
    return [
        ("shape", f"width {config.width}, depth {config.depth}, mlp_dim {config.mlp_dim}, {config.num_heads} heads"),
        ("an image", f"{_short(flops, 4)} FLOPs forward"),
        ("parameters", f"{parameters:,}"),
    ]


def _with_intervals(error: Interval | None) -> str:
    if error is None:
        return "not told"
    said = f"{error.value:.4g}"
    if error.low_80 is not None and error.low_95 is not None:
        said += (
            f", 80 % in {error.low_80:.4g} to {error.high_80:.4g}, 95 % in {error.low_95:.4g} to {error.high_95:.4g}"
        )
    return said


def _table(title: str, rows: Sequence[Advice]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    with_latency = any(one.latency_ms is not None for one in rows)
    table.add_column("shape", overflow="fold")
    for name in ("FLOPs", "params", *["ms"] * with_latency, "images", "error", "95 %", "best"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in rows:
        latency = "" if one.latency_ms is None else f"{one.latency_ms:.3g}"
        table.add_row(
            f"{one.name}{'*' if set(one.outside) - {'compute', 'images'} else ''}",
            _short(one.cost.flops),
            _short(one.cost.parameters),
            *[latency] * with_latency,
            _short(one.images, 2),
            *_error_cells(one.error),
            "" if one.best_share is None else f"{one.best_share:.0%}",
        )
    return table


def _short(value: float, digits: int = 3) -> str:
    """A number from the smallest model's to the largest's in a few characters: 394k, 1.02M, 13.2G."""
    rounded = float(f"{value:.{digits}g}")
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if rounded >= size:
            return f"{rounded / size:g}{unit}"
    return f"{rounded:g}"


def _error_cells(error: Interval | None) -> tuple[str, str]:
    if error is None or error.value is None or error.low_95 is None or error.high_95 is None:
        return "not paid for", ""
    if error.value > 1:
        return "out of reach", ""  # of the law, as an error is a part of 1
    digits = max(0, 3 - math.floor(math.log10(error.value)) - 1) if error.value > 0 else 3
    return f"{error.value:.{digits}f}", f"{error.low_95:.{digits}f} to {error.high_95:.{digits}f}"
