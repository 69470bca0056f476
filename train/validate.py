"""Accuracy of the model that is being trained: a whole data set in batches, spread over the processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from torch import nn

from sovit.preprocess import Preprocess
from train.config import TrainConfig
from train.data.dataset import Dataset
from train.evaluate import TOP_K, Evaluation, evaluation_of, match_labels
from train.loader import test_batches
from train.samples import TestSamples
from train.step import autocast, normalised
from train.world import World


@torch.no_grad()
def validate(
    model: nn.Module,
    config: TrainConfig,
    preprocess: Preprocess,
    labels: tuple[str, ...],
    dataset: Dataset,
    world: World,
    *,
    exact: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Top-1 and top-5 of `dataset`, in the run's precision or `exact`ly in float32; the same in every process.

    None where `stop` said so on the way, in all processes. Images that cannot be used are named and not counted.
    """
    began = _now(world)
    batches = test_batches(
        TestSamples(dataset, preprocess),
        size=len(dataset), batch_size=max(1, config.batch_size // world.size), workers=config.workers, world=world,
    )  # fmt: skip
    was_training = model.training
    model.eval()
    best: list[torch.Tensor] = []
    bad: dict[int, str] = {}
    stopped = False
    for batch in batches:
        if stopped := bool(world.sums([float(stop())])[0]):
            break
        with nullcontext() if exact else autocast(config, world):
            logits_BL = model(normalised(batch.image_BYXC.to(world.device), preprocess)).logits
        best.append(logits_BL.float().topk(min(TOP_K, logits_BL.shape[1]), dim=1).indices.cpu())
        bad |= batch.bad
    model.train(was_training)
    if stopped:
        return None
    best_NK = np.concatenate(world.gathered(torch.cat(best).numpy()))[: len(dataset)]
    failed = {index: reason for one in world.gathered(bad) for index, reason in one.items()}
    wanted = match_labels(dataset.classes, labels, dataset.name)
    ranked = {
        index: [labels[label] for label in row] for index, row in enumerate(best_NK.tolist()) if index not in failed
    }
    return evaluation_of(dataset, wanted, ranked, failed, _now(world) - began)


def _now(world: World) -> float:
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
