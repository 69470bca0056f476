"""Put the doubles of TensorRT and CUDA where sovit imports the real ones, and what the tests of both halves share."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cuda.bindings
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from sovit.artifact import Artifact
from sovit.runtime.base import Runtime
from sovit.runtime.tensorrt.options import CompileOptions
from tests.fake_cuda import FakeDevice, fake_cudart
from tests.fake_tensorrt import Behaviour, fake_tensorrt

VERSIONS = ("10.14.1.48", "11.4.0.106")
RTX_VERSION = "1.7.1.116"
SMALL = CompileOptions(batch=(1, 4, 6))


@dataclass
class FakeGpu:
    """A machine with a GPU and TensorRT, and a cache of its own."""

    device: FakeDevice
    behaviour: Behaviour
    cache: Path
    trt: Any


def install(monkeypatch: pytest.MonkeyPatch, cache: Path, version: str = VERSIONS[-1], *, rtx: bool = False) -> FakeGpu:
    """A fresh machine; what an earlier one held in memory is gone, what lies in the cache is still there."""
    device, behaviour = FakeDevice(), Behaviour()
    cudart, trt = fake_cudart(device), fake_tensorrt(device, behaviour, version, rtx=rtx)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(cuda.bindings, "runtime", cudart, raising=False)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cudart)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx" if rtx else "tensorrt", trt)
    return FakeGpu(device, behaviour, cache / "sovit", trt)


def images(artifact: Artifact, count: int, seed: int = 0) -> NDArray[np.uint8]:
    shape = (count, *artifact.manifest.model.image_size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def expected(artifact: Artifact, batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(str(artifact.graph))
    names = [tensor.name for tensor in artifact.manifest.outputs]
    return dict(zip(names, session.run(names, {"image": batch}), strict=True))


def assert_right(artifact: Artifact, runtime: Runtime, batch: NDArray[np.uint8]) -> None:
    found = runtime.run(batch)
    for name, values in expected(artifact, batch).items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5)
