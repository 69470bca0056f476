"""How good the model is that is being trained: its own classes, and probes of its embeddings."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from sovit.model import ViTOutput
from train.data.dataset import Dataset
from train.evaluate import TOP_K, Evaluation, evaluation_of, match_labels
from train.passes import Passes
from train.probing import Probe, ProbeResult, Rows, run_probe
from train.world import World


def validate(passes: Passes, labels: tuple[str, ...], dataset: Dataset) -> Evaluation:
    """Top-1 and top-5. Images that cannot be used are named and not counted."""

    def best(output: ViTOutput) -> Tensor:
        assert output.logits is not None
        return output.logits.topk(min(TOP_K, len(labels)), dim=1).indices

    began = _now(passes.world)
    rows, failed = passes.rows(dataset, best)
    wanted = match_labels(dataset.classes, labels, dataset.name)
    ranked = {index: [labels[label] for label in row.tolist()] for index, row in rows.items()}
    return evaluation_of(dataset, wanted, ranked, failed, _now(passes.world) - began)


def probed(passes: Passes, kind: Probe, train_set: Dataset, test_set: Dataset) -> ProbeResult:
    """A probe of the embeddings."""

    def rows(what: str, dataset: Dataset, indices: list[int] | None = None) -> Rows:
        return passes.rows(dataset, lambda output: output.pre_logits.float(), indices)  # type: ignore[return-value]

    return run_probe(kind, rows, train_set, test_set)


def _now(world: World) -> float:
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
