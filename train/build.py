"""The model of a run before its first step, and the teacher it learns from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from sovit.checkpoint import load_model, read_config
from sovit.config import ViTConfig
from sovit.errors import ConfigError
from sovit.jsonio import from_dict
from sovit.model import ViT
from sovit.preprocess import Preprocess
from sovit.spec import ModelSpec
from train.config import UNSET_CHECKPOINT, TrainConfig
from train.optim.mup import BaseShape, scale_weights
from train.randomness import key


def spec_of(config: TrainConfig, classes: tuple[str, ...]) -> ModelSpec:
    """Model, preprocessing and labels of a run. Raises `ConfigError` or `CheckpointMismatch`."""
    if config.init:
        if config.init == UNSET_CHECKPOINT:
            raise ConfigError("this recipe starts from a checkpoint: --set init=FOLDER says which (`sovit convert`).")
        saved = read_config(Path(config.init)).at(config.image_size)
        model = replace(saved.model, num_classes=len(classes))
        return ModelSpec(model=model, preprocess=saved.preprocess, labels=classes, score=config.objective)
    names = ("width", "depth", "mlp_dim", "num_heads", "patch_size", "pool", "position_embedding", "image_size")
    shape = {name: getattr(config, name) for name in names}
    model = from_dict(ViTConfig, {**shape, "num_classes": len(classes)}, "the recipe's model")
    preprocess = Preprocess(image_size=config.image_size)
    return ModelSpec(model=model, preprocess=preprocess, labels=classes, score=config.objective)


def first_model(config: TrainConfig, spec: ModelSpec) -> ViT:
    """The model with its first weights, drawn from the seed or taken from `config.init`; the head is new."""
    torch.manual_seed(key(config.seed, "step", 0) >> 1)
    model = ViT(spec.model)
    if config.init:
        weights = load_model(config.init, image_size=config.image_size).state_dict()
        own = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
        model.load_state_dict(own, strict=False)
    if config.mup_depth:
        scale_weights(model, BaseShape(*config.mup_depth))
    assert model.head is not None
    nn.init.constant_(model.head.bias, config.head_bias)
    return model


def teacher_of(config: TrainConfig, spec: ModelSpec, device: torch.device) -> ViT | None:
    """The larger model to distil from. Raises `ConfigError` where it has other classes or another preprocessing."""
    if not config.teacher:
        return None
    saved = read_config(Path(config.teacher))
    if saved.labels != spec.labels:
        raise ConfigError(f"the teacher {config.teacher} has other classes than the data: it must have the same ones.")
    if (saved.preprocess.mean, saved.preprocess.std) != (spec.preprocess.mean, spec.preprocess.std):
        raise ConfigError(f"the teacher {config.teacher} normalises pixels otherwise than the model that is trained.")
    teacher = load_model(config.teacher, image_size=config.image_size)
    return teacher.requires_grad_(False).to(device)
