"""What is measured: artifacts as they are, variants exported with random weights, each in the runtimes it is for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.latency.exports import QUANTISED, artifact_of, checkpoint_of
from benchmarks.latency.result import Failed
from benchmarks.opening import TORCH, TORCH_PRECISIONS, is_on_gpu
from sovit.artifact import Artifact, Precision, is_artifact, open_artifact
from sovit.config import variant_config
from sovit.errors import ConfigError, ServiceError, SoViTError
from sovit.machine import this_machine
from sovit.runtime.open import RUNTIMES, installed_runtimes, parity_runtimes, unknown_runtime
from sovit.runtime.profile import AUTO
from sovit.runtime.tensorrt.compile import compile_plan
from sovit.runtime.tensorrt.cuda import current_gpu
from sovit.runtime.tensorrt.library import LIBRARIES
from sovit.runtime.tensorrt.runtime import is_compiled

ALL: Final = "all"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user asks for. The first five make the cases of a variant; an artifact is what it is.

    `folder` is where exported variants are, or are put.
    """

    image_sizes: Sequence[tuple[int, int]]
    precisions: Sequence[Precision]
    images: Path | None
    folder: Path
    runtimes: Sequence[str]

    def __post_init__(self) -> None:
        for name in self.runtimes:
            if name not in (*RUNTIMES, *TORCH, ALL):
                raise unknown_runtime(name)
            if name in TORCH and is_on_gpu(name) and not this_machine().gpu:
                raise ConfigError(f"{name} needs a GPU, and there is none here (nvidia-ml-py looks for it).")
        if self.images is None and any(precision in QUANTISED for precision in self.precisions):
            raise ConfigError("quantised precisions need real photographs to calibrate on: --images FOLDER.")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model in one runtime. `checkpoint` is only for PyTorch's; `away` says why the runtime cannot take it here."""

    target: str
    artifact: Artifact
    runtime: str
    checkpoint: str = ""
    away: str = ""

    @property
    def precision(self) -> str:
        return self.artifact.manifest.precision

    def failed(self, reason: str) -> Failed:
        """That it could not be measured."""
        return Failed(
            variant=self.target,
            image_size=self.artifact.manifest.model.image_size,
            runtime=self.runtime,
            precision=self.precision,
            reason=reason,
        )


def cases(targets: Sequence[str], asked: Asked, tell: Callable[[str], None]) -> tuple[list[Case], list[Failed]]:
    """Everything to measure, and what could not be exported.

    Raises `ConfigError` for what cannot be meant: an unknown variant, a folder that is no artifact, nothing at all.
    """
    for target in targets:
        if not Path(target).is_dir():
            for image_size in asked.image_sizes:
                _require_variant(target, image_size)  # all of them, before the first takes its minutes
        elif not is_artifact(Path(target)):
            raise ConfigError(f"{target} is no artifact: manifest.json is missing.")
    found: list[Case] = []
    failed: list[Failed] = []
    for target in targets:
        if Path(target).is_dir():
            found += _of_artifact(open_artifact(target), asked.runtimes)
            continue
        for image_size in asked.image_sizes:
            for precision in asked.precisions:
                try:
                    found += _of_variant(target, image_size, precision, asked, tell)
                except ServiceError as error:
                    failed.append(
                        Failed(
                            variant=target, image_size=image_size, runtime="", precision=precision, reason=str(error)
                        )
                    )
                    tell(str(failed[-1]))
    found, away = [case for case in found if not case.away], [case.failed(case.away) for case in found if case.away]
    if not found and not failed:
        said = f" {away[0]}" if away else " none of the runtimes takes what was asked for."
        raise ConfigError(f"there is nothing to measure:{said}")
    for one in away:
        tell(str(one))
    _refuse_twice(found)
    return found, [*failed, *away]


def _require_variant(target: str, image_size: tuple[int, int]) -> None:
    try:
        variant_config(target, image_size=image_size)
    except ConfigError as error:
        raise ConfigError(f"there is no folder {target}, so it would be a variant: {error}") from error


def _refuse_twice(cases: Sequence[Case]) -> None:
    seen: dict[tuple[str, tuple[int, int], str, str], Case] = {}
    for case in cases:
        key = (case.target, case.artifact.manifest.model.image_size, case.runtime, case.precision)
        if key in seen:
            folders = f"{seen[key].artifact.folder} and {case.artifact.folder}"
            raise ConfigError(
                f"{folders} are both {case.target} in {case.precision}: measure them one after the other into a file "
                "each, and see what differs with `sovit bench compare`."
            )
        seen[key] = case


def _of_artifact(artifact: Artifact, runtimes: Sequence[str]) -> list[Case]:
    return [
        Case(target=artifact.manifest.name, artifact=artifact, runtime=name, away=away)
        for name, away in _runtimes(artifact, runtimes, "PyTorch takes variants, no artifacts.").items()
    ]


def _of_variant(
    target: str, image_size: tuple[int, int], precision: Precision, asked: Asked, tell: Callable[[str], None]
) -> list[Case]:
    place = asked.folder / f"{target.replace('/', '-')}-{image_size[0]}x{image_size[1]}"
    if not is_artifact(place / precision):
        tell(f"exporting {target} in {precision}")
    artifact = artifact_of(target, image_size, precision, asked.images, place / precision)
    uncompiled = _compile(artifact, asked.runtimes, tell)
    found = []
    no_torch = "" if precision in TORCH_PRECISIONS else f"PyTorch computes no {precision} here."
    for name, away in (_runtimes(artifact, asked.runtimes, no_torch) | uncompiled).items():
        if name in TORCH and not away:
            checkpoint = checkpoint_of(target, image_size, place / "checkpoint")
            found.append(Case(target=target, artifact=artifact, runtime=name, checkpoint=str(checkpoint.resolve())))
        else:
            found.append(Case(target=target, artifact=artifact, runtime=name, away=away))
    return found


def _compile(artifact: Artifact, asked: Sequence[str], tell: Callable[[str], None]) -> dict[str, str]:
    """Compile a variant for the runtimes that are asked for and take plans; of each that cannot be, why."""
    reasons: dict[str, str] = {}
    for name, library in LIBRARIES.items():
        if name in asked and not is_compiled(artifact, library):
            try:
                library.load()
                current_gpu()
                tell(f"compiling {artifact.manifest.name} in {artifact.manifest.precision} with {library.title}")
                compile_plan(artifact, library=library)
            except SoViTError as error:
                reasons[name] = str(error)
    return reasons


def _runtimes(artifact: Artifact, asked: Sequence[str], no_torch: str) -> dict[str, str]:
    """The runtimes that are asked for, each with why it cannot take an artifact here, "" where it can.

    `no_torch` says why PyTorch cannot; `all` are those that can. Where there is a GPU, the CPU's engines go when named.
    """
    best = installed_runtimes(artifact)
    if ALL in asked:
        torch = [name for name in TORCH if is_on_gpu(name) == bool(this_machine().gpu) and not no_torch]
        return dict.fromkeys([*best, *torch], "")
    here = dict.fromkeys([*best, *parity_runtimes(artifact.manifest.precision)])
    away = f"it is not installed or does not take this here; what does: {', '.join(here)}."
    uncompiled = f"{away} TensorRT takes artifacts that `sovit compile` made a plan of, on this GPU."
    reasons: dict[str, str] = {
        **dict.fromkeys(TORCH, no_torch),
        **dict.fromkeys(LIBRARIES, uncompiled),
        **dict.fromkeys(here, ""),
    }
    return {name: reasons.get(name, away) for name in dict.fromkeys(best[0] if one == AUTO else one for one in asked)}
