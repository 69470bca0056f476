from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from benchmarks.intervals import Estimate, ratio
from benchmarks.latency.compare import compare, verdict_of
from benchmarks.latency.compare_command import compare as command
from benchmarks.latency.result import SCHEMA_VERSION, Measured, read_measured
from sovit.errors import ConfigError

CONDITIONS = {
    "time": "2026-11-26T03:00:00+00:00",
    "command": "sovit bench latency So400m/14",
    "system": "Linux 6.1 x86_64",
    "processor": "AMD EPYC",
    "cores": 2,
    "memory": 24_000_000_000,
    "gpu": "",
    "gpu_driver": "",
    "load_average": [0.1, 0.2, 0.3],
    "python": "3.11.7",
    "sovit": "0.1.0",
    "packages": {"onnxruntime": "1.32.0", "openvino": "2026.4.1"},
}


FAILED = {
    "variant": "G/14",
    "image_size": [224, 224],
    "runtime": "openvino",
    "precision": "int8",
    "reason": "the memory ran out.",
}


def estimate(value: float, low: float | None = None, high: float | None = None) -> dict[str, float]:
    return {
        "value": value,
        "low": value * 0.98 if low is None else low,
        "high": value * 1.02 if high is None else high,
    }


def row(variant: str = "So400m/14", p50: float = 400.0, **changed: Any) -> dict[str, Any]:
    """A row as a result file has it, of `p50` milliseconds within 2 %."""
    size, batch = changed.get("image_size", [224, 224]), changed.get("batch", 1)
    found = {
        "variant": variant,
        "image_size": size,
        "runtime": "openvino",
        "precision": "fp32",
        "batch": batch,
        "threads": 2,
        "weights": "random",
        "processes": 3,
        "runs": 90,
        "warmup_runs": 7,
        "warmed": True,
        "first_ms": p50 * 3,
        "load_seconds": 1.5,
        "compile_seconds": None,
        "process_p50_ms": [p50, p50, p50],
        "process_images_per_second": [batch * 1e3 / p50] * 3,
        "peak_memory_bytes": 700_000_000,
        "achieved_flops": 2e11,
        "matmul_flops": 2.2e11,
        "joules_per_image": None,
        "cosine": 0.99999,
        "p50_ms": estimate(p50),
        "p90_ms": estimate(p50 * 1.1),
        "p99_ms": estimate(p50 * 1.2),
        "flops_per_image": 220_400_000_000,
        "mfu": None,
    }
    found |= changed
    found.setdefault(
        "images_per_second", estimate(batch * 1e3 / p50, batch * 1e3 / p50 / 1.02, batch * 1e3 / p50 / 0.98)
    )
    return found


def result_file(path: Path, rows: list[dict[str, Any]], **changed: Any) -> Path:
    """A result of `sovit bench latency`; what is `changed` may be a field of it or of its conditions."""
    data: dict[str, Any] = {
        "benchmark": "latency",
        "schema_version": SCHEMA_VERSION,
        "quick": False,
        "complete": True,
        "conditions": CONDITIONS | {name: value for name, value in changed.items() if name in CONDITIONS},
        "settings": {"batch": [1], "rounds": 30, "seconds": 5.0, "processes": 3, "threads": 2},
        "rows": rows,
        "failed": [],
    }
    data |= {name: value for name, value in changed.items() if name not in CONDITIONS}
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def measured(path: Path, rows: list[dict[str, Any]], **changed: Any) -> Measured:
    return read_measured(result_file(path, rows, **changed))


def test_a_ratio_by_hand() -> None:
    changed = ratio(Estimate(90, 88, 92), Estimate(100, 98, 102))
    assert changed.value == 0.9
    assert changed.low == pytest.approx(88 / 102)
    assert changed.high == pytest.approx(92 / 98)
    assert verdict_of(changed) == "faster"
    assert verdict_of(ratio(Estimate(100, 98, 102), Estimate(90, 88, 92))) == "slower"
    assert verdict_of(ratio(Estimate(90, 88, 99), Estimate(100, 98, 102))) == "no change beyond noise"
    assert verdict_of(Estimate(0.99, 0.9, 1.0)) == "no change beyond noise"  # 1 itself is no change


positive = st.floats(1e-3, 1e6)
estimates = (
    st.tuples(positive, positive, positive).map(sorted).map(lambda three: Estimate(three[1], three[0], three[2]))
)


@given(estimates, estimates, st.floats(0, 1), st.floats(0, 1))
def test_a_ratio_holds_every_quotient(one: Estimate, other: Estimate, share: float, other_share: float) -> None:
    found = ratio(one, other)
    inside = one.low + share * (one.high - one.low)
    other_inside = other.low + other_share * (other.high - other.low)
    assert found.low * (1 - 1e-9) <= inside / other_inside <= found.high * (1 + 1e-9)
    assert found.low <= found.value <= found.high


@given(estimates, estimates)
def test_whoever_overlaps_has_not_changed(one: Estimate, other: Estimate) -> None:
    there, back = verdict_of(ratio(one, other)), verdict_of(ratio(other, one))
    assert {there, back} in ({"faster", "slower"}, {"no change beyond noise"})
    if one.low <= other.high and other.low <= one.high:
        assert there == "no change beyond noise"


def test_rows_are_matched_by_what_they_are(tmp_path: Path) -> None:
    a = measured(tmp_path / "a.json", [row(p50=400), row("g/14", 1000), row("B/16", 70), row("L/16", 250)])
    b = measured(
        tmp_path / "b.json",
        [row("B/16", 80), row("g/14", 1001), row(p50=300), row("L/16", 250, batch=8), row("L/16", 250, threads=1)],
    )
    found = compare(a, b)
    assert [(change.row.variant, change.verdict) for change in found.changes] == [
        ("So400m/14", "faster"),
        ("g/14", "no change beyond noise"),
        ("B/16", "slower"),
    ]
    assert found.changes[0].ratio.value == pytest.approx(0.75)
    assert [str(key) for key in found.only_in_a] == ["L/16 at 224 px in openvino fp32, batch 1, 2 threads"]
    assert [(key.batch, key.threads) for key in found.only_in_b] == [(8, 2), (1, 1)]
    assert found.differences == []
    assert found.to_json()["comparable"] is True


@pytest.mark.parametrize(("what", "there"), [("processor", "Intel Xeon"), ("cores", 4), ("gpu", "NVIDIA L4")])
def test_another_machine_makes_it_void_and_says_so(
    tmp_path: Path, what: str, there: str | int, capsys: pytest.CaptureFixture[str]
) -> None:
    result_file(tmp_path / "a.json", [row()])
    result_file(tmp_path / "b.json", [row(p50=200)], **{what: there})
    result = command(argparse.Namespace(a=tmp_path / "a.json", b=tmp_path / "b.json"))
    assert result.data["comparable"] is False
    Console(width=200).print(result.text)
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("VOID")
    assert str(there) in first


def test_versions_and_settings_that_differ_are_named(tmp_path: Path) -> None:
    a = measured(tmp_path / "a.json", [row()])
    b = measured(
        tmp_path / "b.json",
        [row()],
        packages={"onnxruntime": "1.33.0", "torch": "2.13.0"},
        settings={"batch": [1], "rounds": 10, "seconds": 5.0, "processes": 3, "threads": 1},
    )
    found = compare(a, b)
    assert found.void == []
    assert {difference.what: (difference.a, difference.b) for difference in found.differences} == {
        "threads": ("2", "1"),
        "rounds": ("30", "10"),
        "onnxruntime": ("1.32.0", "1.33.0"),
        "openvino": ("2026.4.1", "not there"),
        "torch": ("not there", "2.13.0"),
    }


def test_other_weights_are_noted_and_another_model_is_not_compared(tmp_path: Path) -> None:
    a = measured(tmp_path / "a.json", [row(), row("g/14")])
    b = measured(tmp_path / "b.json", [row(weights="siglip"), row("g/14", 10, flops_per_image=1_000_000_000)])
    one, other = compare(a, b).changes
    assert (one.verdict, one.note) == ("no change beyond noise", "weights random and siglip")
    assert other.verdict == "not the same model"
    assert other.note == "220.400 and 1.000 GFLOPs per image"


def test_what_is_wrong_with_a_run_is_said(tmp_path: Path) -> None:
    a = measured(tmp_path / "a.json", [row()], quick=True, failed=[FAILED], load_average=[1.9, 1, 1])
    b = measured(tmp_path / "b.json", [row()], complete=False)
    assert compare(a, b).cautions == [
        "a.json: a quick run, not to be published",
        "a.json: not measured, or not in every process: G/14 at 224 px in openvino int8: the memory ran out.",
        "a.json: the machine was busy when the run began: load average 1.9 on 2 cores",
        "b.json: an incomplete run: it was interrupted",
    ]


def test_files_without_a_row_in_common(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result_file(tmp_path / "a.json", [row()])
    result_file(tmp_path / "b.json", [row("g/14")])
    result = command(argparse.Namespace(a=tmp_path / "a.json", b=tmp_path / "b.json"))
    Console(width=200).print(result.text)
    said = capsys.readouterr().out
    assert "No row is in both files." in said
    assert "only in a.json: So400m/14" in said
    json.dumps(result.data)


def test_too_few_processes_give_no_verdict(tmp_path: Path) -> None:
    a = measured(tmp_path / "a.json", [row(p50=400), row("g/14", 1000, processes=2)])
    b = measured(tmp_path / "b.json", [row(p50=300, processes=1), row("g/14", 2000)])
    assert [change.verdict for change in compare(a, b).changes] == ["too few processes"] * 2


def broken(**changed: Any) -> dict[str, Any]:
    return {"rows": [row(**changed)]}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"benchmark": "framework"}, "is a result of the benchmark 'framework', not of `sovit bench latency`"),
        ({"benchmark": 1}, "is no benchmark result"),
        ({"schema_version": 1}, "has schema_version 1, known is 3: measure it anew"),
        ({"schema_version": None}, "has schema_version None"),
        ({"rows": []}, "holds no rows"),
        ({"rows": [row(), row()]}, "holds So400m/14 at 224 px in openvino fp32, batch 1, 2 threads twice"),
        ({"rows": [{}]}, "rows.0.variant: missing"),
        ({"rows": 3}, "rows: Input should be"),
        (broken(p50_ms=estimate(float("nan"))), "rows.0.p50_ms.value: Input should be a finite number"),
        (broken(p50_ms=estimate(float("-inf"))), "rows.0.p50_ms.value: Input should be a finite number"),
        (broken(p50_ms=estimate(-1.0, -2.0, -0.5)), "p50_ms of So400m/14"),
        (broken(p50_ms=estimate(5.0, 6.0, 7.0)), "within its interval"),
        (broken(p99_ms=estimate(0.0)), "p99_ms of So400m/14"),
        (broken(images_per_second=estimate(2.0, 1.0, float("inf"))), "rows.0.images_per_second.high: Input should be"),
        (broken(flops_per_image=0), "FLOPs above 0"),
        (broken(flops_per_image=float("nan")), "flops_per_image"),
        (broken(image_size=[0, 0]), "an image size"),
        (broken(process_images_per_second=[2.5, 0.0, 2.5]), "of the processes of So400m/14"),
        (broken(process_p50_ms=[-1.0] * 3), "of the processes of So400m/14"),
        (broken(batch=0, images_per_second=estimate(2.5)), "must have a batch"),
    ],
)
def test_what_is_no_result_is_refused_in_a_sentence(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    path = result_file(tmp_path / "a.json", **({"rows": [row()]} | changed))
    with pytest.raises(ConfigError) as refused:
        read_measured(path)
    assert str(path) in str(refused.value)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"latency"', "null"])
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"a\.json"):
        read_measured(path)
    with pytest.raises(ConfigError, match="does not exist"):
        read_measured(tmp_path / "nowhere.json")
