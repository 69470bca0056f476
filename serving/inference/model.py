"""One served model: an artifact, verified, loaded into its lanes and warmed on exactly the shapes to be served."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from serving.config import ServeConfig
from serving.entry.line import Line
from serving.inference.engine import Engine
from serving.inference.store import artifact_folder
from sovit.artifact import Artifact, check_files, read_manifest
from sovit.runtime.open import is_compiled, open_lanes, setting_for
from sovit.spec import ModelSpec

OnBatch = Callable[[str, int, float], None]  # told of every run: the model's name, images, seconds


@dataclass(frozen=True, eq=False)
class ServedModel:
    """What answers under a name. `artifact` is the whole hash of its artifact."""

    name: str
    artifact: str
    precision: str
    runtime: str
    spec: ModelSpec
    engine: Engine
    line: Line

    @property
    def summary(self) -> dict[str, Any]:
        """What replies say about it."""
        return {
            "name": self.name,
            "artifact": self.version,
            "precision": self.precision,
            "runtime": self.runtime,
        }

    @property
    def header(self) -> str:
        """The same as a header, for replies that have no place for it."""
        rest = {key: value for key, value in self.summary.items() if key != "name"}
        return "; ".join([quote(self.name), *(f"{key}={value}" for key, value in rest.items())])

    @property
    def version(self) -> str:
        """The short hash of its artifact."""
        return self.artifact[:12]


def load_model(name: str, reference: str, config: ServeConfig, on_batch: OnBatch) -> ServedModel:
    """Load what `reference` names. Raises what is wrong with it: `ArtifactMismatch`, `ConfigError` and others."""
    folder = artifact_folder(reference)
    manifest = read_manifest(folder)
    artifact = Artifact(folder, manifest)
    sha256 = artifact.sha256  # now: the folder may be gone later
    setting = setting_for(
        artifact, config.tuned_for, runtime=config.runtime, threads=config.threads, lanes=config.lanes,
        batch=config.max_batch,
    )  # fmt: skip
    with ThreadPoolExecutor(1) as pool:
        checked = pool.submit(check_files, artifact)
        # Files are hashed while what was compiled of them is loaded; but nothing is compiled, and kept for the next
        # start, of files that have not been checked.
        if not is_compiled(artifact, setting):
            checked.result()
        try:
            runtimes = open_lanes(artifact, setting, keep_compiled=True)
        finally:
            checked.result()  # a file that was changed is the better explanation of a failed load
    engine = Engine(runtimes, max_batch=setting.batch, on_batch=lambda images, seconds: on_batch(name, images, seconds))
    try:
        images, _ = artifact.reference()
        engine.start(images[0], every_size=bool(config.max_batch))
    except BaseException:
        engine.close()
        raise
    return ServedModel(
        name=name,
        artifact=sha256,
        precision=manifest.precision,
        runtime=setting.runtime,
        spec=manifest,
        engine=engine,
        line=Line(engine.seconds_per_image),
    )
