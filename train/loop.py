"""A run from its first step, or from where it was stopped, to its checkpoint.

    sovit train digits --data digits --out runs/digits

leaves `checkpoint/`, `log.jsonl`, `run.json` and the last states in the folder. The same command again goes on after
the last state; killed at any moment, it ends at the same weights as a run that was never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from sovit.checkpoint import own_files, write_checkpoint
from sovit.cores import available_cores
from sovit.cost import TRAINING, cost
from sovit.errors import SoViTError
from sovit.folder import check_replaceable
from sovit.peaks import peak_flops
from sovit.spec import ModelSpec
from train.board import Board
from train.build import first_model, spec_of, teacher_of
from train.claim import Claim, locked
from train.config import TrainConfig
from train.data.dataset import Dataset
from train.evaluate import Evaluation
from train.judge import Judge
from train.loader import train_batches
from train.optim.build import build_optimizer
from train.optim.ema import Ema, averaged
from train.optim.groups import parameter_groups
from train.optim.mup import BaseShape, rate_factors
from train.parallel import prepared
from train.preflight import check_batch, check_data, unseen_pixels
from train.resume import branch_wanted, restored
from train.samples import Batch, TrainSamples, decoded
from train.schedule import Schedule
from train.signals import STOPPING, Interrupted, Stopped, noted_signals
from train.state import State, save, states
from train.step import Learner
from train.watch import Clock, Log, Screen
from train.world import World, joined


class TooManyBadImages(SoViTError):
    """More images than `most_bad_images` could not be used."""


@dataclass(frozen=True)
class TrainResult:
    """What a run gave. `seconds` is the loop alone, of all starts, without loading data and evaluating."""

    checkpoint: Path
    steps: int
    seconds: float
    final_loss: float
    evaluation: Evaluation


def train(
    config: TrainConfig,
    train_set: Dataset,
    test_set: Dataset,
    out: Path,
    *,
    console: Console,
    restart: bool = False,
    branch: Path | None = None,
) -> TrainResult:
    """Train on `train_set`, evaluate on `test_set` at the end, write `out/checkpoint`; or go on with what `out` holds.

    The test set takes no part in training or in choosing a checkpoint. `restart` forgets what `out` holds. `branch` is
    a state of another run to begin from, at its step, as for a cooldown: `steps` counts that run's too. Raises
    `ConfigError` before the first step where data, settings or folder do not fit; `TrainingDiverged` before an update
    with numbers that are not finite; `TooManyBadImages`; `StateNotSaved`; `Stopped` after SIGTERM or Ctrl-C.
    """
    torch.set_num_threads(config.threads or available_cores())
    check_replaceable(out / "checkpoint", "checkpoint", own_files)
    warnings = check_data(config, train_set, test_set)
    with joined(group=config.parallel == "fsdp") as world, noted_signals() as asked:
        check_batch(config, world)
        begins_at = branch_wanted(out, branch, config, train_set, restart=restart)
        quiet = console if world.is_main else Console(quiet=True)
        again = "the same command, without --restart," if restart else "the same command"
        run = _Run(config, train_set, test_set, out, world, quiet, asked, again)
        for warning in (*warnings, *unseen_pixels(run.spec)):
            quiet.print(f"warning: {warning}", highlight=False, markup=False)
        try:
            with locked(out, world):
                claim = Claim(out, config, train_set, test_set, branch)
                own = {} if restart else states(out / "state")
                world.on_main(lambda: claim.check(going_on=bool(own)))
                origin = restored(own, begins_at, run.state, run.steps, world, quiet)
                # After everything that can be refused: this deletes.
                world.on_main(lambda: claim.take(forget=restart, damaged=origin.damaged))
                if origin.done:
                    quiet.print(f"going on after step {origin.done:,}", highlight=False)
                return run.go(origin.done)
        finally:
            del run  # DDP's part of it has to go before the group of processes does


class _Run:
    """A run's parts, and the loop over its steps."""

    def __init__(
        self,
        config: TrainConfig,
        train_set: Dataset,
        test_set: Dataset,
        out: Path,
        world: World,
        console: Console,
        asked: list[int],
        again: str,
    ) -> None:
        self.config, self.test_set, self.out, self.world = config, test_set, out, world
        self.console, self.asked, self.again = console, asked, again
        self.spec: ModelSpec = spec_of(config, train_set.classes)
        self.images, self.data = len(train_set), train_set.name
        vit = first_model(config, self.spec).to(world.device).train()
        model = prepared(vit, config, world)
        groups = parameter_groups(
            model, weight_decay=config.weight_decay, layer_decay=config.layer_decay,
            head_decay_factor=config.head_decay_factor,
            rate_factor=rate_factors(self.spec.model, BaseShape(*config.mup_depth)) if config.mup_depth else None,
        )  # fmt: skip
        optimizer = build_optimizer(
            groups, name=config.optimizer, learning_rate=config.learning_rate, betas=config.betas,
            momentum=config.momentum,
        )  # fmt: skip
        self.learner = Learner(
            config, model, vit, teacher_of(config, self.spec, world.device), optimizer, self.spec.preprocess,
            len(train_set.classes), world,
        )  # fmt: skip
        self.ema = Ema(vit, decay=config.ema) if config.ema else None
        self.state = State(model, optimizer, self.ema)
        self.steps = config.length(len(train_set))
        self.schedule = Schedule(
            kind=config.schedule, steps=self.steps, warmup_steps=config.warmup(self.steps),
            cooldown_steps=config.cooldown_steps, timescale=config.timescale,
        )  # fmt: skip
        self.train_set = train_set
        self.bad: dict[int, str] = {}

    def go(self, done: int) -> TrainResult:
        """Every step after those that are done, and what follows the last."""
        log = None
        if self.world.is_main:
            board = Board(self.out / "tensorboard", done) if self.config.tensorboard else None
            log = Log(self.out / "log.jsonl", done, board)
        screen = Screen(self.console, self.steps, done)
        before = self.world.gathered(log.before if log is not None else None)[0]
        self.bad = {entry["index"]: entry["reason"] for entry in before if "left_out" in entry}
        last = next((entry for entry in reversed(before) if "loss" in entry), {"seconds": 0.0, "loss": math.nan})
        judge = Judge(
            self.config, self.spec, self.learner, self.ema, self.train_set, self.test_set, self.world, self.steps,
            log, screen, lambda: bool(self.asked),
        )  # fmt: skip
        try:
            if done < self.steps:
                last = self._loop(done, last, log, screen, judge)
            evaluation = judge.evaluate(self.steps)
            self._write(evaluation, last["seconds"])
            judge.probe(self.steps)
        except Interrupted:
            pass
        finally:
            screen.close()
            if log is not None:
                log.close()
        if stop := self._signal():
            raise self._stopped(self.steps, stop)
        return TrainResult(self.out / "checkpoint", self.steps, last["seconds"], last["loss"], evaluation)

    def _loop(self, done: int, last: dict[str, Any], log: Log | None, screen: Screen, judge: Judge) -> dict[str, Any]:
        """The steps that are left; returns what the log says of the last one. `last` is that of the last start."""
        config, samples = self.config, TrainSamples(self._known(done), self.spec.preprocess, self.config)
        judge.make_up_for(done)
        batches = train_batches(
            samples, start=done, batch_size=config.batch_size, workers=config.workers, world=self.world
        )
        with closing(batches):
            return self._steps(batches, done, last, log, screen, judge)

    def _steps(
        self, batches: Iterator[Batch], done: int, last: dict[str, Any], log: Log | None, screen: Screen, judge: Judge
    ) -> dict[str, Any]:
        config, world = self.config, self.world
        clock, entry = Clock(), last
        logged = done
        for step in range(done, self.steps):
            with clock.measuring("data"):
                batch = next(batches)
            rate = config.learning_rate * self.schedule(step)
            value, norm = self.learner.step(batch, step, rate, clock)
            if self.ema is not None:
                with clock.measuring("optimizer"):
                    self.ema.update(self.learner.vit, step)
            done = step + 1
            stop = self._agree(batch.bad, done, log, screen)
            if done % config.log_every == 0 or done == self.steps:
                seconds, parts = clock.look()
                loss = world.sums([value])[0] / world.size
                spent = round(entry["seconds"] + seconds, 2)
                entry = self._entry(done, loss, rate, norm, (done - logged) / seconds, parts) | {"seconds": spent}
                logged = done
                if log is not None:
                    log.write(entry)
                screen.moved(done, _note(entry, (self.steps - done) * config.batch_size))
            else:
                screen.moved(done, "")
            with clock.paused():
                if stop or done == self.steps or (config.save_every and done % config.save_every == 0):
                    save(self.out / "state", done, self.state, world, config.keep_states)
                if judge.is_due(done) and not stop:
                    judge.look(done)
                    if stop := self._signal():
                        save(self.out / "state", done, self.state, world, config.keep_states)
            if stop:
                raise self._stopped(done, stop)
        return entry

    def _known(self, done: int) -> Dataset:
        """The training images, decoded where the run keeps them so. Raises `Stopped` in all processes."""
        known = self.train_set
        if self.config.keep_decoded:
            with suppress(Interrupted):
                known = decoded(self.train_set, self.spec.preprocess, lambda: bool(self.asked))
        if stop := self._signal():
            raise self._stopped(done, stop)
        return known

    def _signal(self) -> int:
        """The number of a signal that any process was sent, or 0; the same in all."""
        return _first(self.world.sums(self._sent()))

    def _sent(self) -> list[float]:
        """Which of the signals this process was sent."""
        return [float(number in self.asked) for number in STOPPING]

    def _stopped(self, done: int, number: int) -> Stopped:
        return Stopped(f"stopped after step {done} of {self.steps}; {self.again} goes on from there.", number)

    def _agree(self, bad: dict[int, str], step: int, log: Log | None, screen: Screen) -> int:
        """Name images that could not be used in any process; returns the number of a signal, or 0."""
        mine = {index: reason for index, reason in bad.items() if index not in self.bad}
        *sent, fresh = self.world.sums([*self._sent(), float(len(mine))])
        if fresh:
            found = {index: reason for one in self.world.gathered(mine) for index, reason in one.items()}
            for index, reason in found.items():
                name = self.train_set.image_name(index)
                screen.tell(f"left out {name}: {reason}")
                if log is not None:
                    log.write({"step": step, "left_out": name, "index": index, "reason": reason})
            self.bad |= found
            self._check_left()
            if len(self.bad) > self.config.most_bad_images:
                raise TooManyBadImages(
                    f"{len(self.bad)} images could not be used by step {step}, and most_bad_images is "
                    f"{self.config.most_bad_images}: mend them, or raise it. The first is "
                    f"{self.train_set.image_name(next(iter(self.bad)))}."
                )
        return _first(sent)

    def _check_left(self) -> None:
        """Raises `TooManyBadImages` where no image of a class is left."""
        targets = self.train_set.targets
        for label in np.unique(targets[list(self.bad)]).tolist():
            of_class = np.flatnonzero(targets == label).tolist()
            if self.bad.keys() >= set(of_class):
                raise TooManyBadImages(
                    f"no image of class {self.train_set.classes[label]} could be used; the first is "
                    f"{self.train_set.image_name(of_class[0])}: {self.bad[of_class[0]]}"
                )

    def _entry(
        self, step: int, loss: float, rate: float, norm: float, steps_per_second: float, parts: dict[Any, float]
    ) -> dict[str, Any]:
        speed = steps_per_second * self.config.batch_size
        entry: dict[str, Any] = {
            "step": step, "loss": loss, "learning_rate": rate, "gradient_norm": norm, "images_per_second": speed,
            **{part: round(fraction, 4) for part, fraction in parts.items()},
        }  # fmt: skip
        if self.world.device.type == "cuda":
            peak = peak_flops(torch.cuda.get_device_name(), self.config.precision)
            if peak:
                flops = TRAINING * cost(self.spec.model).flops * speed / self.world.size
                entry["mfu"] = round(flops / peak, 4)
        return entry

    def _write(self, evaluation: Evaluation, seconds: float) -> None:
        """The checkpoint."""
        with averaged(self.ema, self.learner.vit):
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            tensors = get_model_state_dict(self.learner.model, options=options)
            kept = {
                name: tensor.detach().clone().contiguous()
                for name, tensor in tensors.items()
                if isinstance(tensor, torch.Tensor)
            }
        if self.world.is_main:
            provenance = {
                "trained_on": self.data,
                "images": self.images,
                "config": asdict(self.config),
                "steps": self.steps,
                "seconds": round(seconds, 2),
                "test_top1": evaluation.top1,
                "torch": torch.__version__,
            }
            with write_checkpoint(self.out / "checkpoint", kept, self.spec, provenance):
                pass
        self.world.barrier()


def _first(sent: list[float]) -> int:
    """The first of the signals that was sent to anybody, or 0."""
    return next((number for number, count in zip(STOPPING, sent, strict=True) if count), 0)


def _note(entry: dict[str, Any], images_left: int) -> str:
    mfu = f"  MFU {entry['mfu']:.1%}" if "mfu" in entry else ""
    waited = f"  data wait {entry.get('data', 0):.1%}"
    seconds = round(images_left / entry["images_per_second"])
    left = f"{seconds // 3600:,}:{seconds // 60 % 60:02}:{seconds % 60:02} left"
    return f"loss {entry['loss']:.4f}  {entry['images_per_second']:,.0f} images/s{waited}{mfu}  {left}"
