"""The CUDA border: errors become ours, and the double has only names that the real bindings have."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
from cuda.bindings import runtime as real

from sovit.errors import MissingDependency, RuntimeFailure
from sovit.runtime.tensorrt import cuda
from tests.fake_cuda import FakeDevice, fake_cudart
from tests.fixtures_tensorrt import FakeGpu, install


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeGpu:
    return install(monkeypatch, tmp_path)


def test_every_name_we_use_is_in_the_bindings() -> None:
    tree = ast.parse(Path(cuda.__file__).read_text(encoding="utf-8"))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("cuda")}
    assert {"cudaGraphInstantiate", "cudaErrorNoDevice", "cudaStreamCaptureModeThreadLocal"} <= used
    known = set(dir(real)) | {
        member.name for kind in (real.cudaError_t, real.cudaMemcpyKind, real.cudaStreamCaptureMode) for member in kind
    }
    assert used - {"cuda_runtime"} <= known


def test_the_double_has_the_names_and_the_arity_of_the_bindings() -> None:
    for name, double in vars(fake_cudart(FakeDevice())).items():
        signature = re.match(rf"{name}\((.*)\)", (getattr(real, name).__doc__ or "").splitlines()[0])
        if signature and hasattr(double, "__code__") and not double.__code__.co_flags & 4:  # 4: takes *arguments
            count = len([part for part in signature[1].split(",") if part.strip()])
            assert double.__code__.co_argcount == count, name


def test_without_a_driver_the_sentence_says_what_to_get() -> None:
    if real.cudaGetDeviceCount()[0] == real.cudaError_t.cudaSuccess:
        pytest.skip("this machine has a GPU")
    with pytest.raises(MissingDependency, match=r"no GPU.*this needs a machine with an NVIDIA GPU and its driver"):
        cuda.current_gpu()


def test_without_the_bindings_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingDependency, match="cuda-bindings is not installed"):
        cuda.current_gpu()


def test_a_gpu_is_described(gpu: FakeGpu) -> None:
    found = cuda.current_gpu()
    assert found == cuda.Gpu(
        name="NVIDIA H100 80GB HBM3", compute_capability="9.0", memory=80 * 2**30, driver="13.0", runtime="13.2"
    )
    gpu.device.count = 0
    with pytest.raises(MissingDependency, match="CUDA finds no GPU"):
        cuda.current_gpu()


def test_errors_become_ours(gpu: FakeGpu) -> None:
    gpu.device.errors = {
        "cudaMalloc": [real.cudaError_t.cudaErrorMemoryAllocation],
        "cudaStreamSynchronize": [real.cudaError_t.cudaErrorIllegalAddress],
    }
    with pytest.raises(RuntimeFailure, match="full: use fewer lanes"):
        cuda.DeviceBuffer(10)
    stream = cuda.Stream()
    with pytest.raises(RuntimeFailure, match="CUDA failed: an illegal memory access was encountered"):
        stream.wait()
    stream.close()
    assert not gpu.device.leftovers


def test_a_broken_capture_leaves_the_stream_usable(gpu: FakeGpu) -> None:
    stream = cuda.Stream()
    with pytest.raises(RuntimeFailure):
        stream.capture(stream.wait)  # waiting is what a capture cannot take
    assert gpu.device.calls[-1] == "cudaGetLastError"
    gpu.device.errors = {"cudaGraphInstantiate": [real.cudaError_t.cudaErrorInvalidValue]}
    with pytest.raises(RuntimeFailure):
        stream.capture(lambda: None)
    graph = stream.capture(lambda: None)
    graph.launch()
    stream.wait()
    graph.close()
    stream.close()
    assert not gpu.device.leftovers
