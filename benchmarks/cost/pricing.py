"""What images cost: arithmetic on measured rates, with their intervals.

    USD per million images = USD per hour / 3600 / (images per second) * 1e6

The interval is the rate's: the slowest rate it allows gives the dearest image. A price is taken as it is, without an
interval of its own; where it is a range, each end gives a cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.cost.accuracy import Accuracies
from benchmarks.cost.prices import Price, price_of, same_name
from benchmarks.intervals import Estimate, paired_ratio, ranks, ratio
from benchmarks.latency.result import Key, Measured, Row
from benchmarks.words import plural
from sovit.errors import ConfigError

IMAGES: Final = 1_000_000
_SECONDS: Final = 3600

# The paper's claim is about these two: less than half of the cost.
CLAIMED: Final = "So400m/14"
AGAINST: Final = "g/14"
_HALF: Final = 0.5

ClaimVerdict = Literal["less than half", "not less than half", "cannot be told from half"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A measured row and what it costs for a million images; no US dollars without a price."""

    row: Row
    file: str
    rank: tuple[int, int]
    machine_hours: Estimate
    usd_at_low: Estimate | None
    usd_at_high: Estimate | None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The rows of one machine, the cheapest first; `no_price` says why there is no price, "" where there is one."""

    name: str
    price: Price | None
    no_price: str
    lines: list[Line]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """SoViT-400m/14 beside ViT-g/14 in the same conditions: what it takes of a cost, as a share of what g/14 takes.

    `paired` is the number of passes whose quotients the share is made of; 0 where there were too few, and it is the
    quotient of two estimates.
    """

    machine: str
    row: Key
    share: Estimate
    paired: int
    flops: float
    verdict: ClaimVerdict
    accuracies: list[tuple[str, float, float]]


def machine_hours(images_per_second: Estimate) -> Estimate:
    """Hours of the machine for a million images."""
    return images_per_second.inverse(IMAGES / _SECONDS)


def usd(images_per_second: Estimate, usd_per_hour: float) -> Estimate:
    """US dollars for a million images."""
    return machine_hours(images_per_second).scaled(usd_per_hour)


def machines_of(files: Sequence[Measured]) -> dict[str, tuple[str, ...]]:
    """The machines that rows ran on, and all that each is called. A GPU is a machine, and so is a processor's cores."""
    return {names[-1]: names for measured in files for row in measured.rows for names in [_names(row, measured)]}


def price_machines(files: Sequence[Measured], prices: Sequence[Price]) -> list[Machine]:
    """All rows by the machine they ran on, with its price: the first that fits.

    Raises `ConfigError` where a row is there twice, or one name of a price is the name of two machines.
    """
    machines = machines_of(files)
    for name in (name for price in prices for name in price.names):
        fits = [machine for machine, names in machines.items() if any(same_name(name, other) for other in names)]
        if len(fits) > 1:
            raise ConfigError(f"the price of {name} fits {' and '.join(fits)}: name the one that is meant.")
    found = []
    for name, names in machines.items():
        rows = [(row, one.file) for one in files for row in one.rows if _names(row, one)[-1] == name]
        _refuse_twice(rows, name)
        found.append(_machine(name, names, rows, price_of(names, prices)))
    return found


def claims_of(machine: Machine, accuracies: Accuracies) -> list[Claim]:
    """Every pair of rows that differs in nothing but the model, SoViT-400m/14 or ViT-g/14."""
    rows = {line.row.key: line for line in machine.lines}
    found = []
    for key, line in sorted(rows.items()):
        other = rows.get(key._replace(variant=AGAINST))
        if key.variant != CLAIMED or other is None:
            continue
        share, paired = _share(line, other)
        published = [
            (metric.title, ours.value, theirs.value)
            for metric in accuracies.metrics
            if metric.headline
            and (ours := accuracies.of(CLAIMED, key.image_size, metric.id))
            and (theirs := accuracies.of(AGAINST, key.image_size, metric.id))
        ]
        found.append(
            Claim(
                machine=machine.name,
                row=key,
                share=share,
                paired=paired,
                flops=line.row.flops_per_image / other.row.flops_per_image,
                verdict=_against_half(share),
                accuracies=published,
            )
        )
    return found


def _share(one: Line, other: Line) -> tuple[Estimate, int]:
    """Pass by pass where both were measured in turns often enough, else of the two estimates."""
    if one.file == other.file and (found := paired_share(one.row, other.row)):
        return found, len(one.row.process_images_per_second)
    return ratio(one.machine_hours, other.machine_hours), 0


def paired_share(one: Row, other: Row) -> Estimate | None:
    """What `one` costs of `other`, of the same file, pass by pass. None where there are too few passes of both."""
    ours, theirs = one.process_images_per_second, other.process_images_per_second
    return paired_ratio(theirs, ours) if len(ours) == len(theirs) else None


def _against_half(share: Estimate) -> ClaimVerdict:
    if share.high < _HALF:
        return "less than half"
    return "not less than half" if share.low >= _HALF else "cannot be told from half"


def _names(row: Row, measured: Measured) -> tuple[str, ...]:
    conditions = measured.conditions
    if row.on_gpu:
        return (conditions.gpu or "a GPU without a name",)
    return conditions.processor, f"{conditions.processor}, {plural(conditions.cores, 'core')}"


def _refuse_twice(rows: Sequence[tuple[Row, str]], machine: str) -> None:
    seen: dict[Key, str] = {}
    for row, file in rows:
        if row.key in seen:
            raise ConfigError(
                f"{seen[row.key]} and {file} both hold {row.key} on {machine}: leave one out, or see what changed with "
                "`sovit bench compare`."
            )
        seen[row.key] = file


def _machine(name: str, names: Sequence[str], rows: Sequence[tuple[Row, str]], price: Price | None) -> Machine:
    hours = [machine_hours(row.images_per_second) for row, _ in rows]
    lines = [
        Line(
            row=row,
            file=file,
            rank=rank,
            machine_hours=one,
            usd_at_low=usd(row.images_per_second, price.usd_per_hour.low) if price else None,
            usd_at_high=usd(row.images_per_second, price.usd_per_hour.high) if price else None,
        )
        for (row, file), one, rank in zip(rows, hours, ranks(hours, [row.processes for row, _ in rows]), strict=True)
    ]
    lines.sort(key=lambda line: (line.machine_hours.value, line.row.key))
    example = "`--price '{}=USD_PER_HOUR'`".format(names[0].replace("`", ""))
    why = f"no price of {name} is known: give one with {example}, or a file with `--prices`."
    return Machine(name=name, price=price, no_price="" if price else why, lines=lines)
