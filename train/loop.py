"""The training loop: data in memory, one process, AdamW, a checkpoint at the end.

    sovit train digits --data digits --out runs/digits

leaves `checkpoint/` and `log.jsonl` in the folder.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from sovit.checkpoint import save_checkpoint
from sovit.config import ViTConfig
from sovit.cores import available_cores
from sovit.errors import ConfigError, SoViTError
from sovit.jsonio import from_dict
from sovit.model import ViT
from sovit.predict import Predictor
from sovit.preprocess import Preprocess
from sovit.runtime.pytorch import TorchRuntime
from sovit.spec import ModelSpec
from train.augment.affine import random_affine
from train.data.dataset import Dataset
from train.evaluate import Evaluation, evaluate_classifier
from train.optim.adamw import adamw
from train.recipes import TrainConfig
from train.schedule import warmup_cosine

LOG_EVERY = 50


class TrainingDiverged(SoViTError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class TrainResult:
    """What a run gave. `seconds` is the loop alone, without loading data and evaluating."""

    checkpoint: Path
    seconds: float
    final_loss: float
    evaluation: Evaluation


def train(config: TrainConfig, train_set: Dataset, test_set: Dataset, out: Path, *, console: Console) -> TrainResult:
    """Train on `train_set`, evaluate once on `test_set` at the end, write `out/checkpoint`.

    The test set takes no part in training or in choosing a checkpoint. Raises `TrainingDiverged` before an update
    with a loss that is not finite.
    """
    if len(train_set) < config.batch_size:
        raise ConfigError(f"{train_set.name} has {len(train_set)} images, less than one batch of {config.batch_size}.")
    torch.set_num_threads(config.threads or available_cores())
    torch.manual_seed(config.seed)
    spec = _spec(config, train_set.classes)
    model = ViT(spec.model).train()
    image_NCYX, target_N = _tensors(train_set, spec.preprocess)
    optimizer = adamw(model, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    generator = torch.Generator().manual_seed(config.seed)
    out.mkdir(parents=True, exist_ok=True)

    started = time.perf_counter()
    loss = math.nan
    with _progress(console) as progress, (out / "log.jsonl").open("w", encoding="utf-8") as log:
        task = progress.add_task("training", total=config.steps, note="")
        order = torch.empty(0, dtype=torch.long)
        for step in range(config.steps):
            if len(order) < config.batch_size:
                order = torch.randperm(len(target_N), generator=generator)
            chosen, order = order[: config.batch_size], order[config.batch_size :]
            rate = config.learning_rate * warmup_cosine(step, steps=config.steps, warmup_steps=config.warmup_steps)
            image_BCYX = random_affine(
                image_NCYX[chosen],
                degrees=config.rotate_degrees,
                shift=config.shift_fraction,
                scale=config.scale_fraction,
                generator=generator,
            )
            loss = _step(model, optimizer, image_BCYX, target_N[chosen], rate, config, step)
            done = step + 1
            if done % LOG_EVERY == 0 or done == config.steps:
                speed = done * config.batch_size / (time.perf_counter() - started)
                note = f"loss {loss:.4f}  {speed:,.0f} images/s"
                entry = {"step": done, "loss": loss, "learning_rate": rate, "images_per_second": speed}
                log.write(json.dumps(entry) + "\n")
                progress.update(task, note=note)
                if not console.is_terminal:
                    console.print(f"step {done}/{config.steps}  {note}")
            progress.update(task, completed=done)
    seconds = time.perf_counter() - started

    model.eval()
    predictor = Predictor(TorchRuntime(model, spec.preprocess), spec)
    evaluation = evaluate_classifier(predictor.classify, spec.labels, test_set)
    provenance = {
        "trained_on": train_set.name,
        "images": len(train_set),
        "config": asdict(config),
        "seconds": round(seconds, 2),
        "test_top1": evaluation.top1,
        "torch": torch.__version__,
    }
    save_checkpoint(out / "checkpoint", model, spec, provenance)
    return TrainResult(out / "checkpoint", seconds, loss, evaluation)


def _spec(config: TrainConfig, classes: tuple[str, ...]) -> ModelSpec:
    shared = {name: getattr(config, name) for name in ("width", "depth", "mlp_dim", "num_heads", "patch_size", "pool")}
    model = from_dict(
        ViTConfig, {**shared, "image_size": config.image_size, "num_classes": len(classes)}, "the recipe's model"
    )
    return ModelSpec(model=model, preprocess=Preprocess(image_size=config.image_size), labels=classes)


def _tensors(dataset: Dataset, preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """All images preprocessed and normalised, float32 [N, C, Y, X], and their targets [N]."""
    image_NYXC = torch.from_numpy(np.stack([preprocess(image) for image in dataset.images]))
    mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
    image_NCYX = ((image_NYXC.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
    return image_NCYX, torch.from_numpy(dataset.targets)


def _step(
    model: ViT,
    optimizer: torch.optim.Optimizer,
    image_BCYX: Tensor,
    target_B: Tensor,
    rate: float,
    config: TrainConfig,
    step: int,
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate
    logits_BL = model(image_BCYX).logits
    loss = F.cross_entropy(logits_BL, target_B, label_smoothing=config.label_smoothing)
    if not bool(torch.isfinite(loss)):
        raise TrainingDiverged(f"the loss is {loss.item()} at step {step}; try a lower learning_rate.")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    return loss.item()


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
