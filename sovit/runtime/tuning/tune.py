"""`sovit tune`: which runtime, how many threads, lanes and images in a batch are the fastest here.

Every setting takes turns with one and the same anchor, run by run, and its time is the median of the ratios times the
anchor's median: a machine that slows down for a minute slows both. No parity, no number: each runtime is checked
against the artifact's reference first. A batch grows while that gains images a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sovit.artifact import REFERENCE, Artifact
from sovit.cores import available_cores
from sovit.errors import ConfigError, SoViTError
from sovit.machine import free_memory, this_machine
from sovit.parity import measure_parity
from sovit.progress import progress
from sovit.runtime.base import Runtime
from sovit.runtime.open import ON_GPU, installed_runtimes, open_lanes
from sovit.runtime.profile import WORTH, Measurement, Profile, Setting

_WARMUPS: Final = 2
_LEAST_SECONDS: Final = 0.5  # of turns, where a run takes next to nothing
_GPU_LANES: Final = (1, 2)
_RUNS_A_TURN: Final = 2  # of several lanes, so that they overlap as they do under load
_SETTLE_SECONDS: Final = 0.003  # an engine's idle threads spin for a moment, at the cost of the next one's run
_COPIES: Final = 2.5  # of the weights a runtime may hold while it loads


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """What to try: runtimes (none: those that can take the artifact here) and batches up to `max_batch`.

    Each setting has `rounds` turns, more where they take less than half a second.
    """

    runtimes: tuple[str, ...] = ()
    max_batch: int = 32
    rounds: int = 10

    def __post_init__(self) -> None:
        for name in ("max_batch", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be at least 1.")


@dataclass(frozen=True)
class Tuned:
    """What was found, and why some settings were left out, by name."""

    profile: Profile
    left_out: dict[str, str]


def tune(artifact: Artifact, options: TuneOptions | None = None) -> Tuned:
    """Measure the settings of an artifact. Raises what the first runtime raised when none of them works."""
    options = options or TuneOptions()
    engines = [
        engine
        for name in options.runtimes or installed_runtimes(artifact)
        for engine in _engines(name, available_cores())
    ]
    least, _, most = artifact.manifest.batch
    batches = [2**power for power in range(options.max_batch.bit_length()) if least <= 2**power <= most]
    if not batches:
        raise ConfigError(f"this artifact is for {least} to {most} images; --max-batch {options.max_batch} has none.")
    images, reference = artifact.reference()
    errors: dict[str, SoViTError] = {}  # by runtime
    left_out: dict[str, str] = {}
    ratios: dict[Setting, float] = {}
    race: _Race | None = None
    with progress("tuning", len(engines) * len(batches)) as advance:
        for engine in engines:
            known = any(setting.runtime == engine.runtime for setting in ratios)
            if engine.runtime in errors:
                pass
            elif race is not None and not _fits(artifact, engine):
                left_out[f"{engine.runtime}, {engine.lanes} lanes of {engine.threads} threads"] = (
                    "as many copies of the weights do not fit into the memory that is free."
                )
            else:
                try:
                    lanes = open_lanes(artifact, engine)
                    try:
                        if not known:
                            measure_parity(lanes[0], images, reference).require()
                        race = race or _Race(lanes[0], options.rounds)
                        ratios |= _ladder(race, lanes, engine, batches, images)
                    finally:
                        for lane in lanes:
                            if race is None or lane is not race.anchor:
                                lane.close()
                except SoViTError as error:
                    errors[engine.runtime] = error
                    left_out[engine.runtime] = str(error)
            advance(len(batches))
    if race is not None:
        race.anchor.close()
    if race is None or not ratios:
        raise next(iter(errors.values()))
    profile = Profile(
        artifact_sha256=artifact.sha256,
        machine=this_machine(),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        rounds=options.rounds,
        measured=tuple(_measurement(setting, ratio * race.anchor_seconds) for setting, ratio in ratios.items()),
    )
    return Tuned(profile, left_out)


def _measurement(setting: Setting, seconds: float) -> Measurement:
    rate = setting.lanes * setting.batch / seconds
    return Measurement(**asdict(setting), milliseconds=seconds * 1e3, images_per_second=rate)


def _engines(runtime: str, cores: int) -> list[Setting]:
    """All cores for one run first; then runs side by side that share them, and single runs with fewer."""
    if runtime in ON_GPU:
        return [Setting(runtime=runtime, threads=1, lanes=lanes, batch=1) for lanes in _GPU_LANES]
    counts = sorted({cores, *(2**power for power in range(cores.bit_length()))}, reverse=True)
    pairs = dict.fromkeys([(n, 1) for n in counts] + [(n, cores // n) for n in counts])
    return [Setting(runtime=runtime, threads=threads, lanes=lanes, batch=1) for threads, lanes in pairs]


def _ladder(
    race: _Race, lanes: Sequence[Runtime], engine: Setting, batches: Sequence[int], images_BYXC: NDArray[np.uint8]
) -> dict[Setting, float]:
    """Time growing batches until two in a row gain nothing over the best before. Ratios to the anchor."""
    found: dict[Setting, float] = {}
    fastest, idle = 0.0, 0
    for batch in batches:
        ratio = race.ratio(lanes, images_BYXC[np.arange(batch) % len(images_BYXC)])
        found[replace(engine, batch=batch)] = ratio
        idle = 0 if batch / ratio > WORTH * fastest else idle + 1
        fastest = max(fastest, batch / ratio)
        if idle == 2:
            break
    return found


class _Race:
    """Runs of some lanes, in turns with runs of the anchor on one image."""

    def __init__(self, anchor: Runtime, rounds: int) -> None:
        self.anchor = anchor
        self._rounds = rounds
        self._seconds: list[float] = []

    @property
    def anchor_seconds(self) -> float:
        """Median of all its runs."""
        return float(np.median(self._seconds))

    def ratio(self, lanes: Sequence[Runtime], image_BYXC: NDArray[np.uint8]) -> float:
        """Time of one run of this batch with all lanes busy, over the anchor's."""
        runs = 1 if len(lanes) == 1 else _RUNS_A_TURN

        def work(lane: Runtime) -> None:
            for _ in range(runs):
                lane.run(image_BYXC)

        ratios: list[float] = []
        with ThreadPoolExecutor(len(lanes)) as pool:
            for _ in range(_WARMUPS):
                list(pool.map(work, lanes))
            until = time.perf_counter() + _LEAST_SECONDS
            while len(ratios) < self._rounds or time.perf_counter() < until:
                self._seconds.append(_seconds(lambda: self.anchor.run(image_BYXC[:1])))
                ratios.append(_seconds(lambda: list(pool.map(work, lanes))) / self._seconds[-1])
        return float(np.median(ratios)) / runs


def _seconds(call: Callable[[], object]) -> float:
    time.sleep(_SETTLE_SECONDS)
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _fits(artifact: Artifact, engine: Setting) -> bool:
    """Whether all lanes may hold the weights at once; OpenVINO's lanes share them."""
    weights = sum(file.bytes for name, file in artifact.manifest.files.items() if name != REFERENCE)
    copies = 1 if engine.runtime == "openvino" else engine.lanes
    free = free_memory()
    return free is None or copies * _COPIES * weights < free
