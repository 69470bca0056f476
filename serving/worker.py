"""What a started worker holds: the model in its engine, and everything a request is measured against."""

from __future__ import annotations

import logging
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.config import ServeConfig
from serving.decoders import Decoders
from serving.door import Door
from serving.engine import Engine
from serving.keys import KeyFile
from serving.memory import give_back_large_blocks
from serving.metrics import Metrics
from serving.store import artifact_folder
from sovit.artifact import Artifact, check_files, read_manifest
from sovit.cores import available_cores
from sovit.runtime.open import is_compiled, open_lanes, setting_for
from sovit.spec import ModelSpec


@dataclass(frozen=True)
class Worker:
    """One artifact, warmed and taking work. `model` is what replies say about it, `artifact` its whole hash."""

    config: ServeConfig
    spec: ModelSpec
    model: dict[str, Any]
    artifact: str
    engine: Engine
    decoders: Decoders
    door: Door
    keys: KeyFile | None
    metrics: Metrics

    def close(self) -> None:
        """Finish what was accepted, then free the engine."""
        self.decoders.close()
        self.engine.close()


def _is_no_clients_fault(record: logging.LogRecord) -> bool:
    """Anybody can send what is no HTTP, as often as they like: the log is not theirs to fill."""
    return record.msg not in ("Invalid HTTP request received.", "Unsupported upgrade request.")


def start_worker(config: ServeConfig) -> Worker:
    """Verify the artifact, load it into every lane and warm it on exactly the shapes to be served."""
    give_back_large_blocks()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # they quote what is in the images
    logging.getLogger("uvicorn.error").addFilter(_is_no_clients_fault)
    keys = KeyFile(Path(config.keys)) if config.keys else None
    folder = artifact_folder(config.artifact)
    manifest = read_manifest(folder)
    artifact = Artifact(folder, manifest)
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
    metrics = Metrics()
    engine = Engine(runtimes, max_batch=setting.batch, on_batch=metrics.on_batch)
    images, _ = artifact.reference()
    engine.start(images[0], every_size=bool(config.max_batch))
    return Worker(
        config=config,
        spec=manifest,
        model={
            "name": config.name or manifest.name,
            "artifact": artifact.sha256[:12],
            "precision": manifest.precision,
            "runtime": setting.runtime,
        },
        artifact=artifact.sha256,
        engine=engine,
        decoders=Decoders(config.decode_threads or available_cores() + 1),
        door=Door(
            max_images=config.max_queue, max_bytes=config.max_queue_bytes, seconds_per_image=engine.seconds_per_image
        ),
        keys=keys,
        metrics=metrics,
    )
