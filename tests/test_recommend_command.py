"""`sovit shape recommend` as a user meets it: what is told, in which order, and what is refused."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import sovit.laws.advice.command
from sovit.cli import _print
from sovit.commands.shape_recommend import add_recommend
from sovit.config import ViTConfig, by_number, variant_config
from sovit.cost import cost
from sovit.errors import ConfigError
from sovit.jsonio import from_dict
from sovit.laws.advice.device import Measurement, Question, read_device
from sovit.laws.advice.recommend import Recommendation
from sovit.laws.form import DIMENSIONS
from sovit.laws.law_file import write_law
from tests.recommend_law import TRAIN, TRAINING, law_file, small_law
from tests.test_recommend_device import measurement
from train.settings import recipe


@pytest.fixture
def law(tmp_path: Path) -> Path:
    path = tmp_path / "law.json"
    write_law(path, law_file())
    return path


@pytest.fixture
def benches(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was measured, by a stand-in of `sovit bench latency` on a machine of 10 GFLOPs a millisecond."""
    calls: list[list[str]] = []

    def bench(shapes: Sequence[str], question: Question, load_average: float) -> tuple[Measurement, ...]:
        calls.append(list(shapes))
        found = []
        for shape in shapes:
            ms = 0.1 + cost(variant_config(shape, image_size=question.image_size)).flops * question.batch / 1e10
            times = {"p50_ms": ms, "low_ms": ms, "high_ms": ms}
            found.append(measurement(shape=shape, batch=question.batch, precision=question.precision, **times))
        return tuple(found)

    monkeypatch.setattr(sovit.laws.advice.command, "bench", bench)
    return calls


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    parser = argparse.ArgumentParser()
    add_recommend(parser.add_subparsers())
    arguments = parser.parse_args(["recommend", *words])
    result = arguments.run(arguments)
    assert result.exit_code == 0
    _print(result, as_json=arguments.json)
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(asked(capsys, *words, "--json"))
    return found


def test_what_the_law_is_worth_comes_before_any_advice(capsys: pytest.CaptureFixture[str], law: Path) -> None:
    text = " ".join(asked(capsys, str(law), "--train-flops", str(TRAIN)).split())
    order = [
        "held out: the 12 points of most compute",
        "mean error of 2.1%",
        "each of 17 shapes left out and predicted by the others: median error 1.3%, at most 4.0%.",
        "warning: intervals of 17 runs may be too narrow.",
        "compute: 1.5e+13 FLOPs forward and backward (3 times forward), which are 5e+12 forward only",
        "best shape: ",
        "80 % in",
        "95 % in",
        "the front, from cheap to good",
        "known shapes at the same budget",
        "So400m/8*",
        "g/8*",
        "train it as the runs were:",
        "sovit train cifar10 --data DATA --out RUN",
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places)


def test_json_holds_all_of_it(capsys: pytest.CaptureFixture[str], law: Path) -> None:
    data = as_json(capsys, str(law), "--train-flops", str(TRAIN))
    assert data["held_out"]["mean_error"] == 0.021
    assert data["compute"] == {"train_flops": TRAIN, "forward_flops": TRAIN / 3}
    assert data["warnings"] == ["intervals of 17 runs may be too narrow."]
    assert data["latencies"] is None
    fields = ("budget", "axis", "candidates", "within", "front", "elsewhere", "known")
    found = from_dict(Recommendation, {name: data[name] for name in fields}, "x")
    assert data["best"] == data["front"][-1]
    assert found.best.error is not None
    t = TRAIN / 3e9
    best = found.best.config
    assert data["optimum"] == dict(zip(DIMENSIONS, small_law().optimum(t).tolist(), strict=True))
    assert found.best.error.value == float(small_law().predict([best.width, best.depth, best.mlp_dim], t))


def test_the_settings_train_the_shape_as_the_runs_were(capsys: pytest.CaptureFixture[str], law: Path) -> None:
    data = as_json(capsys, str(law), "--train-flops", str(TRAIN))
    config = recipe(data["train"]["recipe"], data["train"]["settings"])
    best = data["best"]["config"]
    assert (config.width, config.depth, config.mlp_dim) == (best["width"], best["depth"], best["mlp_dim"])
    assert (config.num_heads, config.patch_size, config.pool) == (best["num_heads"], best["patch_size"], best["pool"])
    assert list(config.image_size) == best["image_size"]
    images = config.steps * config.batch_size
    assert 3 * images * data["best"]["cost"]["flops"] == pytest.approx(TRAIN, rel=1e-3)
    assert (config.batch_size, config.learning_rate, config.mup_depth, config.ema) == (256, 1.5e-3, (128, 8, 256), 0)
    assert (config.schedule, config.cooldown_steps) == ("rsqrt", round(0.2 * config.steps))


def test_the_command_is_one_that_a_shell_takes(capsys: pytest.CaptureFixture[str], law: Path) -> None:
    words = [str(law), "--train-flops", str(TRAIN)]
    said = asked(capsys, *words).partition("train it as the runs were:\n")[2]
    assert max(map(len, said.splitlines())) < 80
    typed = shlex.split(said.replace("\\\n", " "))
    assert typed[:7] == ["sovit", "train", "cifar10", "--data", "DATA", "--out", "RUN"]
    assert typed[8::2] == as_json(capsys, *words)["train"]["settings"]
    assert set(typed[7::2]) == {"--set"}


def test_a_law_that_tells_no_best_size_gives_no_advice(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    law = small_law()
    nothing = replace(law, **{name: replace(getattr(law, name), alpha=0.0) for name in DIMENSIONS})
    path = tmp_path / "law.json"
    write_law(path, law_file(fit=replace(law_file().fit, law=nothing)))
    data = as_json(capsys, str(path), "--train-flops", str(TRAIN))
    assert len(data["front"]) == 1
    assert (
        "only one shape was looked at, the one that most runs have: this is its cost, and no advice."
        in data["warnings"]
    )


def test_the_warm_up_is_that_of_the_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Theirs is a fraction of their shortest horizon, and would be another of this training's length."""
    path = tmp_path / "law.json"
    write_law(path, law_file(training=replace(TRAINING, warmup_steps=50, settings=("warmup_fraction=0.1", "ema=0"))))
    settings = as_json(capsys, str(path), "--train-flops", str(TRAIN))["train"]["settings"]
    assert [one for one in settings if one.startswith("warmup")] == ["warmup_steps=50"]
    assert "ema=0" in settings
    short = as_json(capsys, str(path), "--train-flops", "1e9")["train"]["settings"]
    config = recipe("cifar10", short)
    assert config.warmup_steps + config.cooldown_steps <= config.steps


def test_without_a_recipe_in_the_table_it_is_left_open(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "law.json"
    write_law(path, law_file(training=None))
    assert "train it by a recipe of yours: sovit train RECIPE" in " ".join(
        asked(capsys, str(path), "--train-flops", str(TRAIN)).split()
    )


def test_under_a_latency_only_measured_shapes_are_recommended(
    capsys: pytest.CaptureFixture[str], law: Path, tmp_path: Path, benches: list[list[str]]
) -> None:
    device = tmp_path / "measured.json"
    words = [str(law), "--train-flops", str(TRAIN), "--max-latency-ms", "2", "--batch", "4", "--device", str(device)]
    data = as_json(capsys, *words, "--measure", "9", "--precision", "bf16")
    measured = [shape for call in benches for shape in call]
    assert 3 <= len(measured) == len(set(measured)) <= 9
    assert {row.shape for row in read_device(device).rows} == set(measured)
    assert {(row.batch, row.precision) for row in read_device(device).rows} == {(4, "bf16")}
    assert data["axis"] == "latency_ms"
    assert {one["name"] for one in data["front"]} <= set(measured)
    assert all(0 < one["latency_ms"] <= 2 for one in data["front"])
    assert all(one["latency_ms"] is None for one in data["known"])
    assert data["latencies"]["new"] == len(measured)
    assert data["latencies"]["model"]["max_error"] < 1e-4
    benches.clear()
    again = as_json(capsys, *words, "--measure", "9", "--precision", "bf16")
    assert benches == []
    assert again["front"] == data["front"]
    assert again["latencies"]["new"] == 0


def test_known_shapes_are_measured_when_asked(
    capsys: pytest.CaptureFixture[str], law: Path, tmp_path: Path, benches: list[list[str]]
) -> None:
    words = [str(law), "--train-flops", str(TRAIN), "--max-latency-ms", "2", "--device", str(tmp_path / "m.json")]
    text = " ".join(asked(capsys, *words).split())
    assert "known shapes without milliseconds were not measured here: --measure-known does it" in text
    benches.clear()
    known = as_json(capsys, *words, "--measure-known")["known"]
    names = [by_number(from_dict(ViTConfig, one["config"], "x")) for one in known]
    assert benches[-4:] == [[name] for name in names]
    assert all(one["latency_ms"] == pytest.approx(0.1 + one["cost"]["flops"] / 1e10, rel=1e-3) for one in known)
    assert "--measure-known" not in asked(capsys, *words)


def test_few_measurements_are_spent_and_what_they_miss_is_told(
    capsys: pytest.CaptureFixture[str], law: Path, tmp_path: Path, benches: list[list[str]]
) -> None:
    words = [str(law), "--train-flops", str(TRAIN), "--max-latency-ms", "2", "--device", str(tmp_path / "m.json")]
    few = as_json(capsys, *words, "--measure", "3")
    assert sum(map(len, benches)) == 3
    missed = [one for one in few["warnings"] if "may be better within the limit and was not measured" in one]
    enough = as_json(capsys, *words, "--measure", "12")
    assert not any("was not measured" in one for one in enough["warnings"])
    best = [found["best"]["error"]["value"] for found in (few, enough)]
    assert best[1] <= best[0]
    assert bool(missed) == (best[1] < best[0])


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("setting", {"head_dim": 0}),
        ("setting", {"multiple": 10**12}),
        ("training", {"batch_size": 0}),
        ("training", {"cooldown": 1.5}),
        ("training", {"learning_rate": 0}),
        ("seen", {"shapes": []}),
        ("seen", {"shapes": [[0, 1, 1]]}),
        ("seen", {"images": -1}),
    ],
)
def test_a_law_that_was_edited_is_told(
    capsys: pytest.CaptureFixture[str], law: Path, part: str, changes: dict[str, Any]
) -> None:
    data = json.loads(law.read_text())
    data[part] |= changes
    law.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=str(law)):
        asked(capsys, str(law), "--train-flops", "1e13")


def test_latencies_are_told(
    capsys: pytest.CaptureFixture[str], law: Path, tmp_path: Path, benches: list[list[str]]
) -> None:
    device = tmp_path / "measured.json"
    words = [str(law), "--train-flops", str(TRAIN), "--max-latency-ms", "2", "--device", str(device)]
    text = " ".join(asked(capsys, *words).split())
    assert "note: latencies are medians of batches of 1 in fp32 by onnxruntime" in text
    assert "what is recommended was measured" in text
    assert " ms for a batch of 1" in text
    measured = sum(map(len, benches))
    assert f"{measured} shapes measured, {measured} of them now" in text


def test_the_other_limits_come_before_measuring(
    capsys: pytest.CaptureFixture[str], law: Path, tmp_path: Path, benches: list[list[str]]
) -> None:
    words = [str(law), "--train-flops", str(TRAIN), "--max-latency-ms", "2", "--device", str(tmp_path / "m.json")]
    with pytest.raises(ConfigError, match="--max-params would have to be"):
        asked(capsys, *words, "--max-params", "10")
    assert benches == []
    asked(capsys, *words, "--max-params", "2e5")
    configs = [variant_config(shape, image_size=(32, 32)) for call in benches for shape in call]
    assert configs
    assert all(cost(config).parameters <= 2e5 for config in configs)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train-flops", "0"], "--train-flops is 0"),
        (["--train-flops", "nan"], "--train-flops is nan"),
        (["--train-flops", "-1e15"], "--train-flops is"),
        (["--train-flops", "1e13", "--max-latency-ms", "2"], "--max-latency-ms needs --device"),
        (["--train-flops", "1e13", "--device", "m.json"], "--device is about measuring: it goes with --max-latency-ms"),
        (["--train-flops", "1e13", "--precision", "bf16"], "--precision is about measuring"),
        (["--train-flops", "1e13", "--measure", "3"], "--measure is about measuring"),
        (["--train-flops", "1e13", "--batch", "8"], "--batch is that of a latency or of memory"),
        (
            ["--train-flops", "1e13", "--measure", "-1", "--max-latency-ms", "1", "--device", "m.json"],
            "--measure is -1",
        ),
        (
            ["--train-flops", "1e13", "--measure", "2", "--max-latency-ms", "1", "--device", "m.json"],
            "--measure 2 is too few: what to measure next is told by 3 shapes or more, and m.json has 0",
        ),
        (["--train-flops", "1e308"], "--train-flops is 1e\\+308, it must be above 0 and at most"),
        (["--train-flops", "1e13", "--lifetime-images", "1e305"], "--lifetime-images is 1e\\+305"),
        (["--train-flops", "1e13", "--anchor", "So400m"], "--anchor belongs to the law `paper`"),
        (["--train-flops", "1e13", "--anchor-flops", "1e9"], "--anchor-flops belongs to the law `paper`"),
        (["--train-flops", "1e13", "--lifetime-images", "nan"], "--lifetime-images is nan"),
        (["--train-flops", "1e13", "--margin", "0"], "the margin is 0"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], law: Path, words: list[str], message: str) -> None:
    # A negative number in exponent notation is an option to argparse unless it is joined.
    joined = [f"{name}={value}" for name, value in zip(words[::2], words[1::2], strict=True)]
    with pytest.raises(ConfigError, match=message):
        asked(capsys, str(law), *joined)


def test_a_law_that_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        asked(capsys, str(tmp_path / "law.json"), "--train-flops", "1e13")
    with pytest.raises(ConfigError, match="looks like a table of runs: `sovit shape fit`"):
        asked(capsys, str(tmp_path / "runs.jsonl"), "--train-flops", "1e13")
    (tmp_path / "measured.json").write_text('{"machine": {}, "rows": []}')
    with pytest.raises(ConfigError, match="is no law: `sovit shape fit` writes one"):
        asked(capsys, str(tmp_path / "measured.json"), "--train-flops", "1e13")


def test_the_paper_gives_its_anchor_back(capsys: pytest.CaptureFixture[str]) -> None:
    data = as_json(capsys, "paper", "--train-flops", "5e21", "--anchor", "So400m", "--anchor-flops", "5e21")
    assert data["tau"] == 1
    config = data["config"]
    assert (config["width"], config["depth"], config["mlp_dim"]) == (1152, 27, 4304)
    assert data["compute"]["forward_flops"] == 5e21 / 3
    assert data["images"] * 3 * data["cost"]["flops"] == pytest.approx(5e21)


def test_the_paper_scales_by_its_exponents(capsys: pytest.CaptureFixture[str]) -> None:
    data = as_json(capsys, "paper", "--train-flops", "8e21", "--anchor", "x0", "--anchor-flops", "1e21")
    assert data["tau"] == 8
    assert data["sizes"] == pytest.approx([608 * 8 ** (0.22 / 3), 10 * 8**0.15, 928 * 8**0.2])
    config = data["config"]
    assert config["width"] % 64 == config["mlp_dim"] % 8 == 0
    assert config["num_heads"] == config["width"] // 64
    assert "do not lead from the paper's x0" in data["caveat"]


def test_the_papers_reference_is_told_and_the_caveat_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(asked(capsys, "paper", "--train-flops", "1e22").split())
    order = ["no error is predicted", "warning: The published exponents do not lead", "compute: 1e+22", "scaled from"]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert "that of g/14 on 16 billion images" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train-flops", "-1"], "--train-flops is -1"),
        (["--train-flops", "1e-300"], "does not pay for one image"),
        (["--train-flops", "1e22", "--anchor-flops", "0"], "--anchor-flops is 0"),
        (["--train-flops", "1e22", "--anchor", "x0"], "the compute of the anchor x0 is not published"),
        (["--train-flops", "1e22", "--anchor", "L"], "no anchor is called 'L'"),
        (["--train-flops", "1e22", "--max-params", "1e6"], "--max-params cannot be kept by the law `paper`"),
        (["--train-flops", "1e22", "--lifetime-images", "1e6"], "--lifetime-images cannot be kept"),
        (["--train-flops", "1e22", "--max-params", "0"], "--max-params cannot be kept"),
        (["--train-flops", "1e22", "--device", "m.json"], "--device cannot be kept"),
        (["--train-flops", "1e22", "--batch", "8"], "--batch cannot be kept"),
        (["--train-flops", "1e22", "--precision", "fp32"], "--precision cannot be kept"),
        (["--train-flops", "1e22", "--measure", "0"], "--measure cannot be kept"),
        (["--train-flops", "1e22", "--measure-known"], "--measure-known cannot be kept"),
        (["--train-flops", "1e22", "--margin", "2"], "--margin cannot be kept"),
        (["--train-flops", "1e22", "--multiple", "0"], "the multiple of MLP sizes is 0"),
    ],
)
def test_what_the_paper_cannot_do(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        asked(capsys, "paper", *words)
