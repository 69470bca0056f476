"""What changed from one result of `sovit bench latency` to another, beyond noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from benchmarks.intervals import LEAST_REPEATS, Estimate, ratio
from benchmarks.latency.result import Key, Measured, Row

Verdict = Literal["faster", "slower", "no change beyond noise", "too few processes", "not the same model"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A condition that is not the same in both. `void` where no change can then be laid to the code."""

    what: str
    a: str
    b: str
    void: bool


@dataclass(frozen=True, kw_only=True)
class Change:
    """A row in both: its p50 in B as a multiple of that in A, so less than 1 is faster."""

    row: Key
    a_ms: Estimate
    b_ms: Estimate
    ratio: Estimate
    verdict: Verdict
    note: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All of it."""

    a: str
    b: str
    cautions: list[str]
    differences: list[Difference]
    changes: list[Change]
    only_in_a: list[Key]
    only_in_b: list[Key]

    @property
    def void(self) -> list[Difference]:
        """The differences that make the verdicts say nothing about the code."""
        return [difference for difference in self.differences if difference.void]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""

        def named(keys: Sequence[Key]) -> list[dict[str, Any]]:
            return [key._asdict() for key in keys]

        return {
            "benchmark": "compare",
            "schema_version": 1,
            "a": self.a,
            "b": self.b,
            "comparable": not self.void,
            "cautions": self.cautions,
            "differences": [asdict(difference) for difference in self.differences],
            "rows": [
                {
                    **change.row._asdict(),
                    "a_p50_ms": asdict(change.a_ms),
                    "b_p50_ms": asdict(change.b_ms),
                    "ratio": asdict(change.ratio),
                    "verdict": change.verdict,
                    "note": change.note,
                }
                for change in self.changes
            ],
            "only_in_a": named(self.only_in_a),
            "only_in_b": named(self.only_in_b),
        }


def compare(a: Measured, b: Measured) -> Comparison:
    """What changed from A to B."""
    rows_a, rows_b = ({row.key: row for row in one.rows} for one in (a, b))
    return Comparison(
        a=a.file,
        b=b.file,
        cautions=[f"{one.file}: {caution}" for one in (a, b) for caution in one.cautions],
        differences=_differences(a, b),
        changes=[_change(row, rows_b[key]) for key, row in rows_a.items() if key in rows_b],
        only_in_a=[key for key in rows_a if key not in rows_b],
        only_in_b=[key for key in rows_b if key not in rows_a],
    )


def verdict_of(changed: Estimate) -> Verdict:
    """What a ratio of times says, given its interval."""
    if changed.high < 1:
        return "faster"
    return "slower" if changed.low > 1 else "no change beyond noise"


def _change(a: Row, b: Row) -> Change:
    changed = ratio(b.p50_ms, a.p50_ms)
    verdict, note = verdict_of(changed), ""
    if min(a.processes, b.processes) < LEAST_REPEATS:
        verdict, note = "too few processes", f"{LEAST_REPEATS} are the least that show the noise"
    if a.flops_per_image != b.flops_per_image:
        verdict = "not the same model"
        note = f"{a.flops_per_image / 1e9:,.3f} and {b.flops_per_image / 1e9:,.3f} GFLOPs per image"
    elif a.weights != b.weights:
        note = f"weights {a.weights} and {b.weights}"
    return Change(row=a.key, a_ms=a.p50_ms, b_ms=b.p50_ms, ratio=changed, verdict=verdict, note=note)


def _differences(a: Measured, b: Measured) -> list[Difference]:
    """Conditions that differ: first the machine, which makes a comparison void, then what may explain a change."""
    one, other = a.conditions, b.conditions
    found = [
        ("processor", one.processor, other.processor, True),
        ("cores", one.cores, other.cores, True),
        ("GPU", one.gpu or "none", other.gpu or "none", True),
        ("threads", a.settings.threads, b.settings.threads, False),
        ("processes", a.settings.processes, b.settings.processes, False),
        ("rounds", a.settings.rounds, b.settings.rounds, False),
        ("seconds", f"{a.settings.seconds:g}", f"{b.settings.seconds:g}", False),
        ("Python", one.python, other.python, False),
        ("sovit", one.sovit, other.sovit, False),
        *(
            (name, one.packages.get(name, "not there"), other.packages.get(name, "not there"), False)
            for name in sorted(one.packages.keys() | other.packages.keys())
        ),
    ]
    return [
        Difference(what=what, a=str(in_a), b=str(in_b), void=void) for what, in_a, in_b, void in found if in_a != in_b
    ]
