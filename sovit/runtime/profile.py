"""Tuned profiles: what `sovit tune` measured on this machine for an artifact, and the setting that follows from it.

A profile lies in the machine's cache under the artifact's hash and the machine (processor, cores, GPU, versions of the
engines). Where one of them changes there is no profile, and the defaults hold.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Literal, get_args

from pydantic import ConfigDict

from sovit.artifact import Artifact
from sovit.cache import cache_folder, write_whole
from sovit.cores import available_cores
from sovit.errors import ConfigError
from sovit.jsonio import STRICT, from_dict, read_json, to_dict
from sovit.machine import Machine, this_machine

logger = logging.getLogger(__name__)

AUTO: Final = "auto"
WORTH: Final = 1.02  # a larger batch, or one more lane, must gain as much to be chosen
Goal = Literal["latency", "throughput"]
GOALS: Final[tuple[Goal, ...]] = get_args(Goal)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How to run an artifact: `lanes` runs side by side, each with `threads` CPU threads and up to `batch` images."""

    runtime: str
    threads: int = field(default_factory=available_cores)
    lanes: int = 1
    batch: int = 8


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One setting's median time of a run while all lanes run, and the images all of them finish in a second."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    runtime: str
    threads: int
    lanes: int
    batch: int
    milliseconds: float
    images_per_second: float

    @property
    def setting(self) -> Setting:
        """The setting that was measured."""
        return Setting(runtime=self.runtime, threads=self.threads, lanes=self.lanes, batch=self.batch)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Everything that was measured for one artifact on one machine."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    artifact_sha256: str
    machine: Machine
    time: str
    rounds: int
    measured: tuple[Measurement, ...]


def best(measured: Sequence[Measurement], goal: Goal) -> Setting | None:
    """The best of what was measured, None where nothing of use was.

    For latency: what takes the least time for a single image (or the least batch there is); its `batch` is the one that
    then gains the most images a second, 1 where batching gains nothing. For throughput: the most images a second.
    """
    candidates = list(measured)
    if goal == "latency":
        least = min((m.batch for m in measured), default=0)
        single = min((m for m in measured if m.batch == least), key=lambda m: m.milliseconds, default=None)
        if single is None:
            return None
        engine = (single.runtime, single.threads, single.lanes)
        candidates = [m for m in measured if (m.runtime, m.threads, m.lanes) == engine]
    # The simplest first: of two that are as fast, fewer images wait for each other.
    found: Measurement | None = None
    for candidate in sorted(candidates, key=lambda m: (m.batch, m.lanes)):
        if found is None or candidate.images_per_second > WORTH * found.images_per_second:
            found = candidate
    return found.setting if found else None


def tuned_setting(
    artifact: Artifact, goal: Goal, *, runtime: str = AUTO, threads: int = 0, lanes: int = 0
) -> Setting | None:
    """The best of what was measured here among what is asked for (`auto` and 0 are any); None where nothing was."""
    profile = find_profile(artifact)
    return best(
        [
            m
            for m in (profile.measured if profile else ())
            if runtime in (AUTO, m.runtime) and threads in (0, m.threads) and lanes in (0, m.lanes)
        ],
        goal,
    )


def find_profile(artifact: Artifact) -> Profile | None:
    """The profile of an artifact on this machine. A damaged or foreign one is named in the log and left aside."""
    try:
        path = _path(artifact)
        if not path.is_file():
            return None
        profile = from_dict(Profile, read_json(path), str(path))
    except (ConfigError, OSError) as error:  # a service without a home runs by the defaults
        logger.warning("a tuned profile is ignored, run `sovit tune` again: %s", error)
        return None
    if (profile.artifact_sha256, profile.machine) != (artifact.sha256, this_machine()):
        logger.warning("%s is of another artifact or machine and is ignored; run `sovit tune` again.", path)
        return None
    return profile


def save_profile(artifact: Artifact, profile: Profile) -> Path:
    """Keep a profile in the machine's cache; an older one of the same artifact and machine is replaced."""
    path = _path(artifact)
    write_whole(path, json.dumps(to_dict(profile), indent=2).encode())
    return path


def _path(artifact: Artifact) -> Path:
    machine = hashlib.sha256(json.dumps(to_dict(this_machine()), sort_keys=True).encode()).hexdigest()
    return cache_folder("profiles") / f"{artifact.sha256[:16]}-{machine[:16]}.json"
