"""What has to be right about a run before its first step, and what is worth a warning."""

from __future__ import annotations

from sovit.decode import DecodeOptions, decode
from sovit.errors import ConfigError, InvalidImage, UnsupportedImage
from sovit.spec import ModelSpec
from train.board import must_have_tensorboard
from train.config import TrainConfig
from train.data.checks import check_splits
from train.data.dataset import Dataset
from train.evaluate import nothing_decoded
from train.world import World


def check_data(config: TrainConfig, train_set: Dataset, test_set: Dataset) -> tuple[str, ...]:
    """Warnings about the data, a sentence each. Raises `ConfigError` where it cannot be learnt from or judged by."""
    if len(train_set) < config.batch_size:
        raise ConfigError(f"{train_set.name} has {len(train_set)} images, less than one batch of {config.batch_size}.")
    if config.tensorboard:
        must_have_tensorboard()
    warnings = check_splits(train_set, test_set)
    for dataset in (train_set, test_set):
        _check_usable(dataset)
    return warnings


def check_batch(config: TrainConfig, world: World) -> None:
    """Raises `ConfigError` for a batch that cannot be shared by the processes, their parts and pairs of images."""
    if config.cuda_graphs and world.size > 1:
        raise ConfigError(f"cuda_graphs is for one GPU, and this run has {world.size} processes: set it to false.")
    pairs = bool(config.mixup or config.cutmix)
    pieces = world.size * config.accumulate * (2 if pairs else 1)
    if config.batch_size % pieces:
        raise ConfigError(
            f"batch_size is {config.batch_size}, it must be a multiple of {pieces}: processes x accumulate"
            f"{' x 2, as images are mixed in pairs' if pairs else ''}."
        )


def unseen_pixels(spec: ModelSpec) -> tuple[str, ...]:
    """A warning where whole patches do not cover the image: what is left over is never seen."""
    patch, sides = spec.model.patch_size, spec.model.image_size
    covered = [side // patch * patch for side in sides]
    if covered == list(sides):
        return ()
    return (
        f"patches of {patch} px cover {covered[0]} x {covered[1]} of {sides[0]} x {sides[1]} px: the model does not "
        "see the rest.",
    )


def _check_usable(dataset: Dataset) -> None:
    """One image that can be decoded will do: others are named when they are met."""
    failed: dict[int, str] = {}
    for index in range(len(dataset)):
        try:
            decode(dataset.images[index], DecodeOptions())
        except (InvalidImage, UnsupportedImage, OSError) as error:
            failed[index] = str(error)
        else:
            return
    raise nothing_decoded(dataset, failed)
