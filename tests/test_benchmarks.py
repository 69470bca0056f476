"""`sovit bench latency`: its arithmetic on made-up runs, and the command with real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import benchmarks.latency.child
import benchmarks.latency.exports
import benchmarks.latency.run
from benchmarks.conditions import conditions
from benchmarks.intervals import Estimate, mean, percentiles
from benchmarks.latency import products
from benchmarks.latency.cases import Asked, Case, cases
from benchmarks.latency.child import Timed, warm_up
from benchmarks.latency.command import table_of
from benchmarks.latency.energy import LEAST_SECONDS, measured_energy
from benchmarks.latency.exports import artifact_of
from benchmarks.latency.result import Failed, Settings, read_measured
from benchmarks.latency.run import Taken, measure
from sovit.artifact import Artifact, Precision
from sovit.cli import main
from sovit.cost import cost
from sovit.errors import ConfigError, ServiceError
from sovit.machine import this_machine
from sovit.peaks import peak_flops
from sovit.runtime.fake import FakeRuntime

SECOND = 1.0
SETTINGS = Settings(batch=(1, 4), rounds=5, seconds=0.0, processes=3, threads=2)


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("benchmarks.latency.child.time.perf_counter", lambda: self.now)


def test_known_times_come_back_with_the_right_percentiles(exported: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness adds nothing of its own to them: by a clock of which it takes no time."""
    clock = Clock(monkeypatch)
    times = iter([5.0, *[1.0] * 6, *[index / 10 for index in range(1, 101)]])

    class Timed(FakeRuntime):
        def run(self, image_BYXC: Any) -> Any:
            clock.now += next(times)
            assert len(image_BYXC) == 4
            return {}

    images, _ = exported.reference()
    found = benchmarks.latency.child.measure(Timed(exported.manifest.model), images, 4, 100, 0.0)
    assert found.first_seconds == 5.0
    assert found.warmup_runs == 7
    np.testing.assert_allclose(found.seconds, [index / 10 for index in range(1, 101)])
    values = [one.value for one in percentiles([np.array(found.seconds)], (50, 90, 99))]
    assert values == pytest.approx([5.05, 9.01, 9.901])


def test_a_process_measures_for_as_long_as_it_is_asked_to(exported: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    class Timed(FakeRuntime):
        def run(self, image_BYXC: Any) -> Any:
            clock.now += 0.1
            return {}

    images, _ = exported.reference()
    found = benchmarks.latency.child.measure(Timed(exported.manifest.model), images, 1, 5, 2.0)
    assert len(found.seconds) == 20
    assert sum(found.seconds) == pytest.approx(2.0)


def test_warm_up_goes_on_until_two_groups_agree() -> None:
    times = iter([9, 9, 9, 5, 5, 5, 3, 3, 3, 3.01, 3.01, 3.01, 1, 1, 1])
    assert warm_up(lambda: float(next(times))) == (12, True)


def test_warm_up_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    def run() -> float:
        took = 10 / (1 + clock.now)  # ever faster
        clock.now += 1
        return took

    assert warm_up(run, most_seconds=20) == (24, False), "three before the clock begins, then 20 s and the group's end"
    slow = iter([1, 1, 1, 2, 2, 2, 4, 4, 4])
    assert warm_up(lambda: float(next(slow)), most_seconds=0) == (6, False), "two groups at least"


def test_processes_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(10, 0.1, 300)
    (same,) = percentiles([one[:100], one[100:200], one[200:]], [50])
    (apart,) = percentiles([one[:100], one[100:200] + 2, one[200:] + 4], [50])
    assert same.low <= same.value <= same.high
    assert same.high - same.low < 0.2
    assert apart.low < 10.5
    assert apart.high > 13.5


def test_every_process_weighs_the_same_however_many_runs_it_made() -> None:
    slow, fast = np.full(10, 2.0), np.full(990, 1.0)
    (p40, p60), found = percentiles([slow, fast], [40, 60]), mean([slow, fast])
    assert (p40.value, p60.value) == (1.0, 2.0)
    assert found.value == 1.5, "not 1.01, which is the fast process's own"
    assert (found.low, found.high) == (1.0, 2.0)


def test_the_intervals_of_few_processes_hold_the_truth_as_often_as_is_said() -> None:
    """All of the noise is between the processes: about three of four cases for three of them, nine of ten for six."""
    rng = np.random.default_rng(1)
    for processes, least, most in ((3, 0.6, 0.85), (6, 0.75, 0.97)):
        cases = [mean([np.array([100 + rng.normal()]) for _ in range(processes)]) for _ in range(100)]
        assert least < np.mean([one.low <= 100 <= one.high for one in cases]) < most


@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(st.floats(1, 9), min_size=n, max_size=n), min_size=1)))
def test_percentiles_of_as_many_runs_each_are_those_of_all(runs: list[list[float]]) -> None:
    found = percentiles([np.array(one) for one in runs[:4]], [50, 90, 99])
    expected = np.percentile(np.concatenate([np.array(one) for one in runs[:4]]), [50, 90, 99])
    np.testing.assert_allclose([one.value for one in found], expected)


@given(st.lists(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8), min_size=1, max_size=3))
def test_an_interval_holds_its_value(runs: list[list[float]]) -> None:
    (found,) = percentiles([np.array(one) for one in runs], [90])
    assert found.low <= found.value <= found.high
    every = [time for one in runs for time in one]
    assert min(every) <= found.low
    assert found.high <= max(every)
    average = mean([np.array(one) for one in runs])
    assert average.low <= average.value <= average.high


def test_estimates_in_other_units() -> None:
    found = Estimate(0.5, 0.4, 1.0)
    assert found.scaled(1000) == Estimate(500, 400, 1000)
    assert found.inverse(2) == Estimate(4, 2, 5)


def case(artifact: Artifact, target: str = "a") -> Case:
    return Case(target=target, artifact=artifact, runtime="onnxruntime")


def measured(batch: int, seconds: list[float]) -> Timed:
    return Timed(
        batch=batch,
        seconds=seconds,
        warmup_runs=6,
        warmed=True,
        first_seconds=2.0,
        peak_memory_bytes=7 * batch,
        device_memory_bytes=None,
        joules=None,
    )


def test_processes_take_turns_and_rows_are_made_of_all(exported: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def add(taken: Taken, one: Case, settings: Settings) -> None:
        order.append(one.target)
        taken.load_seconds.append(float(len(order)))
        taken.matmul_flops.append(1e9)
        taken.cosines.append(1 - len(order) / 1e6)
        for batch in settings.batch:
            taken.batches.setdefault(batch, []).append(measured(batch, [0.1 * batch] * 5))

    monkeypatch.setattr(benchmarks.latency.run, "_add", add)
    kept: list[int] = []
    rows, failed, complete = measure(
        [case(exported), case(exported, "b")],
        SETTINGS,
        lambda _: None,
        lambda rows, _: kept.append(rows[0].processes),
    )
    assert (failed, complete) == ([], True)
    assert kept == [1, 2, 3], "what a pass has found is safe before the next"
    assert order == ["a", "b"] * 3
    assert [(row.variant, row.batch) for row in rows] == [("a", 1), ("b", 1), ("a", 4), ("b", 4)]
    last = rows[-1]
    flops = cost(exported.manifest.model).flops
    assert (last.runs, last.processes, last.warmup_runs, last.peak_memory_bytes) == (15, 3, 6, 28)
    assert [last.p50_ms.low, last.p50_ms.value, last.p50_ms.high] == pytest.approx([400] * 3)
    assert last.images_per_second.value == pytest.approx(10)
    assert list(last.process_images_per_second) == pytest.approx([10] * 3)
    assert (last.warmed, last.first_ms) == (True, 2000.0)
    assert last.achieved_flops == pytest.approx(4 * flops / 0.4)
    assert last.load_seconds == 4
    assert list(last.process_p50_ms) == pytest.approx([400] * 3)
    assert (last.mfu, last.joules_per_image, last.compile_seconds) == (None, None, None)
    assert last.weights == "random"
    assert last.cosine == 1 - 6 / 1e6, "the worst of its processes"


def test_interrupted_it_keeps_what_is_finished(exported: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def add(taken: Taken, one: Case, settings: Settings) -> None:
        calls.append(one.target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        taken.load_seconds.append(1.0)
        taken.matmul_flops.append(1e9)
        taken.cosines.append(1.0)
        taken.batches.setdefault(1, []).append(measured(1, [0.1] * 5))

    monkeypatch.setattr(benchmarks.latency.run, "_add", add)
    rows, _, complete = measure([case(exported), case(exported, "b")], replace(SETTINGS, batch=(1,)), lambda _: None)
    assert not complete
    assert [row.variant for row in rows] == ["a"]


def test_a_process_that_fails_says_why_and_the_others_go_on(exported: Artifact, tmp_path: Path) -> None:
    gone = replace(case(exported, "gone"), artifact=Artifact(tmp_path, exported.manifest))
    settings = replace(SETTINGS, batch=(1,), processes=2)
    rows, (failed,), complete = measure([gone, case(exported)], settings, lambda _: None)
    assert complete
    assert [(row.variant, row.processes) for row in rows] == [("a", 2)]
    assert (failed.variant, failed.runtime) == ("gone", "onnxruntime")
    assert failed.reason == f"{tmp_path} is no artifact: manifest.json is missing."


def test_a_process_that_the_system_ends_is_named_for_what_it_is(
    exported: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.process.sys.executable", "/bin/false")
    assert "status 1: it said nothing" in measure([case(exported)], SETTINGS, lambda _: None)[1][0].reason
    killed = subprocess.CompletedProcess([], -9, "", "")
    monkeypatch.setattr("benchmarks.process.subprocess.run", lambda *_, **__: killed)
    assert "because the memory ran out" in measure([case(exported)], SETTINGS, lambda _: None)[1][0].reason


def test_a_runtime_that_computes_something_else_is_no_row(exported: Artifact, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(exported.folder, folder)
    images, reference = exported.reference()
    np.savez(folder / "reference.npz", image=images, **{name: -values for name, values in reference.items()})  # type: ignore[arg-type]
    settings = replace(SETTINGS, batch=(1,), processes=1)
    rows, (failed,), _ = measure([case(Artifact(folder, exported.manifest))], settings, lambda _: None)
    assert rows == []
    assert "onnxruntime fp32 is off its fp32 reference: relative error 2" in failed.reason


def asked(folder: Path, **changes: Any) -> Asked:
    options: dict[str, Any] = {"image_sizes": [(16, 16)], "precisions": ["fp32"], "runtimes": ["auto"], "images": None}
    return Asked(folder=folder, **(options | changes))


def test_what_cannot_be_meant_is_named_before_anything_is_exported(tmp_path: Path) -> None:
    def refused(target: str, **changes: Any) -> None:
        cases(["mu/4", target], asked(tmp_path / "kept", **changes), lambda _: None)

    with pytest.raises(ConfigError, match="is no artifact"):
        refused(str(tmp_path))
    with pytest.raises(ConfigError, match=r"there is no folder runs/nope, .* no variant is called"):
        refused("runs/nope")
    with pytest.raises(ConfigError, match="need real photographs"):
        refused("mu/4", precisions=["int8"])
    with pytest.raises(ConfigError, match="no runtime is called 'onxruntime'"):
        refused("mu/4", runtimes=["onxruntime"])
    with pytest.raises(ConfigError, match="torch-cuda needs a GPU"):
        refused("mu/4", runtimes=["torch-cuda"])
    assert not (tmp_path / "kept").exists()
    with pytest.raises(ConfigError, match="is no folder of images"):
        refused("mu/4", precisions=["int8"], images=tmp_path / "nowhere")


def test_exports_are_kept_and_taken_again(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(
        ConfigError, match="nothing to measure: mu/4 at 16 px in tensorrt fp32: TensorRT is not installed"
    ):
        cases(["mu/4"], asked(tmp_path, runtimes=["tensorrt"]), said.append)
    assert said == ["exporting mu/4 in fp32"]
    (one,), failed = cases(["mu/4"], asked(tmp_path, runtimes=["torch"]), said.append)
    assert (one.target, one.runtime, failed) == ("mu/4", "torch", [])
    assert said == ["exporting mu/4 in fp32"], "it was there"
    (one,), (away,) = cases(["mu/4"], asked(tmp_path, runtimes=["torch", "tensorrt"]), said.append)
    assert (one.runtime, away.runtime) == ("torch", "tensorrt"), "what was asked for and is not there is not forgotten"
    assert sorted(path.name for path in (tmp_path / "mu-4-16x16").iterdir()) == ["checkpoint", "fp32"]
    (tmp_path / "mu-4-16x16").rename(tmp_path / "mu-8-16x16")
    with pytest.raises(ConfigError, match="holds mu/4 in fp32, not mu/8 in fp32"):
        cases(["mu/8"], asked(tmp_path), said.append)


def test_a_child_finds_what_was_kept_in_a_folder_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (one,), _ = cases(["mu/4"], asked(Path("kept"), runtimes=["torch"]), lambda _: None)
    assert Path(one.checkpoint) == tmp_path / "kept" / "mu-4-16x16" / "checkpoint"


def test_pytorch_takes_what_it_can_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def written(target: str, size: Any, precision: Precision, images: Path | None, folder: Path) -> Artifact:
        """So small a model loses too much in int8 for a real one."""
        real = "bf16" if precision == "int8" else precision
        artifact = artifact_of(target, size, real, None, folder.with_name(real))
        return replace(artifact, manifest=replace(artifact.manifest, precision=precision))

    monkeypatch.setattr("benchmarks.latency.cases.artifact_of", written)
    options = asked(tmp_path / "kept", precisions=["bf16", "int8"], images=tmp_path, runtimes=["all"])
    found, failed = cases(["mu/4"], options, lambda _: None)
    assert failed == []
    assert [(one.precision, one.runtime) for one in found] == [
        ("bf16", "openvino"),
        ("bf16", "torch"),
        ("bf16", "torch-compile"),
        ("int8", "openvino"),
        ("int8", "onnxruntime"),
    ]
    settings = replace(SETTINGS, batch=(1,), processes=1)
    (row,), failed, _ = measure([found[1]], settings, lambda _: None)
    assert (row.precision, row.runtime, failed) == ("bf16", "torch", [])
    assert 0.998 < row.cosine < 0.999999


def test_an_export_that_fails_is_recorded_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def artifact_of(variant: str, *rest: Any) -> Artifact:
        if variant == "mu/8":
            raise ServiceError("the system ended its process.")
        return benchmarks.latency.exports.artifact_of(variant, *rest)

    monkeypatch.setattr("benchmarks.latency.cases.artifact_of", artifact_of)
    found, failed = cases(["mu/8", "mu/4"], asked(tmp_path), lambda _: None)
    assert [one.target for one in found] == ["mu/4"]
    assert failed == [
        Failed(
            variant="mu/8", image_size=(16, 16), runtime="", precision="fp32", reason="the system ended its process."
        )
    ]
    assert str(failed[0]) == "mu/8 at 16 px as fp32: the system ended its process."


def test_energy_is_known_where_it_can_be_read_and_the_stretch_is_long_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with measured_energy(gpu=False, rapl=tmp_path) as nothing:
        pass
    assert nothing.joules is None
    for zone, name in ((0, "package-0"), (1, "psys")):
        (tmp_path / f"intel-rapl:{zone}").mkdir()
        (tmp_path / f"intel-rapl:{zone}" / "name").write_text(f"{name}\n")
        (tmp_path / f"intel-rapl:{zone}" / "max_energy_range_uj").write_text("9000000")
        (tmp_path / f"intel-rapl:{zone}" / "energy_uj").write_text("1")
    counter = tmp_path / "intel-rapl:0" / "energy_uj"
    now = 100.0
    monkeypatch.setattr("benchmarks.latency.energy.time.perf_counter", lambda: now)
    for seconds, before, joules in (
        (LEAST_SECONDS - 1, 1, None),
        (LEAST_SECONDS + 1, 1, 3.0),
        (LEAST_SECONDS + 1, 8, 5.0),  # it turned at 9
    ):
        counter.write_text(f"{before}000000")
        with measured_energy(gpu=False, rapl=tmp_path) as stretch:
            counter.write_text("4000000")
            now += seconds
        assert stretch.joules == joules
        assert stretch.seconds == seconds
    with measured_energy(gpu=True, rapl=tmp_path) as stretch:
        counter.write_text("5000000")
        now += LEAST_SECONDS + 1
    if not this_machine().gpu:
        assert stretch.joules is None, "a GPU's row is not the processor's"


def test_peaks_are_those_of_known_gpus_only() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert peak_flops("NVIDIA H100 PCIe", "bf16") == 756e12
    assert peak_flops("NVIDIA H100 80GB HBM3", "fp32") is None
    assert peak_flops("", "bf16") is None
    assert peak_flops("NVIDIA GeForce RTX 9999", "bf16") is None
    assert peak_flops("NVIDIA RTX A1000", "bf16") is None, "no A100"
    assert peak_flops("NVIDIA H100 NVL", "bf16") is None, "slower than the SXM module"


def test_the_rate_of_products_is_counted_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    ticks = count()
    monkeypatch.setattr("benchmarks.latency.products.time.perf_counter", lambda: float(next(ticks)))
    assert products.on_cpu() == 2 * 1536**3 / SECOND
    for precision in ("fp32", "fp16", "int8-bf16"):
        assert products.on_gpu(precision, device="cpu", side=8) == 2 * 8**3 / SECOND
    assert products.on_gpu("bf16") is None, "no GPU here"


def test_the_command_measures_in_real_processes_and_records_its_conditions(
    exported: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "latency.json"
    words = [
        "bench",
        "latency",
        str(exported.folder),
        "mu/4",
        "--image-size",
        "16",
        "--runtime",
        "onnxruntime",
        "torch",
    ]
    assert main([*words, "--batch", "1", "2", "--quick", "--out", str(out)]) == 1
    data = json.loads(out.read_text())
    assert (data["quick"], data["complete"], data["schema_version"]) == (True, True, 3)
    found = [(row["variant"], row["runtime"], row["batch"], row["runs"], row["processes"]) for row in data["rows"]]
    assert found == [
        (name, runtime, batch, 10, 1)
        for batch in (1, 2)
        for name, runtime in (("tiny", "onnxruntime"), ("mu/4", "onnxruntime"), ("mu/4", "torch"))
    ]
    assert [(one["variant"], one["runtime"], one["reason"]) for one in data["failed"]] == [
        ("tiny", "torch", "PyTorch takes variants, no artifacts.")
    ]
    for row in data["rows"]:
        assert 0 < row["p50_ms"]["low"] <= row["p50_ms"]["value"] <= row["p50_ms"]["high"]
        assert row["p50_ms"]["value"] <= row["p90_ms"]["value"] <= row["p99_ms"]["value"]
        assert row["images_per_second"]["value"] == pytest.approx(row["process_images_per_second"][0])
        assert row["first_ms"] > 0
        assert row["matmul_flops"] > 1e8
        assert row["cosine"] > 0.999
        assert row["peak_memory_bytes"] > 1e7
        assert row["weights"] == "random"
    assert read_measured(out).to_json() == data, "what is written is what is read"
    assert data["conditions"]["cores"] >= 1
    assert data["conditions"]["packages"]["onnxruntime"]
    assert "quick run" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("end", "number"),
    [
        (os.killpg, signal.SIGINT),  # as from a terminal: it reaches the process that measures just then too
        (os.kill, signal.SIGTERM),  # as from a supervisor
    ],
)
def test_whoever_ends_it_keeps_what_is_finished(
    exported: Artifact, tmp_path: Path, end: Callable[[int, int], None], number: int
) -> None:
    out = tmp_path / "latency.json"
    words = ["bench", "latency", str(exported.folder), "--rounds", "5", "--seconds", "0", "--processes", "999"]
    with subprocess.Popen(
        [sys.executable, "-m", "sovit", *words, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    ) as process:
        deadline = time.monotonic() + 120
        while not out.is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        end(process.pid, number)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    with pytest.raises(ProcessLookupError):  # nobody of its group is left, as soon as the system has buried them
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.1)
    assert "incomplete run" in " ".join(said.split())
    found = read_measured(out)
    assert not found.complete
    assert found.flaws == ["an incomplete run: it was interrupted"]
    assert found.rows[0].processes >= 1
    assert found.rows[0].runs == 5 * found.rows[0].processes


def test_a_place_that_cannot_be_written_is_named_before_anything_is_measured(
    exported: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out, words in ((tmp_path / "no" / "a.json", "does not exist"), (tmp_path, "it is a folder")):
        assert main(["bench", "latency", str(exported.folder), "--out", str(out)]) == 2
        assert words in " ".join(capsys.readouterr().err.split())


def test_more_threads_than_cores_and_a_file_to_keep_exports_in_are_refused(
    exported: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = str(exported.folder / "manifest.json")
    for more, words in ((["--threads", "100000"], "must be at most"), (["--keep", manifest], "is no folder")):
        assert main(["bench", "latency", str(exported.folder), "--quick", *more]) == 2
        assert words in " ".join(capsys.readouterr().err.split())


def test_the_table_fits_eighty_columns(capsys: pytest.CaptureFixture[str], exported: Artifact) -> None:
    (measured,), _, _ = measure([case(exported)], replace(SETTINGS, batch=(1,)), lambda _: None)
    # Set by hand: what a fast machine measures of a tiny model can have any number of decimals.
    quick, wide = Estimate(0.412, 0.398, 0.433), Estimate(4_316.0, 3_814.0, 4_572.0)
    row = replace(
        measured, p50_ms=quick, p90_ms=quick, p99_ms=quick, images_per_second=Estimate(2_427.0, 2_309.0, 2_513.0),
        achieved_flops=0.5e12, matmul_flops=1e12,
    )  # fmt: skip
    slow = replace(
        row, variant="So150m-896/16", p50_ms=wide, p90_ms=wide, p99_ms=wide, peak_memory_bytes=23_500 * 10**6
    )
    Console(width=80).print(table_of("all", [row, slow]))
    shown = capsys.readouterr().out
    for words in ("So150m-896/16", f"{row.runtime} fp32", "3,814\u20134,572", "23,500"):
        assert words in shown


def test_the_same_artifact_twice_is_refused(exported: Artifact, tmp_path: Path) -> None:
    shutil.copytree(exported.folder, tmp_path / "again")
    with pytest.raises(ConfigError, match=r"are both tiny in fp32: .*bench compare"):
        cases([str(exported.folder), str(tmp_path / "again")], asked(tmp_path), lambda _: None)


def test_conditions_name_the_machine_but_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sovit"])  # of the command that is the user's
    monkeypatch.setattr(sys, "orig_argv", ["sovit"])
    found = conditions()
    assert found["processor"]
    assert str(Path.home()) not in json.dumps(found)
