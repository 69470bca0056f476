"""What a machine measured, the model that is made of it, and the choice of what to measure next."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sovit.laws.advice.device_bench
from sovit.config import variant_config
from sovit.cost import cost
from sovit.errors import ConfigError, ServiceError
from sovit.jsonio import from_dict, read_json, to_dict, write_json
from sovit.laws.advice.budget import Budget
from sovit.laws.advice.device import Device, Measurement, Question, cautions, read_device, write_device
from sovit.laws.advice.device_bench import bench
from sovit.laws.advice.device_model import DeviceModel, fit_device
from sovit.laws.advice.measure import device_model, measure_towards
from sovit.laws.advice.recommend import errors
from sovit.machine import this_machine
from tests.recommend_law import TRAIN, small_candidates, small_law

CANDIDATES = small_candidates()
ERROR_P = errors(small_law(), CANDIDATES, Budget(train_flops=100 * TRAIN))
QUESTION = Question((32, 32), 1, "fp32")
DEVICE = DeviceModel(
    fixed=0.05, layer=0.03, projections=12.0, mlp=7.0, attention=40.0, shapes=0, mean_error=0.0, max_error=0.0
)


def measurement(**changes: Any) -> Measurement:
    row: dict[str, Any] = {
        "shape": "128,8,256,8/8", "image_size": (32, 32), "batch": 1, "precision": "fp32", "runtime": "onnxruntime",
        "threads": 2, "p50_ms": 1.0, "low_ms": 0.9, "high_ms": 1.2, "runs": 10, "processes": 1, "warmed": True,
        "time": "2026-01-01T00:00:00+00:00", "load_average": 0.1,
    }  # fmt: skip
    return Measurement(**row | changes)


def test_the_model_finds_a_device_that_is_one() -> None:
    rng = np.random.default_rng(0)
    chosen = [CANDIDATES[index].config for index in rng.choice(len(CANDIDATES), 12, replace=False)]
    found = fit_device(chosen, DEVICE.predict(chosen).tolist())
    for name in ("fixed", "layer", "projections", "mlp", "attention"):
        assert getattr(found, name) == pytest.approx(getattr(DEVICE, name), rel=1e-5), name
    assert found.shapes == 12
    assert found.max_error < 1e-6
    everything = [one.config for one in CANDIDATES]
    assert found.predict(everything) == pytest.approx(DEVICE.predict(everything), rel=1e-6)
    assert from_dict(DeviceModel, to_dict(found), "x") == found


def test_the_models_parts_are_all_of_the_flops() -> None:
    per_flop = replace(DEVICE, fixed=0.0, layer=0.0, projections=1.0, mlp=1.0, attention=1.0)
    for text in ("So400m/14", "128,8,256,8,gap/8", "So150m2/16"):
        config = variant_config(text)
        assert per_flop.predict([config])[0] == pytest.approx(cost(config).flops / 1e9)


@settings(max_examples=20)
@given(st.integers(3, 20), st.floats(0.01, 0.2), st.integers(0, 1000))
def test_no_part_is_negative_and_the_error_is_that_of_each_left_out(count: int, noise: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    chosen = [CANDIDATES[index].config for index in rng.choice(len(CANDIDATES), count, replace=False)]
    latency = DEVICE.predict(chosen) * np.exp(noise * rng.normal(size=count))
    found = fit_device(chosen, latency.tolist())
    assert min(found.fixed, found.layer, found.projections, found.mlp, found.attention) >= 0
    if count > 6:  # below, parts are left open, and any answer is as good
        off = []
        for index in range(count):
            others = [config for place, config in enumerate(chosen) if place != index]
            without = fit_device(others, np.delete(latency, index).tolist())
            off.append(abs(without.predict([chosen[index]])[0] / latency[index] - 1))
        assert (found.mean_error, found.max_error) == pytest.approx((np.mean(off), np.max(off)), rel=1e-3, abs=1e-6)


def test_too_few_shapes_make_no_model() -> None:
    config = CANDIDATES[0].config
    with pytest.raises(ConfigError, match="3 shapes or more"):
        fit_device([config] * 2, [1.0, 1.0])
    assert device_model(CANDIDATES, {CANDIDATES[0].name: 1.0, "of another law": 2.0}) is None


class Machine:
    """Measures by the model above, and remembers what it was asked."""

    def __init__(self, broken: Sequence[str] = ()) -> None:
        self.calls: list[list[str]] = []
        self.broken = broken

    @property
    def asked(self) -> list[str]:
        return [name for call in self.calls for name in call]

    def measure(self, names: Sequence[str]) -> Mapping[str, float]:
        self.calls.append(list(names))
        return {
            name: float(DEVICE.predict([variant_config(name, image_size=(32, 32))])[0])
            for name in names
            if name not in self.broken
        }

    def of_all(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        return DEVICE.predict([variant_config(one.name, image_size=(32, 32)) for one in CANDIDATES])


@pytest.mark.parametrize("limit", [0.25, 0.5, 1.0, 100.0])
def test_few_measurements_find_the_best_within_a_limit(limit: float) -> None:
    machine = Machine()
    found = measure_towards(CANDIDATES, ERROR_P, limit, {}, machine.measure, 12)
    assert len(machine.asked) == len(set(machine.asked)) == len(found) <= 12
    within = machine.of_all() <= limit
    best = min(ERROR_P[index] for index, one in enumerate(CANDIDATES) if found.get(one.name, math.inf) <= limit)
    assert best <= ERROR_P[within].min() * 1.005


def test_what_is_known_is_not_measured_again() -> None:
    first, again = Machine(), Machine()
    found = measure_towards(CANDIDATES, ERROR_P, 0.5, {}, first.measure, 12)
    assert len(found) == len(first.asked)
    assert measure_towards(CANDIDATES, ERROR_P, 0.5, found, again.measure, 12) == found
    assert again.calls == []
    other = measure_towards(CANDIDATES, ERROR_P, 0.8, found, again.measure, 12)
    assert set(found) < set(other)
    assert not set(found) & set(again.asked)


def test_nothing_is_measured_where_nothing_may_be() -> None:
    machine = Machine()
    assert measure_towards(CANDIDATES, ERROR_P, 0.5, {"x": 1.0}, machine.measure, 0) == {"x": 1.0}
    assert machine.calls == []


def test_a_short_front_does_not_leave_measurements_unspent() -> None:
    """Here the cheapest is the best, so it is all of the front: two more make a model of the device."""
    machine = Machine()
    few = sorted(CANDIDATES, key=lambda one: one.cost.flops)[::40][:6]
    found = measure_towards(few, np.linspace(0.1, 0.2, 6), 100.0, {}, machine.measure, 3)
    assert list(found) == [one.name for one in few[:3]]


def test_what_is_far_too_slow_is_left_alone() -> None:
    """The dearest of the front are not measured for a limit that the cheaper ones pass already."""
    machine = Machine()
    measure_towards(CANDIDATES, ERROR_P, 0.2, {}, machine.measure, 40)
    flops = [cost(variant_config(name, image_size=(32, 32))).flops for name in machine.asked]
    assert max(flops) < max(one.cost.flops for one in CANDIDATES) / 3


def test_what_fails_is_passed_over() -> None:
    honest = Machine()
    measure_towards(CANDIDATES, ERROR_P, 0.5, {}, honest.measure, 12)
    broken = Machine(honest.asked[:2] + honest.asked[-2:])
    found = measure_towards(CANDIDATES, ERROR_P, 0.5, {}, broken.measure, 12)
    assert len(broken.asked) == len(set(broken.asked)) <= 12
    assert not set(found) & set(broken.broken)
    assert min(found.values()) <= 0.5


def test_a_file_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    assert read_device(path) == Device(machine=this_machine())
    one, other = measurement(), measurement(shape="64,8,256,4,gap/8", batch=4)
    device = read_device(path).added([one, other])
    write_device(path, device)
    assert read_device(path) == device
    assert device.answers(QUESTION) == {one.shape: one}
    assert device.answers(Question((32, 32), 4, "fp32")) == {other.shape: other}
    newer = measurement(p50_ms=1.1)
    assert device.added([newer]).answers(QUESTION) == {one.shape: newer}
    assert [path.name for path in tmp_path.iterdir()] == ["measured.json"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("processor", "Another CPU", "was measured elsewhere .*processor Another CPU, here"),
        ("gpu", "Another GPU", "gpu Another GPU, here"),
        ("cores", 512, "cores 512, here"),
        ("engines", {"onnxruntime": "0.1"}, "engines .*0.1"),
    ],
)
def test_another_machines_file_is_refused(tmp_path: Path, field: str, value: object, message: str) -> None:
    path = tmp_path / "measured.json"
    write_device(path, Device(machine=replace(this_machine(), **{field: value}), rows=(measurement(),)))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        read_device(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": "So400"}, "no variant is called"),
        ({"shape": "1,2,3/8"}, "has 3 numbers"),
        ({"p50_ms": 0.0}, "must be above 0 and within its interval"),
        ({"low_ms": -1.0}, "must be above 0 and within its interval"),
        ({"high_ms": 0.5}, "must be above 0 and within its interval"),
        ({"batch": 0}, "must be at least 1"),
        ({"precision": "fp64"}, "precision"),
        ({"p50_ms": "fast"}, "p50_ms"),
        ({"colour": "red"}, "unknown field"),
    ],
)
def test_rows_that_are_none(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "measured.json"
    data = to_dict(Device(machine=this_machine(), rows=(measurement(),)))
    data["rows"][0] |= changes
    write_json(path, data)
    with pytest.raises(ConfigError, match=message):
        read_device(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        read_device(path)
    write_json(path, {"benchmark": "latency", "schema_version": 3})
    with pytest.raises(ConfigError, match="is a result of `sovit bench`"):
        read_device(path)
    write_json(path, {"schema_version": 2, "machine": to_dict(this_machine()), "rows": []})
    with pytest.raises(ConfigError, match="schema_version"):
        read_device(path)
    write_json(path, {"fit": {}, "laws": []})
    with pytest.raises(ConfigError, match="holds no latencies of a machine"):
        read_device(path)
    with pytest.raises(ConfigError, match="could not be written"):
        read_device(tmp_path / "nowhere" / "measured.json")
    with pytest.raises(ConfigError, match=r"128,8,256,8/8 is there twice for images of 32x32, batch 1, fp32"):
        Device(machine=this_machine(), rows=(measurement(), measurement()))


def test_what_may_have_disturbed_them_is_said() -> None:
    machine = this_machine()
    assert cautions([measurement()], machine) == ()
    busy = measurement(load_average=machine.cores + 1.0)
    restless = measurement(warmed=False)
    assert cautions([busy, busy, restless], machine) == (
        "the machine was busy before the measurement of 128,8,256,8/8 and 1 more: measure anew when it is not.",
        "the medians of 128,8,256,8/8 still moved when warm-up ended.",
    )


# Stands in for `sovit`: writes what `sovit bench latency` would, and what it was called with.
STAND_IN = """
import json, sys
words = sys.argv[1:]
json.dump(words, open({called!r}, "w"))
at = words.index("--image-size")
shapes, out = words[2:at], words[words.index("--out") + 1]
size = [int(side) for side in words[at + 1].split("x")]
row = dict(image_size=size, runtime="onnxruntime", precision=words[words.index("--precision") + 1],
           batch=int(words[words.index("--batch") + 1]), threads=2, processes=1, runs=10, warmed=True, weights="random",
           p50_ms=dict(value=1.5, low=1.4, high=1.7))
rows = [dict(row, variant=shape) for shape in shapes if not shape.startswith("16,")]
print("a table")
{last}
json.dump(dict(benchmark="latency", conditions=dict(time="now", load_average=[9.0]), rows=rows), open(out, "w"))
sys.exit(len(rows) < len(shapes))
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN.format(called=str(tmp_path / "called.json"), last=""))
    monkeypatch.setattr(sovit.laws.advice.device_bench, "_PROGRAM", (sys.executable, str(script)))
    return script


def test_shapes_are_measured_by_sovit_bench(stand_in: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shapes = ["128,8,256,8,gap/8", "64,8,256,4/8"]
    rows = bench(shapes, Question((32, 48), 4, "bf16"), 0.2)
    assert [row.shape for row in rows] == shapes
    assert rows[0] == measurement(
        shape=shapes[0], image_size=(32, 48), batch=4, precision="bf16", p50_ms=1.5, low_ms=1.4, high_ms=1.7,
        time="now", load_average=0.2,
    )  # fmt: skip
    words = read_json(stand_in.parent / "called.json")
    assert words[:4] == ["bench", "latency", *shapes]
    assert " ".join(words[4:-1]) == "--image-size 32x48 --batch 4 --precision bf16 --quick --out"
    assert capfd.readouterr().out == ""


def test_a_shape_that_fails_is_missing_among_the_others(stand_in: Path) -> None:
    assert [row.shape for row in bench(["16,8,256,1/8", "64,8,256,4/8"], QUESTION, 0.0)] == ["64,8,256,4/8"]


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ("sys.exit(2)", "ended with status 2 and no latencies"),
        ("sys.exit(0)", "ended with status 0 and no latencies"),
        ("sys.exit(130)", "ended with status 130 and no latencies"),
    ],
)
def test_measuring_that_fails_is_said(stand_in: Path, last: str, message: str) -> None:
    stand_in.write_text(STAND_IN.format(called=str(stand_in.parent / "called.json"), last=last))
    with pytest.raises(ServiceError, match=message):
        bench(["64,8,256,4/8"], QUESTION, 0.0)


def test_a_result_that_is_none_is_said(stand_in: Path) -> None:
    last = "json.dump({}, open(out, 'w')); sys.exit(0)"
    stand_in.write_text(STAND_IN.format(called=str(stand_in.parent / "called.json"), last=last))
    with pytest.raises(ConfigError, match="the result of `sovit bench latency`: conditions: missing"):
        bench(["64,8,256,4/8"], QUESTION, 0.0)


@pytest.mark.slow
def test_the_real_bench_measures_shapes_by_number() -> None:
    """In processes of its own, with an export each: half a minute."""
    rows = bench(["32,1,64,2,gap/8"], Question((16, 24), 2, "fp32"), 0.0)
    assert [(row.shape, row.image_size, row.batch) for row in rows] == [("32,1,64,2,gap/8", (16, 24), 2)]
    assert 0 < rows[0].p50_ms < 1000
    assert json.loads(json.dumps(to_dict(rows[0])))["shape"] == "32,1,64,2,gap/8"
