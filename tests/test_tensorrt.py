"""TensorRT: running a plan, on doubles that keep its rules, and on a GPU where there is one (`-m gpu`)."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cuda.bindings import runtime as real

from sovit.artifact import Artifact
from sovit.errors import (
    ArtifactMismatch,
    ConfigError,
    PlanMismatch,
    RuntimeFailure,
    SoViTError,
)
from sovit.runtime.batches import batch_sizes
from sovit.runtime.tensorrt.compile import compile_plan
from sovit.runtime.tensorrt.cuda import current_gpu
from sovit.runtime.tensorrt.library import TENSORRT
from sovit.runtime.tensorrt.options import CompileOptions
from sovit.runtime.tensorrt.runtime import open_tensorrt
from tests.fixtures_tensorrt import SMALL, VERSIONS, FakeGpu, assert_right, images, install


@pytest.fixture(params=VERSIONS)
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeGpu:
    return install(monkeypatch, tmp_path, request.param)


def test_batches_are_padded_to_few_sizes() -> None:
    assert batch_sizes(1, 1) == (1,)
    assert batch_sizes(1, 6) == (1, 2, 4, 6)
    assert batch_sizes(3, 64) == (3, 4, 8, 16, 32, 64)


def test_every_batch_gives_the_right_numbers(gpu: FakeGpu, exported: Artifact) -> None:
    compile_plan(exported, SMALL)
    gpu.behaviour.enqueued.clear()
    (runtime,) = open_tensorrt(exported)
    for seed, count in enumerate((1, 3, 6, 2, 3, 1, 5, 13, 6, 12)):  # padded, split, and replayed
        assert_right(exported, runtime, images(exported, count, seed))
    # Once to run and once to record for each size, whatever came later.
    assert gpu.behaviour.enqueued == [(size, recorded) for size in (1, 4, 6, 2) for recorded in (False, True)]
    assert runtime.run(images(exported, 0))["pre_logits"].shape == (0, 32)
    runtime.close()
    runtime.close()
    gc.collect()
    assert not gpu.device.leftovers
    assert not len(gpu.behaviour.alive)
    with pytest.raises(RuntimeFailure, match="closed"):
        runtime.run(images(exported, 1))


def test_a_batch_below_the_least_is_padded(gpu: FakeGpu, exported: Artifact) -> None:
    compile_plan(exported, CompileOptions(batch=(3, 3, 4)))
    (runtime,) = open_tensorrt(exported)
    for seed in range(3):
        assert_right(exported, runtime, images(exported, 2, seed))
    runtime.close()


def test_results_are_not_overwritten_by_the_next_run(gpu: FakeGpu, exported: Artifact) -> None:
    compile_plan(exported, SMALL)
    (runtime,) = open_tensorrt(exported)
    first = runtime.run(images(exported, 4, 1))["pre_logits"]
    kept = first.copy()
    runtime.run(images(exported, 4, 2))
    np.testing.assert_array_equal(first, kept)
    runtime.close()


def test_without_graphs_it_still_runs_and_says_so_once(
    gpu: FakeGpu, exported: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    compile_plan(exported, SMALL)
    gpu.behaviour.breaks_captures = True
    (runtime,) = open_tensorrt(exported)
    with caplog.at_level(logging.WARNING):
        for seed, count in enumerate((2, 2, 5, 9)):
            assert_right(exported, runtime, images(exported, count, seed))
    assert [record.message for record in caplog.records if "without CUDA graphs" in record.message] == [
        "TensorRT runs without CUDA graphs, which costs some latency: TensorRT failed: it cannot be captured."
    ]
    runtime.close()
    assert not gpu.device.leftovers


def test_lanes_share_the_engine(gpu: FakeGpu, exported: Artifact) -> None:
    compile_plan(exported, SMALL)
    gc.collect()
    lanes = open_tensorrt(exported, lanes=3)
    assert len(gpu.behaviour.alive) == 1
    assert len(gpu.device.streams) == 3
    for lane in (*lanes, *lanes):
        assert_right(exported, lane, images(exported, 3))
    lanes[0].close()
    assert_right(exported, lanes[1], images(exported, 3, 9))
    for lane in lanes[1:]:
        lane.close()
    gc.collect()
    assert not len(gpu.behaviour.alive)
    assert not gpu.device.leftovers
    with pytest.raises(ConfigError, match="lanes is 0"):
        open_tensorrt(exported, lanes=0)


def test_a_lane_that_does_not_fit_frees_the_others(gpu: FakeGpu, exported: Artifact) -> None:
    compile_plan(exported, SMALL)
    good = [real.cudaError_t.cudaSuccess] * 6
    gpu.device.errors = {"cudaMalloc": [*good, real.cudaError_t.cudaErrorMemoryAllocation]}
    with pytest.raises(RuntimeFailure, match="use fewer lanes"):
        open_tensorrt(exported, lanes=2)
    assert not gpu.device.leftovers


def test_wrong_images_are_refused(gpu: FakeGpu, exported: Artifact) -> None:
    compile_plan(exported, SMALL)
    (runtime,) = open_tensorrt(exported)
    for wrong in (np.zeros((1, 16, 16, 3), np.float32), np.zeros((1, 8, 16, 3), np.uint8)):
        with pytest.raises(RuntimeFailure, match=r"takes uint8 images of shape \[16, 16, 3\]"):
            runtime.run(wrong)  # type: ignore[arg-type]
    runtime.close()


def test_a_failing_engine_says_why(gpu: FakeGpu, exported: Artifact) -> None:
    compile_plan(exported, SMALL)
    gpu.behaviour.run_error = "Cask convolution execution"
    (runtime,) = open_tensorrt(exported)
    with pytest.raises(RuntimeFailure, match=r"TensorRT failed: Cask convolution execution\.$"):
        runtime.run(images(exported, 1))
    runtime.close()


def test_a_plan_that_tensorrt_refuses(gpu: FakeGpu, exported: Artifact) -> None:
    compile_plan(exported, SMALL)
    gpu.behaviour.load_error = "the stream is corrupt"
    with pytest.raises(PlanMismatch, match=r"the stream is corrupt\): run `sovit compile"):
        open_tensorrt(exported)


def test_a_plan_with_other_outputs_is_refused(gpu: FakeGpu, exported: Artifact) -> None:
    compile_plan(exported, SMALL)
    gpu.behaviour.rename = {"logits": "scores"}
    with pytest.raises(ArtifactMismatch, match="other inputs or outputs"):
        open_tensorrt(exported)
    assert not gpu.device.leftovers


def test_without_a_plan_the_sentence_says_what_to_run(gpu: FakeGpu, exported: Artifact) -> None:
    with pytest.raises(PlanMismatch, match="run `sovit compile"):
        open_tensorrt(exported)


# On a GPU


@pytest.fixture
def compiled(exported: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Artifact]:
    """The tiny artifact, compiled for the GPU of this machine."""
    try:
        TENSORRT.load()
        current_gpu()
    except SoViTError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compile_plan(exported, CompileOptions(batch=(1, 8, 48)))
    yield exported
    gc.collect()


@pytest.mark.gpu
def test_the_real_thing_gives_the_right_numbers(compiled: Artifact) -> None:
    first, second = open_tensorrt(compiled, lanes=2)  # the plan is read again from the cache
    for lane in (first, second):
        for seed, count in enumerate((1, 3, 64, 3, 1, 48)):
            assert_right(compiled, lane, images(compiled, count, seed))
        assert all(run.graph is not None for run in lane._runs.values())
    first.close()
    assert_right(compiled, second, images(compiled, 3, 9))
    second.close()
