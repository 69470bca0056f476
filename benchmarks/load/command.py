"""`sovit bench load`: one run at a rate or a concurrency, or the search for the highest rate that keeps a promise."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass
from typing import Any, Final

from benchmarks.conditions import conditions
from benchmarks.load.clients import MAX_CONNECTIONS
from benchmarks.load.loops import Observed, Target, load_of, observe_closed, observe_open
from benchmarks.load.photographs import Photographs, photographs_in
from benchmarks.load.served import is_loopback, look
from benchmarks.load.slo import LATE_SHARE, PRECISION, Slo, found
from benchmarks.load.slo_run import run_search
from benchmarks.load.tables import run_table, search_table
from benchmarks.load.telling import Telling
from sovit.client import ModelInfo
from sovit.commands.images import read_key
from sovit.commands.result import EXIT_INTERRUPTED, Result
from sovit.errors import EXIT_FAILED, ConfigError
from sovit.jsonio import must_be_writable, write_json

SCHEMA_VERSION: Final = 1
DEFAULT_LIMIT_MS: Final = 1000.0
_ACCEPTS: Final = {"/embed": "application/x-npy", "/classify": "application/json"}
_MAX_REQUESTS: Final = 10_000_000
_BUSY: Final = 0.9  # CPU seconds in a second at which a generator, one thread, is likely to be the limit itself


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked: a rate, a concurrency or a promise."""

    target: Target
    rate: float | None
    concurrency: int | None
    slo: Slo | None
    seconds: float
    warmup_seconds: float
    seed: int


def load(arguments: argparse.Namespace) -> Result:
    """Put a running service under load and count what comes back."""
    plan = _plan(arguments)
    if not arguments.images:
        raise ConfigError(
            "give --images FOLDER with photographs, JPEG files: what real ones cost, decoding first of all, "
            "made-up ones do not show."
        )
    photographs = photographs_in(arguments.images)
    must_be_writable(arguments.out)
    facts = _facts(plan, photographs, look(plan.target, photographs.contents[0]))
    telling = Telling()
    try:
        result = _search(plan, photographs, facts, telling) if plan.slo else _run(plan, photographs, facts, telling)
    finally:
        telling.close()
    if arguments.out:
        write_json(arguments.out, result.data)
    return result


def _plan(arguments: argparse.Namespace) -> Plan:
    """Raises `ConfigError` for what makes no sense, before anything is sent."""
    rate, concurrency, slo = arguments.rate, arguments.concurrency, _slo(arguments)
    if sum(one is not None for one in (rate, concurrency, slo)) != 1:
        raise ConfigError("give one of --rate R, --concurrency C and --slo-ms L.")
    if slo and arguments.limit_ms is not None:
        raise ConfigError("--limit-ms is not for a search, whose goodput is of the answers within --slo-ms.")
    for name in ("rate", "seconds", "limit_ms"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{name.replace('_', '-')} {value:g} must be above 0.")
    if not 0 <= arguments.warmup_seconds < math.inf:
        raise ConfigError(f"--warmup-seconds {arguments.warmup_seconds:g} must be 0 or more.")
    if concurrency is not None and not 1 <= concurrency <= MAX_CONNECTIONS:
        raise ConfigError(f"--concurrency {concurrency} must lie in 1..{MAX_CONNECTIONS}.")
    if rate is not None and rate * (arguments.seconds + arguments.warmup_seconds) > _MAX_REQUESTS:
        raise ConfigError(f"--rate {rate:g} makes more than {_MAX_REQUESTS:,} requests; a run may have that many.")
    return Plan(
        target=Target(
            url=arguments.url.rstrip("/"),
            path=arguments.path,
            accept=_ACCEPTS[arguments.path],
            limit_ms=slo.limit_ms if slo else arguments.limit_ms or DEFAULT_LIMIT_MS,
            model=arguments.model or "",
            api_key=read_key(arguments.key_file) if arguments.key_file else "",
        ),
        rate=rate,
        concurrency=concurrency,
        slo=slo,
        seconds=arguments.seconds,
        warmup_seconds=arguments.warmup_seconds,
        seed=arguments.seed,
    )


def _slo(arguments: argparse.Namespace) -> Slo | None:
    given = {name: getattr(arguments, name) for name in ("percentile", "success")}
    given = {name: value for name, value in given.items() if value is not None}
    if arguments.slo_ms is not None:
        return Slo(limit_ms=arguments.slo_ms, **given)
    if given:
        raise ConfigError(f"--{min(given)} belongs to a search: give --slo-ms L with it.")
    return None


def _facts(plan: Plan, photographs: Photographs, model: ModelInfo | None) -> dict[str, Any]:
    """What stands in every result beside the numbers."""
    target = plan.target
    served = None
    if model:
        served = {name: value for name, value in asdict(model).items() if name not in ("labels", "ready")}
        served["classes"] = len(model.labels)
    return {
        "benchmark": "load",
        "schema_version": SCHEMA_VERSION,
        "kind": "search" if plan.slo else "closed loop" if plan.concurrency else "open loop",
        "conditions": conditions(),
        "target": {
            "url": target.url,
            "path": target.path,
            "accept": target.accept,
            "model": served,
            "over_loopback": is_loopback(target.url),
        },
        "images": photographs.facts(),
        "settings": {
            "rate": plan.rate,
            "concurrency": plan.concurrency,
            "seconds": plan.seconds,
            "warmup_seconds": plan.warmup_seconds,
            "limit_ms": target.limit_ms,
            "timeout_seconds": target.timeout_seconds,
            "max_connections": MAX_CONNECTIONS,
            "seed": plan.seed,
            "arrivals": "when answered" if plan.concurrency else "Poisson",
            "latency_from": "sent" if plan.concurrency else "due",
        },
    }


def _run(plan: Plan, photographs: Photographs, facts: dict[str, Any], telling: Telling) -> Result:
    observed = _observed(plan, photographs, telling)
    measured = load_of(observed)
    cpu_share = observed.cpu_seconds / observed.seconds if observed.seconds else 0.0
    late, latency = measured.late_p99_ms, measured.p99_ms
    data = facts | {
        "complete": not observed.interrupted,
        "load": asdict(measured),
        "warmup": {"requests": observed.warmup.offered, "failed": observed.warmup.failed},
        "generator": {
            "cpu_share": cpu_share,
            "out_of_cpu": cpu_share > _BUSY,
            "late": late is not None and latency is not None and late > LATE_SHARE * latency,
        },
    }
    exit_code = 0 if observed.measured.succeeded else EXIT_FAILED
    return Result(data, run_table(data), EXIT_INTERRUPTED if observed.interrupted else exit_code)


def _observed(plan: Plan, photographs: Photographs, telling: Telling) -> Observed:
    if plan.rate is not None:
        return observe_open(
            plan.target,
            photographs.contents,
            rate=plan.rate,
            seconds=plan.seconds,
            seed=plan.seed,
            warmup_seconds=plan.warmup_seconds,
            tell=telling.run(f"{plan.rate:g} requests a second", plan.seconds),
        )
    assert plan.concurrency is not None
    return observe_closed(
        plan.target,
        photographs.contents,
        concurrency=plan.concurrency,
        seconds=plan.seconds,
        warmup_seconds=plan.warmup_seconds,
        tell=telling.run(f"{plan.concurrency} clients", plan.seconds),
    )


def _search(plan: Plan, photographs: Photographs, facts: dict[str, Any], telling: Telling) -> Result:
    assert plan.slo is not None
    done = run_search(
        plan.slo,
        plan.target,
        photographs.contents,
        seconds=plan.seconds,
        warmup_seconds=plan.warmup_seconds,
        seed=plan.seed,
        telling=telling,
    )
    finding = found(done.steps)
    data = facts | {
        "complete": done.stopped is None,
        "stopped": done.stopped,
        "slo": asdict(plan.slo)
        | {"requests_of_a_step": plan.slo.requests, "precision": PRECISION, "late_share": LATE_SHARE},
        "alone": asdict(done.alone) if done.alone else None,
        "steps": [asdict(step) for step in done.steps],
        "found": asdict(finding),
    }
    exit_code = 0 if finding.rate is not None and done.stopped is None else EXIT_FAILED
    return Result(data, search_table(data), EXIT_INTERRUPTED if done.interrupted else exit_code)
