"""A model made ready for training: activation checkpointing, compiled blocks, DDP or FSDP2, in this order.

A model so small that the GPU waits for its kernels to be launched is compiled whole instead, as CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from sovit.model import ViT
from train.config import TrainConfig
from train.world import World


def prepared(model: ViT, config: TrainConfig, world: World) -> nn.Module:
    """The module to call in training. Its parameters are `model`'s own, sharded over the processes with FSDP2."""
    if config.checkpoint_activations:
        for block in model.blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if config.cuda_graphs and world.device.type == "cuda":
        model.compile(mode="reduce-overhead", dynamic=False)
    elif config.compile:
        for block in model.blocks:
            block.compile(dynamic=False)  # one graph for all blocks, as they are alike
    if config.parallel == "fsdp":
        mesh = init_device_mesh(world.device.type, (world.size,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)  # in place: it is the same module
        return model
    if world.size > 1:
        return DistributedDataParallel(model, gradient_as_bucket_view=True)
    return model


@contextmanager
def accumulating(model: nn.Module, *, last: bool) -> Iterator[None]:
    """Gradients are summed over the processes in the last part of a batch only."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    unsynchronised = isinstance(model, DistributedDataParallel) and not last
    with model.no_sync() if unsynchronised else nullcontext():  # type: ignore[operator]
        yield
