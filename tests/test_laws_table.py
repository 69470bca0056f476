"""The table of runs: what is read, and what no law could be fitted to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sovit.errors import ConfigError
from sovit.laws.table import Points, read_table


def run(name: str, width: int, *points: tuple[float, object], **changes: object) -> dict[str, Any]:
    """A line of runs.jsonl; points are (forward TFLOPs, error)."""
    measured = [{"steps": 1, "images": 128, "forward_flops": flops * 1e12, "error": error} for flops, error in points]
    shape = {"run": name, "width": width, "depth": 4, "mlp_dim": 256, "num_heads": 2, "image_size": [32, 32]}
    return shape | {"points": measured} | changes


GOOD = [run("a", 64, (1, 0.5), (2, 0.4)), run("b", 96, (2, 0.45), (4, 0.35)), run("c", 128, (4, 0.5), (8, 0.3))]


def written(folder: Path, rows: list[dict[str, Any]], more: str = "") -> Path:
    path = folder / "runs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + more, encoding="utf-8")
    return path


def refused(folder: Path, rows: list[dict[str, Any]], more: str = "") -> str:
    with pytest.raises(ConfigError) as caught:
        read_table(written(folder, rows, more))
    return str(caught.value).replace(f"{folder / 'runs.jsonl'}", "TABLE")


def test_what_is_read(tmp_path: Path) -> None:
    waiting = [{key: value for key, value in run("d", 160).items() if key != "points"}, run("e", 192)]
    rows, points, not_run, images = read_table(written(tmp_path, [waiting[0], *GOOD, waiting[1]], more="\n"))
    assert [row["run"] for row in rows] == ["d", "a", "b", "c", "e"]
    assert (not_run, images) == (2, 128)
    assert points.runs == ("a", "b", "c")
    assert points.run_P.tolist() == [0, 0, 1, 1, 2, 2]
    assert points.shapes_PK[::2].tolist() == [[64, 4, 256], [96, 4, 256], [128, 4, 256]]
    assert points.compute_P.tolist() == [1000, 2000, 2000, 4000, 4000, 8000]
    assert points.error_P.tolist() == [0.5, 0.4, 0.45, 0.35, 0.5, 0.3]
    assert (len(points), points.compute_levels) == (6, 4)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "TABLE, line 4 is no JSON: "),
        ("[1]", 'TABLE, line 4 is no run: it needs an object with a "run".'),
        ('{"width": 3}', 'TABLE, line 4 is no run: it needs an object with a "run".'),
        ('{"run": "d", "width": 64, "depth": 4}', 'TABLE, run d lacks "mlp_dim".'),
        ('{"run": "d", "width": "64"}', 'TABLE, run d: "width" must be a number.'),
        ('{"run": "d", "width": true}', 'TABLE, run d: "width" must be a number.'),
        (json.dumps(run("d", 64, points=3)), 'TABLE, line 4: "points" must be a list of objects.'),
        (json.dumps(run("d", 64, points=[3])), 'TABLE, line 4: "points" must be a list of objects.'),
        (json.dumps(run("d", 64, (1, None))), 'TABLE, run d lacks "error".'),
        (json.dumps(run("d", 64, points=[{"error": 1}])), 'TABLE, run d lacks "forward_flops".'),
        (json.dumps(run("d", 10**400, (1, 0.5))), "TABLE, "),
        ("[" * 100_000, "TABLE, line 4 is no JSON: "),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    assert refused(tmp_path, GOOD, line + "\n").startswith(complaint)


@pytest.mark.parametrize(("error", "said"), [(float("nan"), "nan"), (float("inf"), "inf"), (0, "0"), (-0.25, "-0.25")])
def test_an_error_that_is_none_names_its_run(tmp_path: Path, error: float, said: str) -> None:
    message = refused(tmp_path, [*GOOD, run("3f2a", 64, (1, 0.3), (2, error))])
    assert message == (
        f"Run 3f2a has an error of {said}, it must be a number above 0, from 1e-15 to 1e+25: repeat the run, or take "
        "the point out of the table."
    )


@pytest.mark.parametrize("flops", [0, -1])
def test_no_compute_is_below_zero(tmp_path: Path, flops: float) -> None:
    message = refused(tmp_path, [*GOOD, run("3f2a", 64, (1, 0.3), (flops, 0.4))])
    assert message.startswith(f"Run 3f2a has a compute of {flops * 1000}, it must be a number above 0")


@pytest.mark.parametrize("field", ["width", "depth", "mlp_dim"])
def test_no_size_is_zero(tmp_path: Path, field: str) -> None:
    message = refused(tmp_path, [*GOOD, run("3f2a", 64, (1, 0.3)) | {field: 0}])
    assert message.startswith(f"Run 3f2a has a {field} of 0, it must be a number above 0")


def test_duplicates(tmp_path: Path) -> None:
    assert refused(tmp_path, [*GOOD, GOOD[1]]) == "TABLE holds run b twice: every run has one line."
    copied = refused(tmp_path, [*GOOD, GOOD[1] | {"run": "d"}])
    assert copied == "TABLE: runs b and d agree in everything, so one is a copy: take one out."
    # Of few test images, or where training fails, all errors may tie: another seed or rate is another run.
    for other in ({"seed": 1}, {"learning_rate": 0.1}):
        assert len(read_table(written(tmp_path, [*GOOD, GOOD[1] | {"run": "d"} | other])).points) == 8
    twice = refused(tmp_path, [*GOOD, run("d", 64, (1, 0.51), (1, 0.41))])
    assert twice == "Run d has two points of the same compute: keep one of them."
    # The same shape again, with other luck, is what tells the noise.
    assert len(read_table(written(tmp_path, [*GOOD, run("d", 64, (1, 0.51), (2, 0.39))])).points) == 8


def test_too_few_runs(tmp_path: Path) -> None:
    message = refused(tmp_path, GOOD[:2])
    assert message.startswith("There are 2 runs with points: a law needs 3 at the very least")
    assert refused(tmp_path, [run("a", 64), run("b", 96)]) == (
        "TABLE holds 2 runs and none of them has points: run them first."
    )
    assert refused(tmp_path, []) == "TABLE holds 0 runs and none of them has points: run them first."


def test_one_compute_level(tmp_path: Path) -> None:
    rows = [run(str(width), width, (1 + width / 1e4, 1 / width)) for width in (64, 96, 128, 160)]
    message = refused(tmp_path, rows)
    assert message.startswith("All points have the same compute, so nothing tells what more of it would bring: measure")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_table(tmp_path / "runs.jsonl")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_table(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_table(tmp_path / "binary")


def test_arrays_that_do_not_fit() -> None:
    good: dict[str, Any] = {
        "shapes_PK": np.arange(1.0, 13).reshape(4, 3),
        "compute_P": np.arange(1.0, 5),
        "error_P": np.ones(4),
        "run_P": np.arange(4),
        "runs": ("a", "b", "c", "d"),
    }
    assert len(Points(**good)) == 4
    for changed, complaint in (
        ({"shapes_PK": np.ones((4, 2))}, r"shapes_PK has the shape \(4, 2\), not \(4, 3\)"),
        ({"compute_P": np.ones(3)}, r"compute_P has the shape \(3,\), not \(4,\)"),
        ({"runs": ("a",)}, "run_P must index the 1 runs"),
        ({"run_P": np.array([0, 0, 1, 2])}, "Run a has points of several shapes"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            Points(**good | changed)
