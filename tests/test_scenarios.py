"""Scenarios under the load generator, on a runtime whose times are known."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.scenarios.loadgen import Scenario, read_summary, run_scenario
from sovit.artifact import Artifact
from sovit.cli import main
from sovit.errors import ConfigError, ServiceError
from sovit.runtime.fake import FakeRuntime
from tests.conftest import tiny_spec

IMAGES: NDArray[np.uint8] = np.zeros((16, 16, 16, 3), np.uint8)


def runtime(seconds: float) -> FakeRuntime:
    return FakeRuntime(tiny_spec().model, seconds_per_call=seconds)


def test_single_stream_asks_for_one_image_at_a_time() -> None:
    model = runtime(0.005)
    found = run_scenario(model, IMAGES, Scenario(name="single-stream", min_seconds=0.5))
    assert set(model.batches) == {1}
    assert found.images == found.batches == len(model.batches) >= 64
    assert found.p50_ms is not None
    assert found.p99_ms is not None
    assert 5 <= found.p50_ms <= found.p99_ms
    assert found.images_per_second is not None
    assert found.images_per_second <= 200


def test_offline_runs_whole_batches() -> None:
    model = runtime(0.002)
    found = run_scenario(model, IMAGES, Scenario(name="offline", min_seconds=0.2, rate=1000, max_batch=8))
    assert max(model.batches) == 8
    assert sum(model.batches) == found.images
    assert found.images_per_second is not None
    assert found.images_per_second <= 4000


def test_the_server_runs_together_what_has_come_meanwhile() -> None:
    """Images come faster than one at a time could be run: without batches the queue would grow and grow."""
    model = runtime(0.02)
    found = run_scenario(model, IMAGES, Scenario(name="server", min_seconds=1, rate=150, max_batch=16))
    assert found.images >= 64
    assert found.batches < found.images
    assert found.p50_ms is not None
    assert found.p50_ms >= 20


def test_a_runtime_that_fails_ends_it_with_a_sentence() -> None:
    class Broken(FakeRuntime):
        def run(self, *_: object) -> Any:
            raise ZeroDivisionError("no")

    with pytest.raises(ServiceError, match="failed under the load generator: no"):
        run_scenario(Broken(tiny_spec().model), IMAGES, Scenario(name="single-stream", min_seconds=0.1, min_queries=1))


def test_a_summary_is_read_as_it_is_written() -> None:
    text = """Scenario : Server
Completed samples per second : 107.66
Result is : INVALID
  Performance constraints satisfied : Yes
  Early stopping satisfied: NO
50.00 percentile latency (ns)   : 5991024
99.00 percentile latency (ns)   : 11108546
"""
    found = read_summary(text, "server", images=200, batches=190)
    assert found.unmet == ("Early stopping",)
    assert (found.images_per_second, found.p90_ms) == (107.66, None)
    assert found.p50_ms == pytest.approx(5.991024)
    with pytest.raises(ServiceError, match="wrote no result"):
        read_summary("", "server", images=0, batches=0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "server"}, "needs --rate"),
        ({"name": "offline", "rate": -1}, "needs --rate"),
        ({"name": "single-stream", "percentile": 100}, "percentile is 100"),
        ({"name": "single-stream", "min_seconds": 0}, "min_seconds is 0"),
    ],
)
def test_scenarios_that_make_no_sense_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Scenario(**fields)


def test_the_command_writes_what_it_found(
    exported: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scenario.json"
    words = ["bench", "scenario", "server", str(exported.folder), "--rate", "100", "--seconds", "0.5"]
    assert main([*words, "--out", str(out)]) == 0
    data = json.loads(out.read_text())
    assert data["settings"]["name"] == data["outcome"]["scenario"] == "server"
    assert data["outcome"]["images"] >= 64
    assert data["conditions"]["processor"]
    assert "MLPerf" not in capsys.readouterr().out
    assert main(["bench", "scenario", "server", str(exported.folder)]) == 2
    assert "needs --rate" in capsys.readouterr().err
    assert main([*words, "--threads", "100000"]) == 2
    assert "--threads 100000 must be at most" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["single-stream"], ["offline", "--rate", "1000"], ["server", "--rate", "50"]])
def test_ctrl_c_ends_it_at_once_and_leaves_nothing(exported: Artifact, tmp_path: Path, more: list[str]) -> None:
    words = [sys.executable, "-m", "sovit", "bench", "scenario", *more, str(exported.folder), "--seconds", "600"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("sovit-loadgen-*/*/*")):  # the load generator has opened its logs
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the child gets it too
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip().endswith("interrupted.")
    assert not list(tmp_path.glob("sovit-loadgen-*"))
