"""What an image costs: measured rows joined with prices and published accuracies, said in blocks.

`benchmarks/cost/page.py` writes them as HTML, Markdown or JSON. Nothing depends on when or where the report is made:
the same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from benchmarks.cost.accuracy import Accuracies, Source
from benchmarks.cost.blocks import Block, Cell, Heading, Notes, Plots, Table
from benchmarks.cost.pareto import Front, Standing, front_of
from benchmarks.cost.plots import Mark, legend, scatter, strips
from benchmarks.cost.prices import Price
from benchmarks.cost.pricing import AGAINST, CLAIMED, IMAGES, Claim, Line, Machine, claims_of, price_machines
from benchmarks.intervals import Estimate
from benchmarks.latency.result import Measured, Row
from benchmarks.words import TO, number, pixels, places, plural, with_interval

T = TypeVar("T")

# Published accuracies are of full-precision weights: these precisions may have lost some of it.
_QUANTISED: Final = ("int8", "fp8")


@dataclass(frozen=True, kw_only=True)
class Report:
    """All of it. `flaws` are reasons not to publish it."""

    flaws: list[str]
    files: list[Measured]
    machines: list[Machine]
    claims: list[Claim]
    fronts: list[Front]
    sources: dict[str, Source]


def build(files: Sequence[Measured], prices: Sequence[Price], accuracies: Accuracies) -> Report:
    """Join rows, prices and accuracies. Raises `ConfigError` where they do not fit together."""
    machines = price_machines(files, prices)
    fronts = [front_of(machine, metric, accuracies) for machine in machines for metric in accuracies.metrics]
    return Report(
        flaws=[f"{one.file}: {flaw}" for one in files for flaw in one.flaws],
        files=list(files),
        machines=machines,
        claims=[claim for machine in machines for claim in claims_of(machine, accuracies)],
        fronts=[one for one in fronts if one.standings],
        sources=accuracies.sources,
    )


def document(report: Report) -> list[Block]:
    """Everything below the title, in order."""
    blocks = claim_blocks(report.claims)
    series = series_of_report(report)
    for index, machine in enumerate(report.machines):
        blocks += _machine_blocks(machine, series, f"m{index}")
    for index, machine in enumerate(report.machines):
        blocks += _front_blocks(machine, [one for one in report.fronts if one.machine == machine.name], report, index)
    return [*blocks, *_sources_and_method(report), Heading("Conditions"), _conditions(report.files)]


def claim_blocks(claims: Sequence[Claim]) -> list[Block]:
    """What was found about the paper's claim, or that it was not measured."""
    heading = Heading("SoViT-400m/14 against ViT-g/14")
    if not claims:
        return [
            heading,
            "The paper's claim, less than half of ViT-g/14's inference cost near its accuracy, was not measured here: "
            f"no machine has rows of both {CLAIMED} and {AGAINST} with the same image size, runtime, precision, batch "
            "and threads.",
        ]
    half = sum(claim.cost_verdict == "less than half" for claim in claims)
    first = claims[0]
    if len(claims) == 1:
        found = (
            f"An image through SoViT-400m/14 costs {_spread(first.cost)} times what it costs through ViT-g/14: "
            f"{first.cost_verdict}."
        )
    else:
        low, high = min(claim.cost.value for claim in claims), max(claim.cost.value for claim in claims)
        every = "both" if len(claims) == 2 else f"all {len(claims)}"
        count = every if half == len(claims) else f"{half} of {len(claims)}"
        found = (
            f"An image through SoViT-400m/14 costs {number(low)} to {number(high)} times what it costs through "
            f"ViT-g/14: less than half in {count} pairings."
        )
    accuracies = _once(
        f"At {pixels(claim.row.image_size)} the paper publishes "
        + ", ".join(
            f"{_percent(ours)} against {_percent(theirs)} % ({title})" for title, ours, theirs in claim.accuracies
        )
        + "."
        for claim in claims
        if claim.accuracies
    )
    table = Table(
        "What SoViT-400m/14 takes, as a share of what ViT-g/14 takes in the same conditions. On one machine the price "
        "cancels out.",
        (
            ("machine", False),
            ("conditions", False),
            ("cost", True),
            ("", False),
            ("p50", True),
            ("FLOPs", True),
        ),
        [
            [
                Cell(claim.machine),
                Cell(str(claim.row).partition(" at ")[2]),
                in_words(claim.cost),
                Cell(claim.cost_verdict),
                in_words(claim.p50),
                Cell(number(claim.flops)),
            ]
            for claim in claims
        ],
    )
    return [
        heading,
        found,
        " ".join([*accuracies, "The paper itself counts FLOPs: 1374 of 3208 GFLOPs at 518 px, 0.43 (table 1)."]),
        table,
    ]


def _machine_blocks(machine: Machine, series: Sequence[str], name: str) -> list[Block]:
    unit = _cost_unit(machine)
    models = sorted({(line.row.flops_per_image, model_name(line.row, machine)) for line in machine.lines})
    heights = {model: place for place, (_, model) in enumerate(models)}
    marks = [
        Mark(
            x=_cost(line),
            y=heights[model_name(line.row, machine)],
            series=series_of(line.row, series),
            title=f"{line.row.key}: {_spread(_cost(line))} {unit}",
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
            _dearer(machine),
            "The smallest model is at the top. Bars are 95 % intervals, where they are wider than the mark.",
        ),
    ]


def price_of_machine(machine: Machine) -> str:
    """The price that was used, with its date and source, or why the cost in US dollars is blank."""
    if machine.price is None:
        return f"The cost in US dollars is blank: {machine.no_price}"
    return f"Price used: {_price(machine.price)}."


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
        columns.append((f"USD at {_money(low)}/h", True, [in_words(line.usd_at_low) for line in lines]))
        if high > low:
            columns.append((f"USD at {_money(high)}/h", True, [in_words(line.usd_at_high) for line in lines]))
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
        "Beside or below a value its 95 % interval; rows whose intervals overlap share their places.",
        tuple((title, numeric) for title, numeric, _ in columns),
        [[cells[index] for _, _, cells in columns] for index in range(len(lines))],
    )


def _front_blocks(machine: Machine, fronts: Sequence[Front], report: Report, place: int) -> list[Block]:
    blocks: list[Block] = [Heading(f"Accuracy against cost and latency on {machine.name}")]
    if not fronts:
        return [*blocks, "No accuracy is published for any of these models at these image sizes."]
    for one in fronts:
        models = {(line.row.variant, line.row.image_size) for line in _lines(machine, one)}
        if one.metric.headline and len(models) > 1:
            blocks += [
                Heading(one.metric.title, 3),
                _front_plots(machine, one, series_of_report(report), f"m{place}-{one.metric.id}"),
            ]
    return [*blocks, Heading("All published accuracies of what was measured", 3), _front_table(machine, fronts, report)]


def _front_plots(machine: Machine, one: Front, series: Sequence[str], name: str) -> Plots:
    lines, standings = _lines(machine, one), one.standings
    labels = _once(
        (model_name(line.row, machine), standing.accuracy.value)
        for line, standing in zip(lines, standings, strict=True)
    )
    latency = "p50 latency in ms" if all(line.row.batch == 1 for line in lines) else "p50 latency of a batch in ms"
    unit = _cost_unit(machine)

    def marks_of(xs: Sequence[Estimate], on_front: Sequence[bool], x_unit: str) -> list[Mark]:
        return [
            Mark(
                x=x,
                y=standing.accuracy.value,
                series=series_of(line.row, series),
                title=f"{line.row.key}: {_percent(standing.accuracy.value)} % at {_spread(x)} {x_unit}",
                hollow=_quantised(line.row),
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

    by_cost = marks_of([_cost(line) for line in lines], [standing.on_cost_front for standing in standings], unit)
    by_latency = marks_of(
        [line.row.p50_ms for line in lines], [standing.on_latency_front for standing in standings], latency
    )
    caption = _sentence(one.metric.training)
    if without := _once(model_name(machine.lines[index].row, machine) for index in one.without):
        caption += f" Without a published accuracy here, so on no front: {', '.join(without)}."
    reading = "Ringed, and joined by the broken line: the Pareto front."
    if any(_quantised(line.row) for line in lines):
        reading += " Hollow: quantised; the published accuracy is that of the full-precision weights."
    return Plots(
        legend(series, by_cost),
        (plot("cost", by_cost, unit), plot("latency", by_latency, latency)),
        f"{caption} {_dearer(machine)}".strip(),
        reading,
    )


def _front_table(machine: Machine, fronts: Sequence[Front], report: Report) -> Table:
    series = series_of_report(report)
    rows = []
    for one in fronts:
        models: dict[str, list[tuple[Line, Standing]]] = {}
        for line, standing in zip(_lines(machine, one), one.standings, strict=True):
            models.setdefault(model_name(line.row, machine), []).append((line, standing))
        alone = len(models) == 1
        for model, found in sorted(models.items(), key=lambda item: (item[1][0][1].accuracy.value, item[0])):
            accuracy = found[0][1].accuracy
            by_cost = _once(series_of(line.row, series) for line, standing in found if standing.on_cost_front)
            by_latency = _once(series_of(line.row, series) for line, standing in found if standing.on_latency_front)
            rows.append(
                [
                    Cell(one.metric.title),
                    Cell(model),
                    Cell(_percent(accuracy.value)),
                    *(Cell("alone" if alone else ", ".join(names) or "no") for names in (by_cost, by_latency)),
                    Cell(f"[{_number_of(accuracy.source, report)}]", url=report.sources[accuracy.source].url),
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


def _sources_and_method(report: Report) -> list[Block]:
    used = _used_sources(report)
    sources = [
        f"[{index + 1}] {report.sources[name].citation}: {report.sources[name].url}" for index, name in enumerate(used)
    ]
    prices = [f"{machine.name}: {_price(machine.price)}." for machine in report.machines if machine.price]
    blocks: list[Block] = []
    if sources:
        blocks += [Heading("Sources of the accuracies"), Notes(tuple(sources))]
    if prices:
        blocks += [Heading("Prices"), Notes(tuple(prices))]
    return [
        *blocks,
        Heading("Method"),
        Notes(
            (
                f"USD per million images = USD per hour / 3600 / images per second x {IMAGES:,}; machine-hours are the "
                "same without the price. The interval is the measured rate's, 95 % by a bootstrap over processes and "
                "their runs; the price is taken as it is.",
                "The machine is taken to be busy all the time with this one model: an hour in which it waits costs the "
                "same and brings nothing. A processor's price is for all of its cores, however few threads a row used.",
                "Times are the runtime's call alone, on images already decoded and resized; no HTTP.",
                "Rows whose intervals overlap are not ranked: they share their places, also through a third row that "
                "overlaps both.",
                "A row is on a Pareto front when no other has at least its accuracy at a cost lower beyond noise, or a "
                "higher accuracy at no higher cost. Only accuracies in the same metric are compared.",
                "Accuracies are published ones, of trained weights in full precision. Costs do not depend on what the "
                "weights are, so random ones serve; what quantisation costs in accuracy is not measured here. The "
                "cosine is that of the outputs to those of fp32 PyTorch, on the weights that were measured.",
                "A share of two estimates has the interval of all quotients of their intervals, which is wider than "
                "it need be.",
            )
        ),
    ]


def _conditions(files: Sequence[Measured]) -> Table:
    def column(one: Measured) -> list[str]:
        found = one.conditions
        return [
            found.time,
            found.processor,
            str(found.cores),
            found.gpu or "none",
            ", ".join(f"{load:g}" for load in found.load_average),
            f"{plural(one.settings.processes, 'process')} of at least {plural(one.settings.rounds, 'run')} and "
            f"{one.settings.seconds:g} s each, {plural(one.settings.threads, 'thread')}",
            found.sovit,
            found.python,
            ", ".join(f"{name} {version}" for name, version in sorted(found.packages.items())),
            "; ".join(one.cautions) or "none",
        ]

    titles = (
        "measured",
        "processor",
        "cores",
        "GPU",
        "load average before",
        "settings",
        "sovit",
        "Python",
        "packages",
        "reservations",
    )
    columns = [column(one) for one in files]
    return Table(
        "What every row was measured under.",
        (("", False), *((one.file, False) for one in files)),
        [[Cell(title), *(Cell(found[index]) for found in columns)] for index, title in enumerate(titles)],
    )


def _lines(machine: Machine, one: Front) -> list[Line]:
    return [machine.lines[standing.line] for standing in one.standings]


def model_name(row: Row, machine: Machine) -> str:
    """A row's model, with the image size where rows of several were measured."""
    sizes = {line.row.image_size for line in machine.lines}
    return row.variant if len(sizes) == 1 else f"{row.variant} {pixels(row.image_size)}"


def series_of_report(report: Report) -> list[str]:
    """Runtime and precision, and batch and threads where these differ on a machine: one look in all plots of a page."""
    rows = [[line.row for line in machine.lines] for machine in report.machines]
    batches = any(len({row.batch for row in one}) > 1 for one in rows)
    threads = any(len({row.threads for row in one}) > 1 for one in rows)
    keys = {(row.runtime, row.precision, row.batch * batches, row.threads * threads) for one in rows for row in one}
    return [_series_name(*key) for key in sorted(keys)]


def _series_name(runtime: str, precision: str, batch: int, threads: int) -> str:
    """0 for a batch or a number of threads that need not be said."""
    parts = [f"{runtime} {precision}", *[f"batch {batch}"] * bool(batch), *[plural(threads, "thread")] * bool(threads)]
    return ", ".join(parts)


def series_of(row: Row, series: Sequence[str]) -> str:
    """Which of a report's series a row belongs to."""
    names = [
        _series_name(row.runtime, row.precision, batch, threads)
        for batch in (0, row.batch)
        for threads in (0, row.threads)
    ]
    return next(name for name in names if name in series)


def _quantised(row: Row) -> bool:
    return row.precision.startswith(_QUANTISED)


def _cost(line: Line) -> Estimate:
    """What plots show: US dollars at the lower end of the price, or machine-hours where there is none."""
    return line.usd_at_low or line.machine_hours


def _cost_unit(machine: Machine) -> str:
    if machine.price is None:
        return "machine-hours for a million images"
    return f"USD for a million images at {_money(machine.price.usd_per_hour.low)} an hour"


def _dearer(machine: Machine) -> str:
    """What a caption adds where the price is a range."""
    if machine.price is None or machine.price.usd_per_hour.low == machine.price.usd_per_hour.high:
        return ""
    high = machine.price.usd_per_hour.high
    return f" At {_money(high)} an hour everything costs {number(high / machine.price.usd_per_hour.low)} times as much."


def _price(price: Price) -> str:
    low, high = price.usd_per_hour.low, price.usd_per_hour.high
    amount = _money(low) if low == high else f"{_money(low)} to {_money(high)}"
    terms = f", {price.terms}" if price.terms else ""
    details = ", ".join(part for part in (price.source, price.date, price.url) if part)
    return f"{amount} an hour{terms} ({details})"


def _used_sources(report: Report) -> list[str]:
    return _once(standing.accuracy.source for one in report.fronts for standing in one.standings)


def _number_of(source: str, report: Report) -> int:
    return _used_sources(report).index(source) + 1


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _money(amount: float) -> str:
    return f"${amount:,.2f}" if round(amount, 2) == amount else f"${amount:g}"


def _percent(value: float) -> str:
    text = f"{value:.2f}"
    return text.removesuffix("0")


def in_words(estimate: Estimate | None) -> Cell:
    """A value with its interval; nothing where there is none."""
    return Cell("") if estimate is None else Cell(*with_interval(estimate))


def _spread(estimate: Estimate) -> str:
    cell = in_words(estimate)
    return f"{cell.text} ({cell.small.replace(TO, ' to ')})"


def _once(items: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(items))
