"""Put the doubles of TensorRT and CUDA where sovit imports the real ones."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cuda.bindings
import pytest

from tests.fake_cuda import FakeDevice, fake_cudart
from tests.fake_tensorrt import Behaviour, fake_tensorrt

VERSIONS = ("10.14.1.48", "11.4.0.106")


@dataclass
class FakeGpu:
    """A machine with a GPU and TensorRT, and a cache of its own."""

    device: FakeDevice
    behaviour: Behaviour
    cache: Path
    trt: Any


def install(monkeypatch: pytest.MonkeyPatch, cache: Path, version: str = VERSIONS[-1]) -> FakeGpu:
    """A fresh machine; what an earlier one held in memory is gone, what lies in the cache is still there."""
    device, behaviour = FakeDevice(), Behaviour()
    cudart, trt = fake_cudart(device), fake_tensorrt(device, behaviour, version)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(cuda.bindings, "runtime", cudart, raising=False)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cudart)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    return FakeGpu(device, behaviour, cache / "sovit", trt)
