"""`sovit shape recommend`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from sovit.commands.result import Result
from sovit.config import by_number
from sovit.cost import TRAINING
from sovit.errors import ConfigError
from sovit.jsonio import to_dict
from sovit.laws.advice.budget import Budget, but_latency, option
from sovit.laws.advice.candidates import Candidate, candidates, known_variants
from sovit.laws.advice.device import Question, read_device, write_device
from sovit.laws.advice.device_bench import bench
from sovit.laws.advice.device_model import LEAST_SHAPES
from sovit.laws.advice.measure import Latencies, device_model, expected_ms, measure_towards
from sovit.laws.advice.options import Options
from sovit.laws.advice.paper import scale
from sovit.laws.advice.recommend import errors, recommend
from sovit.laws.advice.train import Recipe
from sovit.laws.advice.words import optimum_of, paper_told, told
from sovit.laws.law_file import LawFile, read_law
from sovit.laws.sweep import MULTIPLE

PAPER: Final = "paper"
# What the paper's law cannot weigh, what belongs to it alone, and what is about measuring.
_NOT_OF_PAPER: Final = ("lifetime_images", "max_params", "max_memory", "max_latency_ms", "device", "batch", "precision",
                        "measure", "measure_known", "margin")  # fmt: skip
_OF_PAPER: Final = ("anchor", "anchor_flops")
_OF_MEASURING: Final = ("device", "precision", "measure", "measure_known")
_ANCHOR: Final = "So400m"


def recommend_shape(arguments: argparse.Namespace) -> Result:
    """The best shape for a budget, by a fitted law or the paper's."""
    if arguments.law == PAPER:
        return _by_paper(arguments)
    for name in _OF_PAPER:
        if getattr(arguments, name) is not None:
            raise ConfigError(f"{option(name)} belongs to the law `{PAPER}`: a fitted law has no anchor.")
    options = _options(arguments)
    budget = _budget(arguments, options)
    law = read_law(Path(arguments.law))
    multiple = law.setting.multiple if arguments.multiple is None else arguments.multiple
    around = candidates(law.setting, law.seen, law.law, margin=options.margin, multiple=multiple)
    known = known_variants(law.setting, law.seen)
    latencies = None
    if budget.max_latency_ms is not None:
        also = known if arguments.measure_known else ()
        latencies = _measured(arguments.device, law, around, also, budget, budget.max_latency_ms, options)
    found = recommend(
        law.law, law.laws, around, budget, seen=law.seen, known=known,
        latency_ms=latencies.by_name if latencies else {}, expected_ms=latencies.expected if latencies else {},
    )  # fmt: skip
    train = Recipe.of(found.best.config, found.best.images, law.training)
    data: dict[str, Any] = {
        "law": arguments.law,
        "held_out": law.hold_out and to_dict(law.hold_out),
        "not_held_out": law.not_held_out,
        "each_shape": law.each_shape and to_dict(law.each_shape),
        "compute": {"train_flops": budget.train_flops, "forward_flops": budget.train_flops / TRAINING},
        "warnings": [*law.warnings, *found.warnings, *(latencies.cautions if latencies else ())],
        "best": to_dict(found.best),
        "train": to_dict(train),
        "optimum": optimum_of(law.law, found),
        **to_dict(found),
        "latencies": latencies and latencies.to_json(),
    }
    return Result(data, told(law, found, latencies, train))


def _by_paper(arguments: argparse.Namespace) -> Result:
    for name in _NOT_OF_PAPER:
        if getattr(arguments, name) is not None:
            raise ConfigError(
                f"{option(name)} cannot be kept by the law `{PAPER}`: it predicts no errors to weigh it against; it "
                "takes --train-flops, --anchor, --anchor-flops and --multiple."
            )
    found = scale(
        train_flops=arguments.train_flops, anchor=arguments.anchor or _ANCHOR, anchor_flops=arguments.anchor_flops,
        multiple=MULTIPLE if arguments.multiple is None else arguments.multiple,
    )  # fmt: skip
    compute = {"train_flops": found.train_flops, "forward_flops": found.train_flops / TRAINING}
    train = Recipe.of(found.config, found.images, None)
    return Result(
        {"law": PAPER, "compute": compute, **to_dict(found), "train": to_dict(train)}, paper_told(found, train)
    )


def _options(arguments: argparse.Namespace) -> Options:
    typed = {one.name: value for one in fields(Options) if (value := getattr(arguments, one.name)) is not None}
    return Options(**typed)


def _budget(arguments: argparse.Namespace, options: Options) -> Budget:
    if arguments.max_latency_ms is None:
        for name in _OF_MEASURING:
            if getattr(arguments, name) is not None:
                raise ConfigError(f"{option(name)} is about measuring: it goes with --max-latency-ms, the limit.")
    elif arguments.device is None:
        raise ConfigError("--max-latency-ms needs --device, the file of what this machine measured, or will.")
    if arguments.batch is not None and arguments.max_latency_ms is None and arguments.max_memory is None:
        raise ConfigError("--batch is that of a latency or of memory: it goes with --max-latency-ms or --max-memory.")
    if options.measure < 0:
        raise ConfigError(f"--measure is {options.measure}, it must be 0 or more shapes.")
    return Budget(
        train_flops=arguments.train_flops,
        lifetime_images=0.0 if arguments.lifetime_images is None else arguments.lifetime_images,
        max_params=arguments.max_params,
        max_memory=arguments.max_memory,
        max_latency_ms=arguments.max_latency_ms,
        batch=options.batch,
    )


def _measured(
    path: Path, law: LawFile, around: Sequence[Candidate], also: Sequence[Candidate], budget: Budget, limit_ms: float,
    options: Options,
) -> Latencies:  # fmt: skip
    """What the file holds and, of what is missing, the shapes that decide and those of `also`."""
    device = read_device(path)
    load_average = os.getloadavg()[0]
    question = Question(law.setting.image_size, budget.batch, options.precision)

    def measure(names: Sequence[str]) -> Mapping[str, float]:
        nonlocal device
        rows = bench(names, question, load_average)
        device = device.added(rows)
        write_device(path, device)
        return {row.shape: row.p50_ms for row in rows}

    # The other limits come first: what they exclude need not be measured.
    within = but_latency(budget, around)
    before = {shape: row.p50_ms for shape, row in device.answers(question).items()}
    known = sum(one.name in before for one in around)
    if 0 < options.measure < min(LEAST_SHAPES, len(within)) - known:
        raise ConfigError(
            f"--measure {options.measure} is too few: what to measure next is told by {LEAST_SHAPES} shapes or more, "
            f"and {path} has {known}."
        )
    after = measure_towards(within, errors(law.law, within, budget), limit_ms, before, measure, options.measure)
    for one in also:
        if (name := by_number(one.config)) not in after:
            after.update(measure([name]))
    model = device_model(around, after)
    return Latencies(
        device=device, question=question, by_name=after, expected=expected_ms(around, model),
        new=len(after) - len(before), model=model,
    )  # fmt: skip
