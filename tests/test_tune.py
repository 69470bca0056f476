from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import sovit.runtime.profile
import sovit.runtime.tuning.tune
from serving.config import ServeConfig
from serving.worker import start_worker
from sovit.artifact import Artifact
from sovit.cache import cache_folder
from sovit.cli import main
from sovit.errors import ConfigError, MissingDependency
from sovit.machine import this_machine
from sovit.predict import load_artifact
from sovit.preprocess import Images
from sovit.runtime.base import Runtime
from sovit.runtime.open import installed_runtimes, open_lanes, setting_for
from sovit.runtime.profile import Measurement, Profile, Setting, best, find_profile, save_profile
from sovit.runtime.tuning.tune import TuneOptions, tune

Cost = Callable[[Setting, int], float]


def measured(runtime: str, threads: int, lanes: int, batch: int, milliseconds: float) -> Measurement:
    rate = lanes * batch / milliseconds * 1e3
    return Measurement(
        runtime=runtime, threads=threads, lanes=lanes, batch=batch, milliseconds=milliseconds, images_per_second=rate
    )


# On all cores one run is the fastest, and batches gain nothing; two runs side by side give the most images.
SOME = (
    measured("a", 2, 1, 1, 10.0), measured("a", 2, 1, 2, 19.9), measured("a", 2, 1, 4, 44.0),
    measured("a", 1, 2, 1, 15.0), measured("a", 1, 2, 2, 28.0),
    measured("b", 2, 1, 1, 12.0), measured("b", 2, 1, 2, 16.0),
)  # fmt: skip


def profile(artifact: Artifact, measurements: tuple[Measurement, ...] = SOME) -> Profile:
    return Profile(
        artifact_sha256=artifact.sha256, machine=this_machine(), time="2026-01-01", rounds=1, measured=measurements
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_best_for_latency_and_for_throughput() -> None:
    # Half a percent is not worth waiting for a second image.
    assert best(SOME, "latency") == Setting(runtime="a", threads=2, lanes=1, batch=1)
    assert best(SOME, "throughput") == Setting(runtime="a", threads=1, lanes=2, batch=2)
    assert best([m for m in SOME if m.runtime == "b"], "latency") == Setting(runtime="b", threads=2, lanes=1, batch=2)
    assert best([], "throughput") is None
    # A graph for two images and more.
    assert best([m for m in SOME if m.batch > 1], "latency") == Setting(runtime="b", threads=2, lanes=1, batch=2)


def test_what_is_asked_for_wins_over_what_was_measured(exported: Artifact, cache: Path) -> None:
    default = setting_for(exported)
    assert default == Setting(runtime=installed_runtimes(exported)[0], lanes=1, batch=8)
    save_profile(exported, profile(exported, tuple(replace(m, runtime="openvino") for m in SOME[:5])))
    assert setting_for(exported) == Setting(runtime="openvino", threads=2, lanes=1, batch=1)
    assert setting_for(exported, "throughput") == Setting(runtime="openvino", threads=1, lanes=2, batch=2)
    assert setting_for(exported, "throughput", lanes=1) == Setting(runtime="openvino", threads=2, lanes=1, batch=1)
    assert setting_for(exported, batch=5).batch == 5
    # Nothing was measured for these, so the defaults hold.
    assert setting_for(exported, runtime="onnxruntime").batch == 8
    assert setting_for(exported, lanes=7) == Setting(runtime=default.runtime, threads=1, lanes=7, batch=8)
    with pytest.raises(ConfigError, match="no runtime is called 'abacus'"):
        setting_for(exported, runtime="abacus")


def test_a_profile_belongs_to_an_artifact_and_a_machine(
    exported: Artifact, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert find_profile(exported) is None
    path = save_profile(exported, profile(exported))
    assert path.parent == cache / "sovit" / "profiles" == cache_folder("profiles")
    assert find_profile(exported) == profile(exported)
    other = replace(this_machine(), cores=99)
    with monkeypatch.context() as patch:
        patch.setattr(sovit.runtime.profile, "this_machine", lambda: other)
        assert find_profile(exported) is None
        assert not caplog.records
        # Carried there by hand it is not trusted either.
        sovit.runtime.profile._path(exported).write_bytes(path.read_bytes())
        assert find_profile(exported) is None
    assert "of another artifact or machine and is ignored" in caplog.text
    for content in ("{", json.dumps({"measured": []})):
        caplog.clear()
        path.write_text(content)
        assert find_profile(exported) is None
        assert "run `sovit tune` again" in caplog.text


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Cost], None]]:
    """A clock that only the runs move, on a machine of four cores whose runtimes cost what the test says."""
    now = 0.0

    class Timed:
        precision = "fp32"

        def __init__(self, artifact: Artifact, setting: Setting, cost: Cost) -> None:
            self.name = setting.runtime
            self._setting, self._cost = setting, cost
            images, self._outputs = artifact.reference()
            self._known = [image.tobytes() for image in images]
            self.closed = False

        def run(self, image_BYXC: Images) -> dict[str, NDArray[np.float32]]:
            nonlocal now
            assert not self.closed
            # Lanes are called one after the other here, and together they take what each of them takes.
            now += self._cost(self._setting, len(image_BYXC)) / self._setting.lanes
            rows = [self._known.index(np.asarray(image).tobytes()) for image in image_BYXC]
            return {name: values[rows] for name, values in self._outputs.items()}

        def close(self) -> None:
            self.closed = True

    opened: list[Timed] = []

    def begin(cost: Cost) -> None:
        def open_lanes(artifact: Artifact, setting: Setting) -> list[Runtime]:
            lanes = [Timed(artifact, setting, cost) for _ in range(setting.lanes)]
            opened.extend(lanes)
            return [*lanes]

        monkeypatch.setattr(sovit.runtime.tuning.tune, "open_lanes", open_lanes)

    class Pool:
        def __init__(self, _: int) -> None: ...

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None: ...

        map = staticmethod(map)

    monkeypatch.setattr(sovit.runtime.tuning.tune, "available_cores", lambda: 4)
    monkeypatch.setattr(sovit.runtime.tuning.tune, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr("sovit.runtime.tuning.tune.time.perf_counter", lambda: now)
    monkeypatch.setattr("sovit.runtime.tuning.tune.time.sleep", lambda _: None)
    yield begin
    assert all(lane.closed for lane in opened), "every lane is closed in the end"


def test_the_tuner_finds_what_is_true(exported: Artifact, world: Callable[[Cost], None]) -> None:
    """Known costs come back exactly: OpenVINO is faster for one image, ONNX Runtime gains from batches."""

    def cost(setting: Setting, batch: int) -> float:
        work = 0.4 * batch if setting.runtime == "openvino" else 0.3 + 0.2 * batch
        return float(work / setting.threads**0.5)

    world(cost)
    tuned = tune(exported, TuneOptions(runtimes=("openvino", "onnxruntime"), max_batch=16, rounds=3))
    assert not tuned.left_out
    for m in tuned.profile.measured:
        assert m.milliseconds == pytest.approx(cost(m.setting, m.batch) * 1e3)
        assert m.images_per_second == pytest.approx(m.lanes * m.batch / m.milliseconds * 1e3)
    found = tuned.profile.measured
    assert best(found, "latency") == Setting(runtime="openvino", threads=4, lanes=1, batch=1)
    assert best(found, "throughput") == Setting(runtime="onnxruntime", threads=1, lanes=4, batch=16)
    engines = dict.fromkeys((m.threads, m.lanes) for m in found if m.runtime == "openvino")
    assert list(engines) == [(4, 1), (2, 1), (1, 1), (2, 2), (1, 4)]
    # Batches that gain nothing end the climb after two of them.
    assert [m.batch for m in found if (m.runtime, m.threads, m.lanes) == ("openvino", 4, 1)] == [1, 2, 4]


def test_a_machine_that_slows_down_does_not_change_the_choice(
    exported: Artifact, world: Callable[[Cost], None]
) -> None:
    calls = 0

    def cost(setting: Setting, batch: int) -> float:
        nonlocal calls
        calls += 1
        load = 1.0 if calls < 100 else 4.0  # from somewhere within the first runtime on
        return load * batch * (1.5 if setting.runtime == "openvino" else 1.0)

    world(cost)
    found = tune(exported, TuneOptions(runtimes=("openvino", "onnxruntime"), max_batch=2, rounds=3)).profile.measured
    times = {(m.runtime, m.threads, m.lanes, m.batch): m.milliseconds for m in found}
    assert times["openvino", 4, 1, 1] == pytest.approx(1.5 * times["onnxruntime", 4, 1, 1])
    assert times["openvino", 4, 1, 2] == pytest.approx(2 * times["openvino", 4, 1, 1])


def test_a_runtime_that_fails_is_left_out_by_name(
    exported: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = TuneOptions(runtimes=("onnxruntime-cuda", "fake", "onnxruntime"), max_batch=1, rounds=1)
    tuned = tune(exported, options)
    assert {m.runtime for m in tuned.profile.measured} == {"onnxruntime"}
    assert "has no CUDAExecutionProvider" in tuned.left_out["onnxruntime-cuda"]
    assert "no tolerance is agreed" in tuned.left_out["fake"]
    with pytest.raises(MissingDependency, match="CUDAExecutionProvider"):
        tune(exported, replace(options, runtimes=("onnxruntime-cuda",)))
    with pytest.raises(ConfigError, match="no tolerance"):
        tune(exported, replace(options, runtimes=("fake",)))
    few = Artifact(exported.folder, replace(exported.manifest, batch=(4, 4, 8)))
    with pytest.raises(ConfigError, match="for 4 to 8 images"):
        tune(few, options)


def test_lanes_whose_weights_do_not_fit_are_left_out(exported: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sovit.runtime.tuning.tune, "free_memory", lambda: 1000)
    monkeypatch.setattr(sovit.runtime.tuning.tune, "available_cores", lambda: 2)
    tuned = tune(exported, TuneOptions(runtimes=("onnxruntime",), max_batch=1, rounds=1))
    assert {(m.threads, m.lanes) for m in tuned.profile.measured} == {(2, 1)}
    assert set(tuned.left_out) == {"onnxruntime, 1 lanes of 1 threads", "onnxruntime, 2 lanes of 1 threads"}


def test_the_command_keeps_a_profile_and_the_service_uses_it(
    exported: Artifact, cache: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = {path: path.read_bytes() for path in exported.folder.iterdir()}
    words = ["tune", str(exported.folder), "--runtime", "onnxruntime", "--max-batch", "2", "--rounds", "1"]
    assert main([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["latency"]["runtime"] == data["throughput"]["runtime"] == "onnxruntime"
    assert {path: path.read_bytes() for path in exported.folder.iterdir()} == before, "the artifact stays as it was"
    assert main(words) == 0
    assert "for latency: onnxruntime," in capsys.readouterr().out
    # A second lane cannot come from the defaults.
    two = replace(
        profile(exported), measured=(measured("onnxruntime", 1, 2, 1, 1.0), measured("onnxruntime", 1, 2, 3, 2.0))
    )
    save_profile(exported, two)
    with caplog.at_level(logging.WARNING):
        worker = start_worker(ServeConfig(artifacts={"tiny": str(exported.folder)}, tuned_for="throughput"))
        model = worker.models.find(None)
    try:
        assert model.runtime == "onnxruntime"
        assert len(model.engine._runtimes) == 2
        assert model.engine._sizes[-1] == 3
    finally:
        worker.close()
    assert load_artifact(exported.folder).batch_size == 8  # one lane alone was not measured
    assert not caplog.records


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--runtime", "abacus"], "no runtime is called 'abacus'"),
        (["--runtime", "auto"], "no runtime is called 'auto'"),
        (["--rounds", "0"], "rounds is 0"),
        (["--max-batch", "0"], "max_batch is 0"),
        (["--runtime", "tensorrt"], "TensorRT"),
    ],
)
def test_wrong_wishes_are_refused_in_a_sentence(
    exported: Artifact, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", str(exported.folder), *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_a_compiled_graph_is_kept_for_the_next_start_and_made_anew_where_it_is_damaged(
    exported: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    setting = setting_for(exported, runtime="openvino")
    images, reference = exported.reference()

    def outputs() -> NDArray[np.float32]:
        return open_lanes(exported, setting, keep_compiled=True)[0].run(images)["pre_logits"]

    np.testing.assert_allclose(outputs(), reference["pre_logits"], rtol=1e-3, atol=1e-5)
    (kept,) = (cache_folder("openvino") / exported.sha256[:16]).rglob("*.blob")
    content = kept.read_bytes()
    np.testing.assert_allclose(outputs(), reference["pre_logits"], rtol=1e-3, atol=1e-5)
    for damaged in (content[: len(content) // 2], b"", b"\xff" * len(content)):
        kept.chmod(0o600)
        kept.write_bytes(damaged)
        np.testing.assert_allclose(outputs(), reference["pre_logits"], rtol=1e-3, atol=1e-5)
    # Where nothing can be kept it works all the same.
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    np.testing.assert_allclose(outputs(), reference["pre_logits"], rtol=1e-3, atol=1e-5)
