"""Accuracy against cost and latency: plots with their Pareto fronts, and all published accuracies."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.cost.blocks import Block, Cell, Heading, Plots, Table
from benchmarks.cost.naming import (
    cost_of,
    cost_unit,
    dearer,
    lines_of,
    model_name,
    once,
    percent,
    quantised,
    sentence,
    series_of,
    spread,
)
from benchmarks.cost.pareto import Front, Standing
from benchmarks.cost.plots import Mark, legend, scatter
from benchmarks.cost.pricing import Line, Machine
from benchmarks.cost.report import Report, number_of, series_of_report
from benchmarks.intervals import Estimate


def front_blocks(machine: Machine, fronts: Sequence[Front], report: Report, place: int) -> list[Block]:
    """The plots of the headline metrics, and the table of all."""
    blocks: list[Block] = [Heading(f"Accuracy against cost and latency on {machine.name}")]
    if not fronts:
        return [*blocks, "No accuracy is published for any of these models at these image sizes."]
    for one in fronts:
        models = {(line.row.variant, line.row.image_size) for line in lines_of(machine, one)}
        if one.metric.headline and len(models) > 1:
            blocks += [
                Heading(one.metric.title, 3),
                _front_plots(machine, one, series_of_report(report), f"m{place}-{one.metric.id}"),
            ]
    return [*blocks, Heading("All published accuracies of what was measured", 3), _front_table(machine, fronts, report)]


def _front_plots(machine: Machine, one: Front, series: Sequence[str], name: str) -> Plots:
    lines, standings = lines_of(machine, one), one.standings
    labels = once(
        (model_name(line.row, machine), standing.accuracy.value)
        for line, standing in zip(lines, standings, strict=True)
    )
    latency = "p50 latency in ms" if all(line.row.batch == 1 for line in lines) else "p50 latency of a batch in ms"
    unit = cost_unit(machine)

    def marks_of(xs: Sequence[Estimate], on_front: Sequence[bool], x_unit: str) -> list[Mark]:
        return [
            Mark(
                x=x,
                y=standing.accuracy.value,
                series=series_of(line.row, series),
                title=f"{line.row.key}: {percent(standing.accuracy.value)} % at {spread(x)} {x_unit}",
                hollow=quantised(line.row),
                on_front=ahead,
            )
            for line, standing, x, ahead in zip(lines, standings, xs, on_front, strict=True)
        ]

    def plot(against: str, marks: Sequence[Mark], x_unit: str) -> str:
        return scatter(
            name=f"{name}-{against}",
            title=f"{one.metric.title} against {against} on {machine.name}",
            description="; ".join(f"{mark.title}{', on the front' * mark.on_front}" for mark in marks),
            series=series,
            marks=marks,
            labels=labels,
            x_label=f"{x_unit} (logarithmic)",
            y_label="accuracy, %",
        )

    fronts = {
        "cost": [standing.on_cost_front for standing in standings],
        "latency": [standing.on_latency_front for standing in standings],
    }
    by_cost = marks_of([cost_of(line) for line in lines], fronts["cost"], unit)
    by_latency = marks_of([line.row.p50_ms for line in lines], fronts["latency"], latency)
    caption = sentence(one.metric.training)
    for by, on_front in fronts.items():
        ahead = once(model_name(line.row, machine) for line, is_on in zip(lines, on_front, strict=True) if is_on)
        caption += f" On the front by {by}: {', '.join(ahead)}."
    if without := once(model_name(machine.lines[index].row, machine) for index in one.without):
        caption += f" Without a published accuracy here, so on no front: {', '.join(without)}."
    reading = "Ringed, and joined by the broken line: the Pareto front."
    if any(quantised(line.row) for line in lines):
        reading += " Hollow: quantised; the published accuracy is that of the full-precision weights."
    return Plots(
        legend(series, by_cost),
        (plot("cost", by_cost, unit), plot("latency", by_latency, latency)),
        f"{caption} {dearer(machine)}".strip(),
        reading,
    )


def _front_table(machine: Machine, fronts: Sequence[Front], report: Report) -> Table:
    series = series_of_report(report)
    rows = []
    for one in fronts:
        models: dict[str, list[tuple[Line, Standing]]] = {}
        for line, standing in zip(lines_of(machine, one), one.standings, strict=True):
            models.setdefault(model_name(line.row, machine), []).append((line, standing))
        alone = len(models) == 1
        for model, found in sorted(models.items(), key=lambda item: (item[1][0][1].accuracy.value, item[0])):
            accuracy = found[0][1].accuracy
            by_cost = once(series_of(line.row, series) for line, standing in found if standing.on_cost_front)
            by_latency = once(series_of(line.row, series) for line, standing in found if standing.on_latency_front)
            rows.append(
                [
                    Cell(one.metric.title),
                    Cell(model),
                    Cell(percent(accuracy.value)),
                    *(Cell("alone" if alone else ", ".join(names) or "no") for names in (by_cost, by_latency)),
                    Cell(f"[{number_of(accuracy.source, report)}]", url=report.sources[accuracy.source].url),
                ]
            )
    return Table(
        "In percent, as published; none of it was measured here. A front names the runtimes that put a model on it; "
        "alone means that no other measured model has that accuracy.",
        (
            ("accuracy of", False),
            ("model", False),
            ("%", True),
            ("on the front by cost", False),
            ("by latency", False),
            ("source", False),
        ),
        rows,
    )
