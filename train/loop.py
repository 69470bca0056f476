"""A run from its first step, or from where it was stopped, to its checkpoint.

    sovit train digits --data digits --out runs/digits

leaves `checkpoint/`, `log.jsonl`, `run.json` and the last states in the folder. The same command again goes on after
the last state; killed at any moment, it ends at the same weights as a run that was never stopped.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from sovit.checkpoint import own_files, write_checkpoint
from sovit.cores import available_cores
from sovit.cost import cost
from sovit.errors import ConfigError, SoViTError
from sovit.folder import check_replaceable
from sovit.peaks import peak_flops
from sovit.spec import ModelSpec
from train.board import Board
from train.build import first_model, spec_of, teacher_of
from train.claim import claim
from train.config import TrainConfig
from train.data.checks import check_splits
from train.data.dataset import Dataset
from train.evaluate import Evaluation
from train.loader import train_batches
from train.optim.build import build_optimizer
from train.optim.ema import Ema
from train.optim.groups import parameter_groups
from train.parallel import prepared
from train.passes import Interrupted, Passes
from train.samples import TrainSamples, decoded
from train.schedule import Schedule
from train.signals import STOPPING, noted_signals
from train.state import State, restore, save, states, step_of
from train.step import Learner
from train.validate import probed, validate
from train.watch import Clock, Log, Screen
from train.world import World, joined

_TRAIN_FORWARDS: Final = 3  # a backward pass costs two forward passes


class TooManyBadImages(SoViTError):
    """More images than `most_bad_images` could not be used."""


class Stopped(SoViTError):
    """A signal ended the run after its state was saved. `signal` is its number."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number
        self.exit_code = 0 if number == signal.SIGTERM else 128 + number


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
    if len(train_set) < config.batch_size:
        raise ConfigError(f"{train_set.name} has {len(train_set)} images, less than one batch of {config.batch_size}.")
    warnings = check_splits(train_set, test_set)
    with joined(group=config.parallel == "fsdp") as world, noted_signals() as asked:
        _check_batch(config, world)
        if branch is not None:
            step_of(branch)
        if branch is not None and restart and branch.resolve().is_relative_to(out.resolve()):
            raise ConfigError(f"{branch} is in the folder that --restart forgets: choose another --out.")
        quiet = console if world.is_main else Console(quiet=True)
        for warning in warnings:
            quiet.print(f"warning: {warning}", highlight=False, markup=False)
        again = "the same command, without --restart," if restart else "the same command"
        begun = _Run(config, train_set, test_set, out, world, quiet, asked, again)
        # After everything that can be refused: with restart it deletes.
        if world.is_main:
            claim(out, config, train_set, branch, restart=restart)
        world.barrier()
        return begun.go(branch)


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

    def go(self, branch: Path | None) -> TrainResult:
        """Every step that is left, and what follows the last."""
        done = 0
        found = list(states(self.out / "state").values())[-1:] or ([branch] if branch else [])
        if found:
            done = step_of(found[0])
            if done > self.steps:
                raise ConfigError(f"{found[0]} is beyond the {self.steps} steps of this run: raise steps.")
            restore(found[0], self.state, self.world)
            self.console.print(f"going on after step {done:,}", highlight=False)
        log = None
        if self.world.is_main:
            board = Board(self.out / "tensorboard", done) if self.config.tensorboard else None
            log = Log(self.out / "log.jsonl", done, board)
        screen = Screen(self.console, self.steps, done)
        before = self.world.gathered(log.before if log is not None else None)[0]
        self.bad = {entry["index"]: entry["reason"] for entry in before if "left_out" in entry}
        last = next((entry for entry in reversed(before) if "loss" in entry), {"seconds": 0.0, "loss": math.nan})
        try:
            if done < self.steps:
                last = self._loop(done, last, log, screen)
            evaluation = self._evaluate(self.steps, log, screen)
            self._write(evaluation, last["seconds"])
            self._probe(self.steps, log, screen)
        except Interrupted:
            pass
        finally:
            screen.close()
            if log is not None:
                log.close()
        if stop := self._signal():
            raise self._stopped(self.steps, stop)
        return TrainResult(self.out / "checkpoint", self.steps, last["seconds"], last["loss"], evaluation)

    def _loop(self, done: int, last: dict[str, Any], log: Log | None, screen: Screen) -> dict[str, Any]:
        """The steps that are left; returns what the log says of the last one. `last` is that of the last start."""
        config, world = self.config, self.world
        known = decoded(self.train_set, self.spec.preprocess) if config.keep_decoded else self.train_set
        samples = TrainSamples(known, self.spec.preprocess, config)
        batches = train_batches(samples, start=done, batch_size=config.batch_size, workers=config.workers, world=world)
        missing = log is not None and any(log.lacks(done, kind) for kind in ("test", *config.probes))
        if self._due(done) and world.sums([float(missing)])[0]:
            self._look(done, log, screen)  # what a kill or a signal kept from being done
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
                if self._due(done) and not stop:
                    self._look(done, log, screen)
                    if stop := self._signal():
                        save(self.out / "state", done, self.state, world, config.keep_states)
            if stop:
                raise self._stopped(done, stop)
        return entry

    def _due(self, done: int) -> bool:
        """Whether there is an evaluation on the way after so many steps."""
        return bool(self.config.eval_every) and done % self.config.eval_every == 0 and 0 < done < self.steps

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
            if len(self.bad) > self.config.most_bad_images:
                raise TooManyBadImages(
                    f"{len(self.bad)} images could not be used by step {step}, and most_bad_images is "
                    f"{self.config.most_bad_images}: mend them, or raise it. The first is "
                    f"{self.train_set.image_name(next(iter(self.bad)))}."
                )
        return _first(sent)

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
                flops = _TRAIN_FORWARDS * cost(self.spec.model).flops * speed / self.world.size
                entry["mfu"] = round(flops / peak, 4)
        return entry

    def _look(self, step: int, log: Log | None, screen: Screen) -> None:
        """Evaluate on the way; a signal breaks it off, and the next start makes up for it."""
        try:
            self._evaluate(step, log, screen)
            self._probe(step, log, screen)
        except Interrupted:
            screen.tell(f"step {step}: the evaluation was broken off")

    def _evaluate(self, step: int, log: Log | None, screen: Screen) -> Evaluation:
        with self._passes(step) as passes:
            found = validate(passes, self.spec.labels, self.test_set)
        if log is not None and log.lacks(step, "test"):
            log.write({"step": step, "data": found.data, "top1": found.top1, "top5": found.top5})
            for name, reason in found.failed:
                screen.tell(f"not evaluated: {name}: {reason}")
        screen.tell(f"step {step}: top-1 {found.top1:.2%}, top-5 {found.top5:.2%} of {found.images} images")
        return found

    def _probe(self, step: int, log: Log | None, screen: Screen) -> None:
        for kind in self.config.probes:
            with self._passes(step) as passes:
                found = probed(passes, kind, self.train_set, self.test_set)
            if log is not None and log.lacks(step, kind):
                log.write({"step": step, "data": found.data, "probe": kind, **found.scores})
            scores = ", ".join(f"{name} {score:.2%}" for name, score in found.scores.items())
            screen.tell(f"step {step}: {kind} probe: {scores}")

    def _averaged(self) -> AbstractContextManager[None]:
        """With the averaged weights where there are some."""
        return nullcontext() if self.ema is None else self.ema.applied(self.learner.vit)

    @contextmanager
    def _passes(self, step: int) -> Iterator[Passes]:
        """Exact at the end of the run."""
        with self._averaged():
            yield Passes(
                self.learner.model, self.config, self.spec.preprocess, self.world, exact=step == self.steps,
                stop=lambda: bool(self.asked),
            )  # fmt: skip

    def _write(self, evaluation: Evaluation, seconds: float) -> None:
        """The checkpoint."""
        with self._averaged():
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


def _check_batch(config: TrainConfig, world: World) -> None:
    pieces = world.size * config.accumulate * (2 if config.mixup or config.cutmix else 1)
    if config.batch_size % pieces:
        raise ConfigError(
            f"batch_size is {config.batch_size}, it must be a multiple of {pieces}: processes x accumulate"
            f"{' x 2, as images are mixed in pairs' if config.mixup or config.cutmix else ''}."
        )
