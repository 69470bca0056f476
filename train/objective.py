"""What training minimises: pure functions of logits and targets.

Targets are soft, [B, L], as mixing images and label smoothing make them. All is computed in float32 at least, whatever
comes in from autocast, and stays finite for logits of 1e4 and more.
"""

from __future__ import annotations

from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sovit.errors import ConfigError

Objective = Literal["softmax", "sigmoid"]

# Biases of a head with zero weights under the sigmoid objective, so that at first every class is held unlikely and the
# many absent classes give no large gradient.
PRETRAINING_HEAD_BIAS: Final = -10.0  # big_vision's ViT-g, about 30 000 classes
FINE_TUNING_HEAD_BIAS: Final = -6.9  # log(1/1000), for ImageNet ("Getting ViT in Shape", table 8)


def one_hot(target_B: Tensor, classes: int) -> Tensor:
    """Class indices as float32 targets [B, L]. Raises PyTorch's error for an index that is no class."""
    return F.one_hot(target_B.long(), classes).float()


def loss(logits_BL: Tensor, target_BL: Tensor, *, objective: Objective, label_smoothing: float = 0.0) -> Tensor:
    """The mean over the batch of each image's cross-entropy, a scalar.

    `softmax` takes the classes as exclusive. `sigmoid` takes each as a question of its own and sums over them, so its
    value grows with their number (big_vision's `sigmoid_xent`; Beyer et al. 2020).

    Label smoothing s turns a target t into t * (1 - s) + s / L under both: on is 1 - s + s / L and off is s / L, as in
    timm's `BinaryCrossEntropy`. Raises `ConfigError` for targets of another shape, or a smoothing out of range.
    """
    if not 0 <= label_smoothing < 1:
        raise ConfigError(f"label_smoothing is {label_smoothing}, it must be at least 0 and below 1.")
    if target_BL.shape != logits_BL.shape:
        shapes = f"targets are {list(target_BL.shape)} and logits {list(logits_BL.shape)}"
        raise ConfigError(f"{shapes}: both must be [B, L]; one_hot makes targets of class indices.")
    logits_BL = _wide(logits_BL)
    target_BL = target_BL.to(logits_BL.dtype)
    smooth_BL = target_BL * (1 - label_smoothing) + label_smoothing / logits_BL.shape[1]
    if objective == "softmax":
        return F.cross_entropy(logits_BL, smooth_BL)
    return F.binary_cross_entropy_with_logits(logits_BL, smooth_BL, reduction="sum") / len(logits_BL)


def distillation_loss(
    student_BL: Tensor, teacher_BL: Tensor, *, objective: Objective, temperature: float = 1.0
) -> Tensor:
    """temperature^2 * KL(teacher || student) of logits over temperature, the mean over the batch, a scalar.

    Under `sigmoid` it is the sum over classes of the KL of each class's yes and no. The square keeps gradients alike
    over temperatures (Hinton et al. 2015). No gradient reaches the teacher. The caller weighs it against the loss on
    the targets: `(1 - weight) * loss(...) + weight * distillation_loss(...)`. Raises `ConfigError` for a temperature
    that is not above 0, or logits of two shapes.
    """
    if not temperature > 0:
        raise ConfigError(f"the temperature of distillation is {temperature}, it must be above 0.")
    if student_BL.shape != teacher_BL.shape:
        shapes = f"{list(student_BL.shape)} and the teacher's {list(teacher_BL.shape)}"
        raise ConfigError(f"the student's logits are {shapes}: both need the same classes.")
    student_BL = _wide(student_BL) / temperature
    teacher_BL = teacher_BL.detach().to(student_BL.dtype) / temperature
    if objective == "softmax":
        log_s_BL, log_t_BL = student_BL.log_softmax(dim=1), teacher_BL.log_softmax(dim=1)
        divergence_BL = log_t_BL.exp() * (log_t_BL - log_s_BL)
    else:
        yes_BL = teacher_BL.sigmoid() * (F.logsigmoid(teacher_BL) - F.logsigmoid(student_BL))
        no_BL = (-teacher_BL).sigmoid() * (F.logsigmoid(-teacher_BL) - F.logsigmoid(-student_BL))
        divergence_BL = yes_BL + no_BL
    return temperature**2 * divergence_BL.sum() / len(student_BL)


def _wide(logits_BL: Tensor) -> Tensor:
    return logits_BL.to(torch.promote_types(logits_BL.dtype, torch.float32))
