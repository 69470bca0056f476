"""The results of a load, for people."""

from __future__ import annotations

from typing import Any, Final

from rich.box import SIMPLE
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

# Short, for eight columns on a terminal of eighty characters.
_PHASES: Final = {"doubling": "double", "bisection": "bisect", "recheck": "again", "confirmation": "confirm"}
_VERDICTS: Final = {"met": "[green]met[/]", "missed": "[red]missed[/]", "generator": "[yellow]generator[/]"}


def run_table(data: dict[str, Any]) -> Group:
    """One run."""
    load, settings, generator = data["load"], data["settings"], data["generator"]
    table = Table("", "", title=None if data["complete"] else "interrupted, incomplete", caption=_caption(data))
    table.columns[1].justify = "right"
    rows = {
        "requests": f"{load['offered']:,} in {load['seconds']:.1f} s",
        "answered with 200": f"{load['statuses'].get('200', 0):,}",
        **{f"answered with {status}": f"{n:,}" for status, n in load["statuses"].items() if status != "200"},
        "broken connections": f"{load['connection_failures']:,}",
        "timeouts": f"{load['timeouts']:,}",
        "not sent, no connection left here": f"{load['unsent']:,}",
        "unfinished": f"{load['unfinished']:,}",
        "throughput, 200s only": f"{load['throughput']:.2f}/s",
        f"goodput, within {settings['limit_ms']:g} ms": f"{load['goodput']:.2f}/s",
        **{f"latency {name}": _ms(load[f"{name}_ms"]) for name in ("p50", "p90", "p99", "max")},
        "generator late, p99": _ms(load["late_p99_ms"]),
        "generator late, max": _ms(load["late_max_ms"]),
        "generator CPU": f"{generator['cpu_share']:.1%} of a core",
        "warm-up before": f"{data['warmup']['requests']:,} requests",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    notes = []
    if generator["out_of_cpu"]:
        notes.append("The generator had no CPU left: it, not the service, may have been the limit.")
    if generator["late"]:
        notes.append("The generator was late by more than a tenth of the latency, at the 99th percentile of both.")
    return Group(table, *map(Text, notes))


def search_table(data: dict[str, Any]) -> Group:
    """The steps of a search, and what they say."""
    name = f"p{data['slo']['percentile']:g} ms"
    table = Table("", "rate/s", "", name, "200s", "good/s", "sent", "late ms", caption=_caption(data), box=SIMPLE)
    for column in (table.columns[1], *table.columns[3:]):
        column.justify = "right"
    for step in data["steps"]:
        latency, decided = step["latency_ms"], step["decided"]
        table.add_row(
            _PHASES[step["phase"]],
            f"{step['rate']:g}",
            _VERDICTS[step["verdict"]] + (" early" if decided else ""),
            "" if latency is None else f"{latency:.1f}",
            f"{step['success']:.2%}",
            "" if decided else f"{step['load']['goodput']:.2f}",
            f"{step['load']['offered']:,}",
            f"{step['late_ms']:.2f}",
        )
    return Group(table, Text(sentence(data)))


def sentence(data: dict[str, Any]) -> str:
    """What a search found, in words."""
    slo, found = data["slo"], data["found"]
    terms = (
        f"{slo['percentile']:g} % of answers within {slo['limit_ms']:g} ms, {slo['success']:.2%} of requests answered"
    )
    if found["rate"] is not None:
        said = f"Highest rate that meets the SLO, confirmed: {found['rate']:g} requests a second ({terms})."
    elif found["highest_met"] is not None:
        said = f"No confirmed rate meets the SLO ({terms}); {found['highest_met']:g} requests a second did once."
    elif not data["steps"]:
        said = f"No rate was tried to its end ({terms})."
    else:
        said = f"No rate that was tried meets the SLO ({terms})."
    if found["limited_by"] == "generator":
        said += (
            f" At {found['lowest_unmet']:g} a second the generator was late: it, not the service, was the limit, "
            "and the service may do more."
        )
    elif found["limited_by"] == "service":
        said += f" At {found['lowest_unmet']:g} a second the service missed."
    if data["stopped"] is not None:
        said += f" The search is incomplete: {data['stopped']}"
    return said


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} ms"


def _caption(data: dict[str, Any]) -> str:
    target, images, where = data["target"], data["images"], data["conditions"]
    model = target["model"]
    served = (
        f"{model['name']} ({model['runtime']} {model['precision']})"
        if model
        else "a model that the server does not tell"
    )
    beside = ", generator on the service's machine" if target["over_loopback"] else ""
    begins = "was due" if data["settings"]["latency_from"] == "due" else "was sent"
    return escape(
        f"{served}; {images['used']} photographs, {images['width']['median']:g} x {images['height']['median']:g} "
        f"px in the median; {where['processor']}, {where['cores']} cores{beside}; "
        f"latency from when a request {begins}"
    )
