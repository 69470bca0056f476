"""What a started worker holds: the models, and everything a request is measured against."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from serving.config import ServeConfig
from serving.entry.decode_memory import DecodeMemory
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
from serving.wire.protocol import connection_tables
from sovit.cores import available_cores
from sovit.errors import Draining, NotReady
from sovit.machine import total_memory

logger = logging.getLogger(__name__)

_LEAST_DECODE_MEMORY: Final = 128 << 20  # a photograph of ten megapixels


@dataclass(frozen=True)
class Worker:
    """Models, warmed and taking work."""

    config: ServeConfig
    models: Models
    decoders: Decoders
    decode_memory: DecodeMemory
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


def start_worker(config: ServeConfig) -> Worker:
    """Load every artifact into its lanes and warm it, one after another."""
    give_back_large_blocks()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # they quote what is in the images
    keys = KeyFile(Path(config.keys)) if config.keys else None
    decode_memory = DecodeMemory(config.decode_memory or max(_LEAST_DECODE_MEMORY, total_memory() // 4))
    logger.info(
        "decode memory: %d MiB in all, %d MiB for one request (decode_memory)",
        decode_memory.limit >> 20,
        decode_memory.largest >> 20,
    )
    tracer = open_tracer(config.trace_endpoint, config.trace_ratio)
    metrics, recent = Metrics(connection_tables()), Recent()
    metrics.decode_bytes_limit.set(decode_memory.limit)

    def on_batch(model: str, images: int, seconds: float) -> None:
        metrics.on_batch(model, images, seconds)
        recent.on_batch(model, images)

    return Worker(
        config=config,
        models=Models([load_model(name, where, config, on_batch) for name, where in config.artifacts.items()]),
        decoders=Decoders(config.decode_threads or available_cores() + 1),
        decode_memory=decode_memory,
        door=Door(max_images=config.max_queue, max_bytes=config.max_queue_bytes),
        keys=keys,
        metrics=metrics,
        recent=recent,
        tracer=tracer,
        on_batch=on_batch,
    )
