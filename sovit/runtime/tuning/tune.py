"""`sovit tune`: which runtime, how many threads, lanes and images in a batch are the fastest here.

Every setting takes turns with one and the same anchor, run by run, and its time is the median of the ratios times the
anchor's median: a machine that slows down for a minute slows both. No parity, no number: each runtime is checked
against the artifact's reference first. A batch grows while that gains images a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sovit.artifact import REFERENCE, Artifact
from sovit.cores import available_cores
from sovit.errors import ConfigError, RuntimeFailure, SoViTError
from sovit.machine import free_memory, this_machine
from sovit.parity import measure_parity
from sovit.progress import progress
from sovit.runtime.base import Runtime
from sovit.runtime.open import ON_GPU, installed_runtimes, open_lanes
from sovit.runtime.profile import WORTH, Measurement, Profile, Setting

_WARMUPS: Final = 2
_ENOUGH_SECONDS: Final = 8.0  # of turns, where a run takes long: three of them must do then
_LEAST_ROUNDS: Final = 3
_LEAST_SECONDS: Final = 0.5  # of turns, where a run takes next to nothing
_GPU_LANES: Final = (1, 2)
_RUNS_A_TURN: Final = 2  # so that lanes overlap as they do under load
_SETTLE_SECONDS: Final = 0.003  # an engine's idle threads spin for a moment, at the cost of the next one's run
_COPIES: Final = 2.5  # of the weights a runtime may hold while it loads


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """What to try: runtimes (none: those that can take the artifact here) and batches up to `max_batch`.

    Each setting has `rounds` turns, more where they take less than half a second, as few as three where they take long.
    """

    runtimes: tuple[str, ...] = ()
    max_batch: int = 32
    rounds: int = 7

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
    powers = {2**power for power in range(options.max_batch.bit_length())}
    batches = sorted(batch for batch in powers | {least} if least <= batch <= min(most, options.max_batch))
    if not batches:
        raise ConfigError(f"this artifact is for {least} to {most} images; --max-batch {options.max_batch} has none.")
    reference = artifact.reference()
    errors: dict[str, SoViTError] = {}  # by runtime
    left_out: dict[str, str] = {}
    ratios: dict[Setting, float] = {}
    race = _Race(options.rounds)
    with progress("tuning", len(engines) * len(batches)) as advance:
        for engine in engines:
            if engine.runtime not in errors:
                known = any(setting.runtime == engine.runtime for setting in ratios)
                try:
                    for setting, ratio in _timed(artifact, engine, race, batches, reference, check=not known):
                        ratios[setting] = ratio
                except SoViTError as error:
                    if known:
                        left_out[f"{engine.runtime}, {engine.lanes} lanes of {engine.threads} threads"] = str(error)
                    else:
                        errors[engine.runtime] = error
            advance(len(batches))
    race.close()
    if not ratios:
        raise next(iter(errors.values()))
    left_out |= {name: str(error) for name, error in errors.items()}
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


def _timed(
    artifact: Artifact,
    engine: Setting,
    race: _Race,
    batches: Sequence[int],
    reference: tuple[NDArray[np.uint8], dict[str, NDArray[np.float32]]],
    *,
    check: bool,
) -> Iterator[tuple[Setting, float]]:
    """Load an engine and time growing batches, until two in a row gain nothing over the best before.

    Gives ratios to the anchor. With `check` the engine must reproduce the reference first.
    """
    images, outputs = reference
    if race.anchor is not None and not _fits(artifact, engine):
        raise RuntimeFailure("as many copies of the weights do not fit into the memory that is free.")
    lanes = open_lanes(artifact, engine)
    try:
        if check:
            measure_parity(lanes[0], images, outputs).require()
        fastest, idle = 0.0, 0
        for batch in batches:
            ratio = race.ratio(lanes, images[np.arange(batch) % len(images)])
            yield replace(engine, batch=batch), ratio
            idle = 0 if batch / ratio > WORTH * fastest else idle + 1
            fastest = max(fastest, batch / ratio)
            if idle == 2:
                return
    finally:
        for lane in lanes:
            if lane is not race.anchor:
                lane.close()


class _Race:
    """Runs of some lanes, in turns with runs of the anchor on one image: the first lane that ever ran."""

    def __init__(self, rounds: int) -> None:
        self.anchor: Runtime | None = None
        self._rounds = rounds
        self._seconds: list[float] = []

    @property
    def anchor_seconds(self) -> float:
        """Median of all its runs."""
        return float(np.median(self._seconds))

    def ratio(self, lanes: Sequence[Runtime], image_BYXC: NDArray[np.uint8]) -> float:
        """Time of one run of this batch with all lanes busy, over the anchor's.

        Whoever's turn it is runs once before the clock starts: the other has just used the caches.
        """
        anchor = self.anchor = self.anchor or lanes[0]

        def work(lane: Runtime, runs: int) -> None:
            for _ in range(runs):
                lane.run(image_BYXC)

        def side_by_side(runs: int) -> None:
            for _ in pool.map(work, lanes, [runs] * len(lanes)):
                pass

        ratios: list[float] = []
        with ThreadPoolExecutor(len(lanes)) as pool:
            side_by_side(_WARMUPS)
            began = time.perf_counter()
            while len(ratios) < self._rounds or time.perf_counter() < began + _LEAST_SECONDS:
                if len(ratios) >= _LEAST_ROUNDS and time.perf_counter() > began + _ENOUGH_SECONDS:
                    break
                anchor.run(image_BYXC[:1])
                self._seconds.append(_seconds(lambda: anchor.run(image_BYXC[:1])))
                side_by_side(1)
                ratios.append(_seconds(lambda: side_by_side(_RUNS_A_TURN)) / self._seconds[-1] / _RUNS_A_TURN)
        return float(np.median(ratios))

    def close(self) -> None:
        """Free the anchor."""
        if self.anchor is not None:
            self.anchor.close()


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
