from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

import benchmarks.latency
from benchmarks.conditions import conditions
from benchmarks.latency import measure, resolve
from sovit.artifact import Artifact
from sovit.cli import main
from sovit.cost import cost
from sovit.errors import ConfigError
from sovit.preprocess import Images
from sovit.runtime.fake import FakeRuntime


def test_a_known_sleep_comes_back_with_the_right_numbers(exported: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sleeps only ever last longer, so the bounds below hold on a busy machine too."""
    slow = Artifact(exported.folder, replace(exported.manifest, name="slow"))

    def runtime(artifact: Artifact, *_: object, **__: object) -> FakeRuntime:
        return FakeRuntime(artifact.manifest.model, seconds_per_call=0.03 if artifact is slow else 0.003)

    monkeypatch.setattr(benchmarks.latency, "open_runtime", runtime)
    targets = [("fast", exported), ("slow", slow)]
    rows = measure(targets, [1, 4], rounds=9, threads=1, console=Console(quiet=True))
    assert [(row.target, row.batch) for row in rows] == [("fast", 1), ("slow", 1), ("fast", 4), ("slow", 4)]
    for row in rows:
        assert row.p50_ms >= (30 if row.target == "slow" else 3)
        assert row.p50_ms <= row.p90_ms <= row.p99_ms
        assert row.images_per_second == pytest.approx(row.batch / row.p50_ms * 1e3)
        assert row.warmup_runs >= 6
        assert row.gflops_per_image == cost(exported.manifest.model).flops / 1e9
    assert rows[0].ratio == rows[2].ratio == 1.0
    assert rows[1].ratio > 1


def test_rows_take_turns(exported: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Recorder(FakeRuntime):
        def run(self, image_BYXC: Images) -> dict[str, NDArray[np.float32]]:
            order.append(self.precision)
            time.sleep(0)
            return super().run(image_BYXC)

    names = iter("ab")
    monkeypatch.setattr(
        benchmarks.latency,
        "open_runtime",
        lambda artifact, *_, **__: Recorder(artifact.manifest.model, precision=next(names)),
    )
    measure([("a", exported), ("b", exported)], [1], rounds=5, threads=1, console=Console(quiet=True))
    assert "".join(order[-10:]) == "ab" * 5


def test_a_target_that_is_neither_artifact_nor_variant_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no artifact"):
        resolve(str(tmp_path), (16, 16), 0, tmp_path)
    with pytest.raises(ConfigError, match="no variant is called"):
        resolve("nope", (16, 16), 0, tmp_path)


def test_the_command_records_its_conditions(
    exported: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "latency.json"
    assert (
        main(["bench", "latency", str(exported.folder), "mu/4", "--image-size", "16", "--quick", "--out", str(out)])
        == 0
    )
    data = json.loads(out.read_text())
    assert data["quick"] is True
    assert [row["runs"] for row in data["rows"]] == [10, 10]
    assert data["conditions"]["cores"] >= 1
    assert data["conditions"]["packages"]["onnxruntime"]
    assert "quick run" in capsys.readouterr().out


def test_conditions_name_the_machine_but_no_path() -> None:
    found = conditions()
    assert found["processor"]
    assert str(Path.home()) not in json.dumps(found)
