"""The result file of the peers' race, and its tables for people: the fastest first, whoever that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, Final

from pydantic import ConfigDict

from benchmarks.intervals import Estimate, ranks
from benchmarks.peers.race import BATCHES, CONCURRENCIES, ENGINES, FLOORS, Turn
from benchmarks.words import places, plural, with_interval
from sovit.errors import ConfigError
from sovit.jsonio import STRICT, from_dict, read_json

SCHEMA_VERSION: Final = 1
_LABELS: Final = ("benchmark", "schema_version")


@dataclass(frozen=True, kw_only=True)
class Raced:
    """What came out. `images` are the names of the photographs, `seconds` the length of a turn under one load."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    target: str
    conditions: dict[str, Any]
    serve_options: str
    seconds: float
    images: list[str]
    turns: dict[str, list[Turn]]
    failed: dict[str, str]
    complete: bool

    @property
    def cautions(self) -> list[str]:
        """What is missing."""
        cut = [] if self.complete else ["an incomplete run: it was interrupted"]
        return [
            *cut,
            *(
                f"{name} left after {plural(self._rounds(name), 'round')}: {reason}"
                for name, reason in self.failed.items()
            ),
        ]

    def _rounds(self, name: str) -> int:
        loads = [turn.load for turn in self.turns.get(name, [])]
        return max(map(loads.count, loads), default=0)

    def to_json(self) -> dict[str, Any]:
        """As the file has it."""
        return {"benchmark": "peers", "schema_version": SCHEMA_VERSION, **asdict(self)}

    def place_of(self, names: Sequence[str], load: int) -> list[Standing]:
        """Those names under one load, the most images in a second first."""
        taken = {name: [turn for turn in self.turns[name] if turn.load == load] for name in names if self.turns[name]}
        rates = [_spread([turn.images_per_second for turn in found]) for found in taken.values()]
        # Of their inverses the least come first.
        found = [
            Standing(rank, name, rate, tuple(turns))
            for rank, (name, turns), rate in zip(
                ranks([rate.inverse(1) for rate in rates], [len(turns) for turns in taken.values()]),
                taken.items(),
                rates,
                strict=True,
            )
        ]
        return sorted(found, key=lambda one: -one.images_per_second.value)

    @property
    def servers(self) -> list[str]:
        """All that serve the artifact, and had a turn."""
        return [name for name, turns in self.turns.items() if turns and name not in ENGINES and name not in FLOORS]

    @property
    def engines(self) -> list[str]:
        """All that ran in process."""
        return [name for name, turns in self.turns.items() if turns and name in ENGINES]


@dataclass(frozen=True)
class Standing:
    """One of them under one load: the places it may have, its rate with what the rounds span, and its turns."""

    rank: tuple[int, int]
    name: str
    images_per_second: Estimate
    turns: tuple[Turn, ...]

    def middle(self, field: str) -> float | None:
        """The median of a field over the rounds, None where it has none."""
        values = [value for turn in self.turns if (value := getattr(turn, field)) is not None]
        return median(values) if values else None


def read_raced(path: Path) -> Raced:
    """A result file. Raises `ConfigError` for anything else."""
    data = read_json(path)
    if not isinstance(data, dict) or (data.get("benchmark"), data.get("schema_version")) != ("peers", SCHEMA_VERSION):
        raise ConfigError(f"{path} is no result of `python -m benchmarks.peers` of schema_version {SCHEMA_VERSION}.")
    found = from_dict(Raced, {name: value for name, value in data.items() if name not in _LABELS}, str(path))
    if not found.complete:
        raise ConfigError(f"{path} is an incomplete run, not to be published: it was interrupted.")
    for names, loads in ((found.servers, CONCURRENCIES), (found.engines, BATCHES)):
        if not names or any({turn.load for turn in found.turns[name]} != {*loads} for name in names):
            raise ConfigError(f"{path} lacks turns: a server and an engine must have one at least under each load.")
    return found


def rows_of(standings: Sequence[Standing]) -> list[list[str]]:
    """Places, names and numbers as text: images/s and their span, p50 and p99 ms, CPU-ms, of it beyond, MB."""
    return [
        [
            places(one.rank),
            one.name,
            *with_interval(one.images_per_second),
            _number(one.middle("p50_ms"), 1),
            _number(one.middle("p99_ms"), 1),
            _number(one.middle("cpu_ms"), 2),
            _number(one.middle("framework_cpu_ms"), 2),
            _number(one.middle("memory_mb"), 0),
        ]
        for one in standings
    ]


TITLES: Final = ("images/s", "rounds", "p50 ms", "p99 ms", "CPU-ms", "beyond", "MB")


def in_markdown(raced: Raced) -> str:
    """Servers under the most clients, and engines in batches."""
    clients, batch = CONCURRENCIES[-1], BATCHES[-1]
    conditions = raced.conditions
    rounds = len(raced.turns[raced.servers[0]]) // len(CONCURRENCIES)
    parts = [
        f"{raced.target} on {conditions['cores']} cores of {conditions['processor']}, the same ONNX file and "
        f"photographs, {clients} clients; decoding is in it. Medians of {rounds} rounds and what they span; who "
        "overlaps is not ranked, and has a range of places. CPU-ms are a request's, and of them what lies beyond "
        "decoding and inference, which are measured in process: below 0 is noise.",
        _markdown("server", raced.place_of(raced.servers, clients)),
        f"In process, without a server, in batches of {batch}, which the times are of; one core decodes, so it is no "
        "bound of a server:",
        _markdown("engine", raced.place_of(raced.engines, batch)),
        *(f"Read with care: {caution}" for caution in raced.cautions),
    ]
    return "\n\n".join(parts)


def _markdown(kind: str, standings: Sequence[Standing]) -> str:
    rows = rows_of(standings)
    shown = [index for index in range(len(rows[0])) if any(row[index] for row in rows)]
    titles = ["place", kind, *TITLES]
    lines = [
        [titles[index] for index in shown],
        ["---" if index == 1 else "---:" for index in shown],
        *([row[index] for index in shown] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread(values: Sequence[float]) -> Estimate:
    return Estimate(median(values), min(values), max(values))


def _number(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:,.{decimals}f}"
