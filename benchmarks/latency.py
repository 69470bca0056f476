"""Latency of artifacts and variants, each in several fresh processes, one model in memory at a time.

    sovit bench latency So400m/14 g/14 --precision fp32 int8 --images PHOTOGRAPHS --out latency.json

A variant is exported with random weights first, parity check included: no parity, no number. All cases go through one
process each, then all through a second, and so on: a machine that slows down slows all of them, and how much a row
differs from process to process is in its interval.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.intervals import Estimate, percentile
from benchmarks.latency_child import Job, Measured, parse
from benchmarks.peaks import peak_flops
from export.reference import calibration_images, reference_images
from export.to_onnx import ExportOptions, export_onnx, from_random
from sovit.artifact import Artifact, Precision, is_artifact, open_artifact
from sovit.checkpoint import save_checkpoint
from sovit.config import variant_config
from sovit.cost import cost
from sovit.errors import ConfigError, ServiceError
from sovit.machine import this_machine
from sovit.runtime.open import installed_runtimes
from sovit.runtime.profile import AUTO

SCHEMA_VERSION: Final = 2
TORCH: Final = ("torch", "torch-compile")
ALL: Final = "all"
_QUANTISED: Final = ("int8", "int8-bf16", "fp8-bf16")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured: every target in every precision and runtime at every batch size."""

    batches: tuple[int, ...] = (1,)
    rounds: int = 30
    processes: int = 3
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model in one runtime. `checkpoint` is only for PyTorch's."""

    target: str
    artifact: Artifact
    runtime: str
    checkpoint: str = ""

    @property
    def precision(self) -> str:
        return self.artifact.manifest.precision


@dataclass
class Taken:
    """What the processes of a case have measured so far."""

    load_seconds: list[float] = field(default_factory=list)
    matmul_flops: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    batches: dict[int, list[Measured]] = field(default_factory=dict)
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case at one batch size. Times are in milliseconds for a whole batch."""

    variant: str
    image_size: tuple[int, int]
    runtime: str
    precision: str
    batch: int
    threads: int
    weights: str
    processes: int
    runs: int
    warmup_runs: int
    load_seconds: float
    compile_seconds: float | None
    p50_ms: Estimate
    p90_ms: Estimate
    p99_ms: Estimate
    process_p50_ms: tuple[float, ...]
    images_per_second: Estimate
    peak_memory_bytes: int
    flops_per_image: int
    achieved_flops: float
    matmul_flops: float
    mfu: float | None
    joules_per_image: float | None
    cosine: float


def cases(
    targets: Sequence[str],
    *,
    image_sizes: Sequence[tuple[int, int]],
    precisions: Sequence[Precision],
    runtimes: Sequence[str],
    images: Path | None,
    scratch: Path,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Case]:
    """Everything to measure, exported where it is a variant. Raises `ConfigError` for what cannot be."""
    found = []
    for target in targets:
        folder = Path(target)
        if is_artifact(folder):
            artifact = open_artifact(folder)
            found += [
                Case(target=artifact.manifest.name, artifact=artifact, runtime=name)
                for name in _runtimes(artifact, runtimes)
                if name not in TORCH
            ]
        elif folder.is_dir():
            raise ConfigError(f"{target} is no artifact: manifest.json is missing.")
        else:
            for image_size in image_sizes:
                found += _cases_of_variant(target, image_size, precisions, runtimes, images, scratch, tell)
    if not found:
        raise ConfigError("there is nothing to measure: none of the runtimes takes what was asked for.")
    return found


def measure(cases: Sequence[Case], plan: Plan, advance: Callable[[int], None]) -> tuple[list[Row], bool]:
    """Measure all cases, `plan.processes` times over. Ctrl-C keeps what is finished: the second value is then False."""
    taken = [Taken() for _ in cases]
    complete = True
    try:
        for _ in range(plan.processes):
            for case, one in zip(cases, taken, strict=True):
                if not one.failure:
                    _add(one, case, plan)
                advance(1)
    except KeyboardInterrupt:
        complete = False
    failed = [
        f"{case.target} in {case.runtime}: {one.failure}" for case, one in zip(cases, taken, strict=True) if one.failure
    ]
    if failed:
        raise ServiceError(f"a process failed: {'; '.join(failed)}")
    return [
        row(case, one, batch, plan)
        for batch in plan.batches
        for case, one in zip(cases, taken, strict=True)
        if batch in one.batches
    ], complete


def row(case: Case, taken: Taken, batch: int, plan: Plan) -> Row:
    """The row of a case at a batch size, from what its processes measured."""
    manifest, measured = case.artifact.manifest, taken.batches[batch]
    seconds = [np.array(one.seconds) for one in measured]
    p50, p90, p99 = (percentile(seconds, percent) for percent in (50, 90, 99))
    flops = cost(manifest.model).flops
    achieved = batch * flops / p50.value
    peak = peak_flops(this_machine().gpu, case.precision)
    joules = [one.joules / (batch * len(one.seconds)) for one in measured if one.joules is not None]
    firsts = [one.first_seconds - float(np.median(one.seconds)) for one in measured]
    return Row(
        variant=case.target,
        image_size=manifest.model.image_size,
        runtime=case.runtime,
        precision=case.precision,
        batch=batch,
        threads=plan.threads,
        weights="random" if manifest.provenance.get("weights") == "random" else manifest.name,
        processes=len(measured),
        runs=sum(len(one.seconds) for one in measured),
        warmup_runs=max(one.warmup_runs for one in measured),
        load_seconds=float(np.median(taken.load_seconds)),
        compile_seconds=max(0.0, float(np.median(firsts))) if case.runtime == "torch-compile" else None,
        p50_ms=p50.scaled(1e3),
        p90_ms=p90.scaled(1e3),
        p99_ms=p99.scaled(1e3),
        process_p50_ms=tuple(float(np.median(one) * 1e3) for one in seconds),
        images_per_second=p50.inverse(batch),
        peak_memory_bytes=max(one.peak_memory_bytes for one in measured),
        flops_per_image=flops,
        achieved_flops=achieved,
        matmul_flops=float(np.median(taken.matmul_flops)),
        mfu=achieved / peak if peak else None,
        joules_per_image=float(np.median(joules)) if joules else None,
        cosine=min(taken.cosines),
    )


def to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as a result file has them."""
    return [asdict(one) for one in rows]


def _cases_of_variant(
    target: str,
    image_size: tuple[int, int],
    precisions: Sequence[Precision],
    runtimes: Sequence[str],
    images: Path | None,
    scratch: Path,
    tell: Callable[[str], None],
) -> list[Case]:
    if images is None and any(precision in _QUANTISED for precision in precisions):
        raise ConfigError("quantised precisions need real photographs to calibrate on: --images FOLDER.")
    place = scratch / f"{target.replace('/', '-')}-{image_size[0]}x{image_size[1]}"
    source = from_random(target, variant_config(target, image_size=image_size))
    reference = reference_images(source.spec.preprocess, images)
    calibration = [] if images is None else calibration_images(source.spec.preprocess, images, reference)
    found = []
    for precision in precisions:
        tell(f"exporting {target} in {precision}")
        options = ExportOptions(precision=precision, batch=(1, 8, 64))
        artifact = export_onnx(source, place / precision, reference, options, calibration)
        for name in _runtimes(artifact, runtimes):
            checkpoint = place / "checkpoint"
            if name in TORCH and precision != "fp32":
                continue  # PyTorch is measured as what it is in fp32
            if name in TORCH and not checkpoint.exists():
                save_checkpoint(checkpoint, source.model, source.spec, {"weights": "random"})
            found.append(Case(target=target, artifact=artifact, runtime=name, checkpoint=str(checkpoint)))
    return found


def _runtimes(artifact: Artifact, asked: Sequence[str]) -> list[str]:
    """The runtimes that are asked for, of those that can take an artifact here."""
    here = installed_runtimes(artifact)
    if list(asked) == [ALL]:
        return [*here, *TORCH]
    chosen = [here[0] if name == AUTO else name for name in asked]
    return [name for name in chosen if name in here or name in TORCH]


def _add(taken: Taken, case: Case, plan: Plan) -> None:
    """Let one fresh process measure a case."""
    job = Job(
        artifact=str(case.artifact.folder.resolve()),
        runtime=case.runtime,
        threads=plan.threads,
        batches=plan.batches,
        rounds=plan.rounds,
        checkpoint=case.checkpoint,
    )
    words = [sys.executable, "-m", "benchmarks.latency_child", json.dumps(asdict(job))]
    done = subprocess.run(words, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]  # libraries print what they like
    if done.returncode or not lines:
        taken.failure = f"status {done.returncode}, {done.stderr.strip()[-300:] or 'without a word'}"
        return
    found = parse(lines[-1])
    taken.load_seconds.append(found["load_seconds"])
    taken.matmul_flops.append(found["matmul_flops"])
    taken.cosines.append(found["cosine"])
    for one in found["batches"]:
        taken.batches.setdefault(one.batch, []).append(one)
