"""Forward passes over a data set with the model that is being trained, spread over the processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sovit.model import ViTOutput
from sovit.preprocess import Preprocess
from train.config import TrainConfig
from train.data.dataset import Dataset
from train.loader import test_batches
from train.samples import TestSamples
from train.signals import Interrupted
from train.step import autocast, normalised
from train.world import World


@dataclass(frozen=True)
class Passes:
    """How to pass: in the run's precision, or `exact`ly in float32. `stop` is asked before every batch."""

    model: nn.Module
    config: TrainConfig
    preprocess: Preprocess
    world: World
    exact: bool = False
    stop: Callable[[], bool] = lambda: False

    @torch.no_grad()
    def rows(
        self, dataset: Dataset, take: Callable[[ViTOutput], Tensor], indices: Sequence[int] | None = None
    ) -> tuple[dict[int, NDArray[np.generic]], dict[int, str]]:
        """What `take` makes of each image, by index, and the reasons of those that could not be used.

        The same in every process. Raises `Interrupted` in all of them.
        """
        wanted = range(len(dataset)) if indices is None else indices
        if not len(wanted):
            return {}, {}
        at_once = max(1, self.config.batch_size // (self.world.size * self.config.accumulate))
        batches = test_batches(
            TestSamples(dataset, self.preprocess), indices=wanted, batch_size=at_once, workers=self.config.workers,
            world=self.world,
        )  # fmt: skip
        training = self.model.training
        self.model.eval()
        parts: list[Tensor] = []
        bad: dict[int, str] = {}
        try:
            with closing(batches):
                for batch in batches:
                    if self.world.sums([float(self.stop())])[0]:
                        raise Interrupted
                    with nullcontext() if self.exact else autocast(self.config, self.world):
                        output = self.model(normalised(batch.image_BYXC.to(self.world.device), self.preprocess))
                    parts.append(take(output).cpu())
                    bad |= batch.bad
        finally:
            self.model.train(training)
        found = np.concatenate(self.world.gathered(torch.cat(parts).numpy()))[: len(wanted)]
        failed = {index: reason for one in self.world.gathered(bad) for index, reason in one.items()}
        return {index: row for index, row in zip(wanted, found, strict=True) if index not in failed}, failed
