"""`sovit shape fit`, from a table to a law and its page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sovit.cli import main
from sovit.jsonio import to_dict
from sovit.laws.law_file import read_law
from sovit.laws.runs import RunTable
from tests.recommend_law import small_law

ARMS = ((32, 48, 64, 96), (2, 3, 4, 6), (64, 88, 128, 176))
CENTRE = (128, 8, 256)
ROOT = Path(__file__).parents[1]


def table(path: Path, *, noise: float = 0.004, **common: Any) -> Path:
    """A star of 13 runs at four computes each, of a law that is known."""
    law, rng, rows = small_law(), np.random.default_rng(0), []
    shapes = [CENTRE] + [(*CENTRE[:k], size, *CENTRE[k + 1 :]) for k, arm in enumerate(ARMS) for size in arm]
    for number, (width, depth, mlp_dim) in enumerate(shapes):
        points = []
        for steps in (500, 1000, 2000, 4000):
            flops = 32.0 * depth * (4 * width**2 + 2 * width * mlp_dim) * 128 * steps
            error = float(law.predict((width, depth, mlp_dim), flops / 1e9) * np.exp(rng.normal(0, noise)))
            points.append({"steps": steps, "images": 128 * steps, "forward_flops": flops, "error": error})
        row = {
            "run": f"r{number}", "width": width, "depth": depth, "mlp_dim": mlp_dim, "num_heads": width // 16,
            "patch_size": 8, "image_size": [32, 32], "pool": "gap", "classes": 10, "data": "known", "points": points,
        }  # fmt: skip
        rows.append(row | common)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fit(*words: object) -> int:
    return main(["shape", "fit", *map(str, words), "--starts", "40", "--replicates", "60"])


class Tags(HTMLParser):
    """Counts elements; every one that opens must close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_table_becomes_a_law_with_intervals_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = table(tmp_path / "runs.jsonl")
    assert fit(runs, "-o", tmp_path / "law.json", "--report", tmp_path / "law.html") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert re.search(r"held out: the \d+ points of most compute, up to [\d.]+ times", told)
    assert told.index("held out") < told.index("s_width")
    assert "with the backward pass" in told
    assert re.search(r"each of 13 shapes left out and predicted by the others: median error 0\.\d%", told)
    assert "intervals of 13 runs of 13 shapes may be too narrow" in told
    law = read_law(tmp_path / "law.json")
    assert (law.setting.head_dim, law.setting.multiple, law.setting.pool) == (16, 8, "gap")
    assert (law.seen.sizes("width"), law.seen.usual("width"), len(law.seen.shapes)) == ((32, 128), 128, 13)
    assert law.training is None
    assert len(law.laws) == 60
    shapes, compute = [(64, 8, 256), (128, 3, 256)], [2000.0, 2000.0]
    np.testing.assert_allclose(law.law.predict(shapes, compute), small_law().predict(shapes, compute), rtol=0.03)
    text = (tmp_path / "law.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert tags.found.count("svg") == 7
    for words in ("say nothing", "starts reached it", "condition number"):
        assert words in text
    assert tags.found.count("circle") > 100
    assert not re.search(r"(src|href)=|<script|nan|inf\b", text)


def test_json_holds_what_is_told_and_not_every_replicate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = table(tmp_path / "runs.jsonl")
    assert fit(runs, "-o", tmp_path / "law.json", "--json", "--method", "huber") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["fit"]["method"] == "huber"
    assert said["hold_out"]["mean_error"] < 0.03
    assert "laws" not in said
    again = json.loads((tmp_path / "law.json").read_text())
    assert again["fit"] == said["fit"]


def edited(runs: Path, **changes: Any) -> None:
    rows = [json.loads(line) for line in runs.read_text().splitlines()]
    rows[3] |= changes
    runs.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": [{"forward_flops": 1e12, "error": float("nan")}]}, "Run r3 has an error of nan"),
        ({"points": [{"forward_flops": -1e12, "error": 0.4}]}, "Run r3 has a compute of -1000"),
        ({"run": "r2"}, "holds run r2 twice"),
        ({"data": "other"}, "runs with different data: known, other"),
        ({"patch_size": 4}, "different patch_size"),
        ({"batch_size": 4}, "different batch_size"),
        ({"num_heads": None}, "run r3 has None num_heads: its width 64 must divide by it"),
        ({"num_heads": True}, "run r3 has True num_heads"),
        ({"num_heads": 7}, "run r3 has 7 num_heads"),
        ({"depth": 0.5}, '"depth" is 0.5, it must be a whole number'),
        ({"points": [{"forward_flops": 1e12, "error": 0.4, "images": "many"}]}, '"images" must be a number'),
        ({"points": [{"forward_flops": 1e12, "error": 0.4, "images": float("nan")}]}, '"images" is nan'),
        ({"points": [{"forward_flops": 1e12, "error": 1e-300}]}, "Run r3 has an error of 1e-300"),
        ({"width": "wide"}, '"width" must be a number'),
    ],
)
def test_a_table_that_no_law_can_be_fitted_to_is_told(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = table(tmp_path / "runs.jsonl")
    edited(runs, **changes)
    assert fit(runs, "-o", tmp_path / "law.json") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "law.json").exists()


def test_a_tie_by_chance_is_no_copy_and_a_blank_line_no_run(tmp_path: Path) -> None:
    runs = table(tmp_path / "runs.jsonl")
    rows = [json.loads(line) for line in runs.read_text().splitlines()]
    again = [{**point, "error": point["error"] * (1 + 0.01 * n)} for n, point in enumerate(rows[0]["points"])]
    rows.append({**rows[0], "run": "another seed", "seed": 1, "points": again})
    runs.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")
    assert fit(runs, "-o", tmp_path / "law.json") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "RUNS"], "must be different files"),
        (["-o", "LAW", "--report", "LAW"], "must be different files"),
        (["-o", "LAW", "--starts", "0"], "--starts is 0"),
        (["-o", "LAW", "--replicates", "999999999"], "--replicates is 999999999"),
        (["-o", "LAW", "--seed", "-1"], "--seed is -1"),
        (["-o", "LAW", "--delta", "0.1"], "--delta is the Huber loss's"),
        (["-o", "FOLDER"], "cannot be written"),
    ],
)
def test_what_cannot_be_done_is_refused_first(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = table(tmp_path / "runs.jsonl")
    before = runs.read_bytes()
    places = {"RUNS": runs, "LAW": tmp_path / "law.json", "FOLDER": tmp_path}
    assert main(["shape", "fit", str(runs), *(str(places.get(word, word)) for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert runs.read_bytes() == before


@pytest.mark.parametrize("rate", ["fast", [], 0, float("nan")])
def test_a_learning_rate_that_is_none_is_told(rate: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = table(tmp_path / "runs.jsonl", learning_rate=0.001)
    edited(runs, learning_rate=rate)
    assert fit(runs, "-o", tmp_path / "law.json") == 2
    assert "run r3 has a learning_rate of" in capsys.readouterr().err


def test_another_rate_is_no_point_even_where_nothing_stands_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = table(tmp_path / "runs.jsonl", learning_rate=0.001)
    edited(runs, learning_rate=0.0005)  # as the run at the design's own rate would be missing
    assert fit(runs, "-o", tmp_path / "law.json") == 0
    assert read_law(tmp_path / "law.json").fit.runs == 12
    told = " ".join(capsys.readouterr().out.split())
    assert "left out of the fit, 1 in all: r3, for another learning rate than most" in told


def test_too_few_runs_and_one_compute_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = table(tmp_path / "runs.jsonl")
    rows = runs.read_text().splitlines()
    (tmp_path / "few.jsonl").write_text("\n".join(rows[:2]) + "\n")
    assert fit(tmp_path / "few.jsonl", "-o", tmp_path / "law.json") == 2
    assert "2 runs with points" in capsys.readouterr().err
    one = [json.loads(row) for row in rows]
    same = [{**row, "points": [{"forward_flops": 1e12, "error": 0.3 + 0.01 * n}]} for n, row in enumerate(one)]
    (tmp_path / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in same))
    assert fit(tmp_path / "one.jsonl", "-o", tmp_path / "law.json") == 2
    assert "All points have the same compute" in capsys.readouterr().err
    assert fit(tmp_path / "none.jsonl", "-o", tmp_path / "law.json") == 2
    assert "does not exist" in capsys.readouterr().err


def test_other_learning_rates_are_a_check_and_no_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = table(tmp_path / "runs.jsonl", learning_rate=0.001)
    assert fit(runs, "-o", tmp_path / "plain.json") == 0
    capsys.readouterr()
    rows = [json.loads(line) for line in runs.read_text().splitlines()]
    for factor, change in ((0.5, 0.96), (2.0, 1.3)):
        points = [{**point, "error": point["error"] * change} for point in rows[0]["points"]]
        rows.append({**rows[0], "run": f"at {factor}", "learning_rate": 0.001 * factor, "points": points})
    runs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert fit(runs, "-o", tmp_path / "law.json", "--report", tmp_path / "law.html") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "the error of one shape changes at 0.5 times the rate -4.0% to -4.0%, at 2 times the rate +30.0%" in told
    assert "is better by 4.0% at 0.5 times the learning rate" in told
    law = read_law(tmp_path / "law.json")
    assert law.fit == read_law(tmp_path / "plain.json").fit
    assert "these runs are not fitted" in (tmp_path / "law.html").read_text()


def test_how_the_runs_were_trained_is_kept(tmp_path: Path) -> None:
    how: dict[str, Any] = {
        "recipe": "cifar10",
        "settings": ["ema=0"],
        "batch_size": 128,
        "cooldown": 0.2,
        "learning_rate": 0.001,
    }
    runs = table(tmp_path / "runs.jsonl", **how)
    edited(runs, learning_rate=0.002)
    assert fit(runs, "-o", tmp_path / "law.json") == 0
    training = read_law(tmp_path / "law.json").training
    assert training is not None
    assert to_dict(training) == how | {"warmup_steps": None}
    edited(table(tmp_path / "runs.jsonl", **how, warmup_steps=100), learning_rate=0.002)
    assert fit(runs, "-o", tmp_path / "law.json") == 0
    training = read_law(tmp_path / "law.json").training
    assert training is not None
    assert training.warmup_steps == 100
    edited(runs, warmup_steps=50, learning_rate=0.001)
    assert fit(runs, "-o", tmp_path / "law.json") == 2
    runs = table(tmp_path / "runs.jsonl", **how | {"settings": "ema=0"})
    assert fit(runs, "-o", tmp_path / "law.json") == 2


def test_sizes_that_are_no_multiples_have_a_front_too(tmp_path: Path) -> None:
    runs = table(tmp_path / "runs.jsonl")
    rows = [json.loads(line) for line in runs.read_text().splitlines()]
    odd = [row | {"mlp_dim": row["mlp_dim"] + 3} for row in rows]
    runs.write_text("".join(json.dumps(row) + "\n" for row in odd))
    assert fit(runs, "-o", tmp_path / "law.json", "--report", tmp_path / "law.html") == 0
    assert read_law(tmp_path / "law.json").setting.multiple == 1
    assert "The front" in (tmp_path / "law.html").read_text()


def test_a_law_that_does_not_foretell_more_compute_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = table(tmp_path / "runs.jsonl")
    assert fit(runs, "-o", tmp_path / "law.json") == 0
    assert "what was held out" not in capsys.readouterr().out
    rows = [json.loads(line) for line in runs.read_text().splitlines()]
    for row in rows:
        row["points"][-1]["error"] *= 0.75  # as where errors fall ever faster
    runs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert fit(runs, "-o", tmp_path / "law.json") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert re.search(r"what was held out is predicted \d+% too high in the mean: errors fall faster", told)


def test_the_published_sweep_is_what_its_runs_are_called() -> None:
    """Each run of the committed table has the name of its content, and all that was asked of it is there."""
    table = RunTable.at(ROOT / "benchmarks" / "results" / "shape-cifar10" / "runs.jsonl")
    runs, rows = table.runs(), table.rows()
    assert len(runs) > 13
    for name, run in runs.items():
        assert [point["steps"] for point in rows[name]["points"]] == list(run.horizons)
        assert all(point["images"] == point["steps"] * run.batch_size for point in rows[name]["points"])
