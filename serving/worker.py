"""What a started worker holds: the models, and everything a request is measured against."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

from serving.config import ServeConfig
from serving.entry.door import Door
from serving.entry.keys import KeyFile
from serving.inference.decoders import Decoders
from serving.inference.memory import give_back_large_blocks
from serving.inference.model import OnBatch, ServedModel, load_model
from serving.inference.models import Models
from serving.observing.metrics import Metrics
from serving.observing.recent import Recent
from serving.observing.trace import Tracer
from serving.observing.tracer import open_tracer
from sovit.cores import available_cores
from sovit.errors import Draining, NotReady


@dataclass(frozen=True)
class Worker:
    """Models, warmed and taking work."""

    config: ServeConfig
    models: Models
    decoders: Decoders
    door: Door
    keys: KeyFile | None
    metrics: Metrics
    recent: Recent
    tracer: Tracer
    on_batch: OnBatch

    def load(self, name: str, reference: str) -> ServedModel:
        """Load another artifact under a name, as those of the start were."""
        return load_model(name, reference, self.config, self.on_batch)

    def close(self) -> None:
        """Finish what was accepted, then free the engines."""
        self.decoders.close()
        self.models.close()
        self.tracer.close()


def require_alive(worker: Worker | None) -> None:
    """Raise `NotReady` when a lane is dead or stuck. A worker that still loads its models is alive."""
    if worker is not None and not worker.models.alive:
        raise NotReady("a lane of the engine is dead or stuck.")


def require_ready(worker: Worker) -> None:
    """Raise `NotReady` unless every model takes requests."""
    if worker.door.draining:
        raise Draining("the service is shutting down.")
    if not worker.models.ready:
        raise NotReady("the service is not ready.")


def _is_no_clients_fault(record: logging.LogRecord) -> bool:
    """Anybody can send what is no HTTP, as often as they like: the log is not theirs to fill."""
    return record.msg not in ("Invalid HTTP request received.", "Unsupported upgrade request.")


def start_worker(config: ServeConfig) -> Worker:
    """Load every artifact into its lanes and warm it, one after another."""
    give_back_large_blocks()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # they quote what is in the images
    logging.getLogger("uvicorn.error").addFilter(_is_no_clients_fault)
    keys = KeyFile(Path(config.keys)) if config.keys else None
    tracer = open_tracer(config.trace_endpoint, config.trace_ratio)
    metrics, recent = Metrics(), Recent()

    def on_batch(model: str, images: int, seconds: float) -> None:
        metrics.on_batch(model, images, seconds)
        recent.on_batch(model, images)

    return Worker(
        config=config,
        models=Models([load_model(name, where, config, on_batch) for name, where in config.artifacts.items()]),
        decoders=Decoders(config.decode_threads or available_cores() + 1),
        door=Door(max_images=config.max_queue, max_bytes=config.max_queue_bytes),
        keys=keys,
        metrics=metrics,
        recent=recent,
        tracer=tracer,
        on_batch=on_batch,
    )
