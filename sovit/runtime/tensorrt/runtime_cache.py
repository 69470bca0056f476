"""The runtime cache of TensorRT for RTX: kernels that it compiles on the GPU, kept beside the plan."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

from sovit.artifact import Artifact
from sovit.cache import write_whole
from sovit.runtime.tensorrt.cuda import Stream, current_gpu
from sovit.runtime.tensorrt.library import Library
from sovit.runtime.tensorrt.plan import plan_path

logger = logging.getLogger(__name__)


class RuntimeCache:
    """What TensorRT for RTX compiles for this GPU when an engine first runs, kept beside the plan for the next start.

    The library checks by itself whether a cache is of this GPU, driver and version; one that is not is begun anew.
    """

    def __init__(self, trt: Any, library: Library, artifact: Artifact, engine: Any, *, keep: bool) -> None:
        self._trt, self._engine, self.keep = trt, engine, keep
        plan = plan_path(artifact.sha256, current_gpu(), library.name, trt.__version__, "none")
        self._path = plan.with_name(plan.name.removesuffix(".plan") + ".kernels")
        Stream().close()  # the library compares a cache with the current CUDA context: from here on there is one
        self._cache = self._config().create_runtime_cache()
        self._stored = b""
        if keep and self._path.is_file():
            content = self._path.read_bytes()
            if self._cache.deserialize(content):
                self._stored = content

    def create_context(self) -> Any:
        """An execution context whose kernels come from the cache, or go into it."""
        trt, config = self._trt, self._config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # Contexts have one shape each and are recorded as CUDA graphs by us: kernels are made for the shape at once.
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        if not config.set_runtime_cache(self._cache):
            logger.warning("TensorRT for RTX takes no cache of kernels: every start compiles them anew")
        return self._engine.create_execution_context(config)

    def save(self) -> None:
        """Write what was compiled since, if anything was. A cache that cannot be written only costs the next start."""
        content = bytes(self._cache.serialize()) if self.keep else self._stored
        if content != self._stored:
            with suppress(OSError):
                write_whole(self._path, content)
                self._stored = content

    def _config(self) -> Any:
        return self._engine.create_runtime_config()
