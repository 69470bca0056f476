"""What a million images cost on one machine: a plot and a table."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.cost.blocks import Block, Cell, Heading, Plots, Table
from benchmarks.cost.naming import (
    cost_of,
    cost_unit,
    dearer,
    in_words,
    model_name,
    money,
    price_in_words,
    series_of,
    spread,
)
from benchmarks.cost.plots import Mark, legend, strips
from benchmarks.cost.pricing import Machine
from benchmarks.words import number, pixels, places, plural


def machine_blocks(machine: Machine, series: Sequence[str], name: str) -> list[Block]:
    """The plot and the table of one machine."""
    unit = cost_unit(machine)
    models = sorted({(line.row.flops_per_image, model_name(line.row, machine)) for line in machine.lines})
    heights = {model: place for place, (_, model) in enumerate(models)}
    marks = [
        Mark(
            x=cost_of(line),
            y=heights[model_name(line.row, machine)],
            series=series_of(line.row, series),
            title=f"{line.row.key}: {spread(cost_of(line))} {unit}",
        )
        for line in machine.lines
    ]
    plot = strips(
        name=f"{name}-cost",
        title=f"Cost of a million images on {machine.name}",
        description="; ".join(mark.title for mark in marks),
        series=series,
        rows=[model for _, model in models],
        marks=marks,
        x_label=f"{unit} (logarithmic)",
    )
    return [
        Heading(f"A million images on {machine.name}"),
        price_of_machine(machine),
        machine_table(machine),
        Plots(
            legend(series, marks),
            (plot,),
            dearer(machine),
            "The smallest model is at the top. Bars are 95 % intervals, where they are wider than the mark.",
        ),
    ]


def price_of_machine(machine: Machine) -> str:
    """The price that was used, with its date and source, or why the cost in US dollars is blank."""
    if machine.price is None:
        return f"The cost in US dollars is blank: {machine.no_price}"
    return f"Price used: {price_in_words(machine.price)}."


def machine_table(machine: Machine) -> Table:
    """One row a line, the cheapest first. What is the same in all rows stands in the caption."""
    lines, price = machine.lines, machine.price
    columns: list[tuple[str, bool, list[Cell]]] = [
        ("place", True, [Cell(places(line.rank)) for line in lines]),
        ("model", False, [Cell(line.row.variant) for line in lines]),
    ]
    shared = []
    for title, texts in (
        ("image", [pixels(line.row.image_size) for line in lines]),
        ("runtime", [f"{line.row.runtime} {line.row.precision}" for line in lines]),
        ("batch", [f"batch {line.row.batch}" for line in lines]),
        ("threads", [plural(line.row.threads, "thread") for line in lines]),
        ("weights", [f"{line.row.weights} weights" for line in lines]),
        ("runs", [f"{plural(line.row.runs, 'run')} in {plural(line.row.processes, 'process')}" for line in lines]),
        ("file", [line.file for line in lines]),
    ):
        if len(set(texts)) > 1 or title == "runtime":
            columns.append((title, False, [Cell(text.removeprefix(f"{title} ")) for text in texts]))
        elif title != "file":
            shared.append(texts[0])
    columns += [
        ("p50 ms", True, [in_words(line.row.p50_ms) for line in lines]),
        ("p99 ms", True, [Cell(in_words(line.row.p99_ms).text) for line in lines]),
        ("images/s", True, [in_words(line.row.images_per_second) for line in lines]),
    ]
    if price is None:
        columns.append(("machine-hours", True, [in_words(line.machine_hours) for line in lines]))
        columns.append(("USD", True, [Cell("") for _ in lines]))
    else:
        low, high = price.usd_per_hour.low, price.usd_per_hour.high
        columns.append((f"USD at {money(low)}/h", True, [in_words(line.usd_at_low) for line in lines]))
        if high > low:
            columns.append((f"USD at {money(high)}/h", True, [in_words(line.usd_at_high) for line in lines]))
    columns.append(("GFLOPs", True, [Cell(number(line.row.flops_per_image / 1e9)) for line in lines]))
    for title, values, shown in (
        ("peak MB", [line.row.peak_memory_bytes for line in lines], lambda value: f"{value / 1e6:,.0f}"),
        ("J/image", [line.row.joules_per_image for line in lines], number),
        ("cosine", [line.row.cosine for line in lines], lambda value: f"{value:.5f}"),
    ):
        if any(value is not None for value in values):
            columns.append((title, True, [Cell("" if value is None else shown(value)) for value in values]))
    common = ", ".join(shared)
    return Table(
        f"{'US dollars' if price else 'Machine-hours'} are for a million images, GFLOPs for one. "
        f"{f'All rows: {common}. ' if common else ''}"
        "Beside or below a value its 95 % interval; rows whose intervals overlap are not ranked.",
        tuple((title, numeric) for title, numeric, _ in columns),
        [[cells[index] for _, _, cells in columns] for index in range(len(lines))],
    )
