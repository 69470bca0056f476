"""One step: a batch forward and backward, in parts where asked, a check of the numbers, and the update."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sovit.errors import SoViTError
from sovit.model import ViT
from sovit.preprocess import Preprocess
from train.augment.affine import random_affine
from train.augment.mix import Mix, mixed
from train.config import TrainConfig
from train.objective import distillation_loss, loss, one_hot
from train.optim.build import set_learning_rate
from train.parallel import accumulating
from train.randomness import generator, key
from train.samples import Batch
from train.watch import Clock
from train.world import World


class TrainingDiverged(SoViTError):
    """The loss or the gradient is no longer a finite number."""


@dataclass(frozen=True)
class Learner:
    """A model with all that a step of it needs. `model` is `vit`, wrapped for several processes where there are any."""

    config: TrainConfig
    model: nn.Module
    vit: ViT
    teacher: ViT | None
    optimizer: torch.optim.Optimizer
    preprocess: Preprocess
    classes: int
    world: World

    def step(self, batch: Batch, step: int, rate: float, clock: Clock) -> tuple[float, float]:
        """One update at the learning rate `rate`; returns this process's mean loss and the norm of the gradient.

        Raises `TrainingDiverged` before the update where one of them is not finite in any process.
        """
        config, parts = self.config, self.config.accumulate
        set_learning_rate(self.optimizer, rate)
        torch.manual_seed(key(config.seed, "step", step, self.world.rank) >> 1)
        first = self.world.rank * (config.batch_size // self.world.size)
        total = torch.zeros((), device=self.world.device)
        with clock.measuring("forward_backward"):
            images = batch.image_BYXC.to(self.world.device, non_blocking=True).chunk(parts)
            targets = batch.target_B.to(self.world.device, non_blocking=True).chunk(parts)
            for part, (image_BYXC, target_B) in enumerate(zip(images, targets, strict=True)):
                with accumulating(self.model, last=part == parts - 1):
                    value = self._loss(image_BYXC, target_B, step, first) / parts
                    value.backward()  # type: ignore[no-untyped-call]
                total += value.detach()
                first += len(target_B)
            mean = float(total)
        with clock.measuring("optimizer"):
            gradients = [one.grad for one in self.model.parameters() if one.grad is not None]
            norm_tensor = torch.nn.utils.get_total_norm(gradients)
            norm = float(norm_tensor.full_tensor() if isinstance(norm_tensor, DTensor) else norm_tensor)
        if self.world.sums([float(not np.isfinite([mean, norm]).all())])[0]:
            raise TrainingDiverged(
                f"the loss is {mean} and the gradient's norm {norm} at step {step + 1}{self._where(batch)}; "
                "try a lower learning_rate or a longer warm-up."
            )
        with clock.measuring("optimizer"):
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), config.clip_norm, norm_tensor)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return mean, norm

    def _loss(self, image_BYXC: Tensor, target_B: Tensor, step: int, first: int) -> Tensor:
        config = self.config
        image_BCYX = normalised(image_BYXC, self.preprocess)
        if config.rotate_degrees or config.shift_fraction or config.scale_fraction:
            image_BCYX = random_affine(
                image_BCYX, degrees=config.rotate_degrees, shift=config.shift_fraction, scale=config.scale_fraction,
                seed=config.seed, step=step, first=first,
            )  # fmt: skip
        mix = Mix(mixup=config.mixup, cutmix=config.cutmix, erase=config.erase)
        target_BL = one_hot(target_B, self.classes)
        image_BCYX, target_BL = mixed(image_BCYX, target_BL, mix, seed=config.seed, step=step, first=first)
        with autocast(config, self.world), attention(config, self.world):
            logits_BL = self.model(image_BCYX, self._keep(len(target_B), step, first)).logits
        hard = loss(logits_BL, target_BL, objective=config.objective, label_smoothing=config.label_smoothing)
        if self.teacher is None:
            return hard
        with torch.no_grad(), autocast(config, self.world):
            teacher_BL = self.teacher(image_BCYX).logits
        assert teacher_BL is not None
        soft = distillation_loss(
            logits_BL, teacher_BL, objective=config.objective, temperature=config.distill_temperature
        )
        return (1 - config.distill_weight) * hard + config.distill_weight * soft

    def _keep(self, count: int, step: int, first: int) -> Tensor | None:
        """Factors [E, 2, B] of the residual branches: deeper blocks are dropped more often, up to the given rate."""
        if not self.config.stochastic_depth:
            return None
        rate_E = np.linspace(0, self.config.stochastic_depth, self.vit.config.depth, dtype=np.float32)[:, None]
        drawn_BE2 = generator(self.config.seed, "drop", step).random((first + count, len(rate_E), 2), np.float32)
        keep_BE2 = (drawn_BE2[first:] >= rate_E) / (1 - rate_E)
        return torch.from_numpy(keep_BE2).permute(1, 2, 0).to(self.world.device)

    @torch.no_grad()
    def _where(self, batch: Batch) -> str:
        """The first weight or module of the model that has or gives a number that is not finite, in words."""
        if self.config.parallel == "fsdp":
            return ""
        for name, parameter in self.vit.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                return f" (weights of {name})"
        gradients = [
            name
            for name, parameter in self.vit.named_parameters()
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
        ]
        found: list[str] = []
        hooks = [
            module.register_forward_hook(_first_not_finite(name, found))
            for name, module in self.vit.named_modules()
            if name and not list(module.children())
        ]
        # Hooks have no place in a compiled block.
        with torch.compiler.set_stance("force_eager"), autocast(self.config, self.world):
            self.vit(normalised(batch.image_BYXC.to(self.world.device), self.preprocess))
        for hook in hooks:
            hook.remove()
        if found:
            return f" (output of {found[0]})"
        # Backward begins at the end of the model, so that is where it went wrong first.
        return f" (gradient of {gradients[-1]})" if gradients else ""


def _first_not_finite(name: str, found: list[str]) -> Any:
    def look(module: nn.Module, inputs: object, output: Tensor) -> None:
        if not found and not bool(torch.isfinite(output).all()):
            found.append(name)

    return look


def normalised(image_BYXC: Tensor, preprocess: Preprocess) -> Tensor:
    """uint8 [B, Y, X, C] to normalised float32 [B, C, Y, X]."""
    mean = torch.tensor(preprocess.mean, device=image_BYXC.device)
    std = torch.tensor(preprocess.std, device=image_BYXC.device)
    return ((image_BYXC.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def autocast(config: TrainConfig, world: World) -> AbstractContextManager[Any]:
    """Matrix products in bfloat16 where the run asks for it."""
    return torch.autocast(world.device.type, torch.bfloat16, enabled=config.precision == "bf16")


def attention(config: TrainConfig, world: World) -> AbstractContextManager[Any]:
    """PyTorch's choice of a kernel, but for two whose backward cannot be used.

    cuDNN's is reported to give NaN in some cases on Hopper GPUs (pytorch/pytorch#196678 with a mask,
    NVIDIA/cudnn-frontend#1072 for a single query), and costs nothing to avoid; the fused one for bfloat16 on a CPU
    takes five times as long as plain products.
    """
    if world.device.type == "cuda":
        return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
    return sdpa_kernel(SDPBackend.MATH) if config.precision == "bf16" else nullcontext()
