"""`sovit shape recommend`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from sovit.commands.result import Result
from sovit.cost import TRAINING
from sovit.errors import ConfigError
from sovit.jsonio import to_dict
from sovit.laws.candidates import Candidate, candidates, known_variants
from sovit.laws.device import Question, read_device, write_device
from sovit.laws.device_bench import bench
from sovit.laws.law_file import LawFile, read_law
from sovit.laws.recommend import errors, recommend
from sovit.laws.recommend_budget import Budget, keeping, limits, option
from sovit.laws.recommend_measure import Latencies, device_model, measure_towards
from sovit.laws.recommend_paper import scale
from sovit.laws.recommend_words import paper_told, settings_of, told

PAPER: Final = "paper"
# What the paper's law cannot weigh, and what belongs to it alone.
_NOT_OF_PAPER: Final = ("lifetime_images", "max_params", "max_memory", "max_latency_ms", "device")
_OF_PAPER: Final = ("anchor", "anchor_flops")
_ANCHOR: Final = "So400m"


def recommend_shape(arguments: argparse.Namespace) -> Result:
    """The best shape for a budget, by a fitted law or the paper's."""
    if arguments.law == PAPER:
        return _by_paper(arguments)
    for name in _OF_PAPER:
        if getattr(arguments, name) is not None:
            raise ConfigError(f"{option(name)} belongs to the law `{PAPER}`: a fitted law has no anchor.")
    budget = _budget(arguments)
    law = read_law(Path(arguments.law))
    around = candidates(law.setting, law.seen, law.law, margin=arguments.margin, multiple=arguments.multiple)
    latencies = None
    if budget.max_latency_ms is not None:
        latencies = _measured(arguments, law, around, budget, budget.max_latency_ms)
    found = recommend(
        law.law, law.laws, around, budget, seen=law.seen, known=known_variants(law.setting, law.seen),
        latency_ms=latencies.by_name if latencies else {},
    )  # fmt: skip
    data: dict[str, Any] = {
        "law": arguments.law,
        "held_out": law.hold_out and to_dict(law.hold_out),
        "not_held_out": law.not_held_out,
        "compute": {"train_flops": budget.train_flops, "forward_flops": budget.train_flops / TRAINING},
        "warnings": [*law.warnings, *found.warnings, *(latencies.cautions if latencies else ())],
        "best": to_dict(found.best),
        "train": settings_of(found.best.config, found.best.images),
        **to_dict(found),
        "latencies": latencies and latencies.to_json(),
    }
    return Result(data, told(law, found, latencies))


def _by_paper(arguments: argparse.Namespace) -> Result:
    for name in _NOT_OF_PAPER:
        if getattr(arguments, name) is not None:
            raise ConfigError(
                f"{option(name)} cannot be kept by the law `{PAPER}`: it predicts no errors to weigh it against; it "
                "takes --train-flops, --anchor, --anchor-flops and --multiple."
            )
    found = scale(
        train_flops=arguments.train_flops, anchor=arguments.anchor or _ANCHOR, anchor_flops=arguments.anchor_flops,
        multiple=arguments.multiple,
    )  # fmt: skip
    compute = {"train_flops": found.train_flops, "forward_flops": found.train_flops / TRAINING}
    train = settings_of(found.config, found.images)
    return Result({"law": PAPER, "compute": compute, **to_dict(found), "train": train}, paper_told(found))


def _budget(arguments: argparse.Namespace) -> Budget:
    if (arguments.max_latency_ms is None) != (arguments.device is None):
        raise ConfigError(
            "--max-latency-ms and --device go together: the limit, and the file of what this machine measured."
        )
    if arguments.measure < 0:
        raise ConfigError(f"--measure is {arguments.measure}, it must be 0 or more shapes.")
    return Budget(
        train_flops=arguments.train_flops,
        lifetime_images=0.0 if arguments.lifetime_images is None else arguments.lifetime_images,
        max_params=arguments.max_params,
        max_memory=arguments.max_memory,
        max_latency_ms=arguments.max_latency_ms,
        batch=arguments.batch,
    )


def _measured(
    arguments: argparse.Namespace, law: LawFile, around: Sequence[Candidate], budget: Budget, limit_ms: float
) -> Latencies:
    """What the file holds and, of what is missing, the shapes that decide; written into the file as they come."""
    path: Path = arguments.device
    device = read_device(path)
    load_average = os.getloadavg()[0]
    question = Question(law.setting.image_size, budget.batch, arguments.precision)

    def measure(names: Sequence[str]) -> Mapping[str, float]:
        nonlocal device
        rows = bench(names, question, load_average)
        device = device.added(rows)
        write_device(path, device)
        return {row.shape: row.p50_ms for row in rows}

    # The other limits come first: what they exclude need not be measured.
    kept_P = keeping(limits(replace(budget, max_latency_ms=None), around, {}), around)
    within = [one for one, kept in zip(around, kept_P, strict=True) if kept]
    before = {shape: row.p50_ms for shape, row in device.answers(question).items()}
    after = measure_towards(within, errors(law.law, within, budget), limit_ms, before, measure, arguments.measure)
    return Latencies(
        device=device, question=question, by_name=after, new=len(after) - len(before), model=device_model(around, after)
    )
