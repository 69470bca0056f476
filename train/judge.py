"""A run's evaluations, on the way and at its end, and where their results go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sovit.spec import ModelSpec
from train.config import TrainConfig
from train.data.dataset import Dataset
from train.evaluate import Evaluation
from train.optim.ema import Ema, averaged
from train.passes import Passes
from train.signals import Interrupted
from train.step import Learner
from train.validate import probed, validate
from train.watch import Log, Screen
from train.world import World


@dataclass(frozen=True)
class Judge:
    """Evaluates what a run has learnt. `log` is the first process's, `stop` says whether a signal came to this one."""

    config: TrainConfig
    spec: ModelSpec
    learner: Learner
    ema: Ema | None
    train_set: Dataset
    test_set: Dataset
    world: World
    steps: int
    log: Log | None
    screen: Screen
    stop: Callable[[], bool]

    def is_due(self, done: int) -> bool:
        """Whether there is an evaluation on the way after so many steps."""
        return bool(self.config.eval_every) and done % self.config.eval_every == 0 and 0 < done < self.steps

    def make_up_for(self, done: int) -> None:
        """What a kill or a signal kept from being evaluated after so many steps."""
        missing = self.log is not None and any(self.log.lacks(done, kind) for kind in ("test", *self.config.probes))
        if self.is_due(done) and self.world.sums([float(missing)])[0]:
            self.look(done)

    def look(self, step: int) -> None:
        """Evaluate on the way; a signal breaks it off, and the next start makes up for it."""
        try:
            self.evaluate(step)
            self.probe(step)
        except Interrupted:
            self.screen.tell(f"step {step}: the evaluation was broken off")

    def evaluate(self, step: int) -> Evaluation:
        """Top-1 and top-5 on the test set. Raises `Interrupted`."""
        with self._passes(step) as passes:
            found = validate(passes, self.spec.labels, self.test_set)
        if self.log is not None and self.log.lacks(step, "test"):
            self.log.write({"step": step, "data": found.data, "top1": found.top1, "top5": found.top5})
            for name, reason in found.failed:
                self.screen.tell(f"not evaluated: {name}: {reason}")
        self.screen.tell(f"step {step}: top-1 {found.top1:.2%}, top-5 {found.top5:.2%} of {found.images} images")
        return found

    def probe(self, step: int) -> None:
        """The probes that the run asks for. Raises `Interrupted`."""
        for kind in self.config.probes:
            with self._passes(step) as passes:
                found = probed(passes, kind, self.train_set, self.test_set)
            if self.log is not None and self.log.lacks(step, kind):
                self.log.write({"step": step, "data": found.data, "probe": kind, **found.scores})
            scores = ", ".join(f"{name} {score:.2%}" for name, score in found.scores.items())
            self.screen.tell(f"step {step}: {kind} probe: {scores}")

    @contextmanager
    def _passes(self, step: int) -> Iterator[Passes]:
        """Exact at the end of the run."""
        with averaged(self.ema, self.learner.vit):
            yield Passes(
                self.learner.model, self.config, self.spec.preprocess, self.world, exact=step == self.steps,
                stop=self.stop,
            )  # fmt: skip
