"""The README's tables and docs/cost.md are what the committed results say, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.cost.accuracy import read_accuracies
from benchmarks.cost.headline import headline
from benchmarks.cost.markdown import to_markdown
from benchmarks.cost.prices import read_prices
from benchmarks.cost.report import build
from benchmarks.latency.result import read_measured
from benchmarks.readme import LATENCY, README, ROOT, tables, written
from sovit.errors import ConfigError
from tests.test_compare import FAILED, measured, row

SHAPES = ("S/16", "B/16", "L/16", "So150m/14", "So150m-896/16", "So400m/14", "H/14", "g/14", "G/14")


def test_the_readme_says_what_the_result_says() -> None:
    readme = README.read_text(encoding="utf-8")
    assert written(readme, tables()) == readme, "run `python -m benchmarks.readme`"


def test_the_report_in_docs_is_of_the_same_result() -> None:
    report = build([read_measured(LATENCY)], read_prices(), read_accuracies())
    assert to_markdown(report) == (ROOT / "docs" / "cost.md").read_text(encoding="utf-8"), (
        "run `sovit bench cost benchmarks/results/latency-cpu.json --out docs/cost.md`"
    )


def test_the_result_has_every_shape_in_fp32_and_int8_and_may_be_published() -> None:
    found = read_measured(LATENCY)
    assert found.flaws == []
    missing = {(one.variant, one.precision) for one in found.failed}
    there = {(row.variant, row.precision) for row in found.rows}
    assert there | missing == {(shape, precision) for shape in SHAPES for precision in ("fp32", "int8")}
    for one in found.rows:
        assert (one.image_size, one.batch, one.weights) == ((224, 224), 1, "random")
        assert one.processes == found.settings.processes >= 3 or any(
            (failed.variant, failed.runtime) == (one.variant, one.runtime) for failed in found.failed
        )
        assert one.cosine > (0.9999 if one.precision == "fp32" else 0.99)


def test_the_claim_was_measured_in_pairs_often_enough() -> None:
    report = build([read_measured(LATENCY)], read_prices(), read_accuracies())
    assert len(report.claims) == 4, "fp32 and int8 in both engines"
    assert all(claim.paired >= 6 for claim in report.claims)


def test_a_headline_by_hand(tmp_path: Path) -> None:
    rows = [
        row("So400m/14", 400, runtime="openvino"),
        row("So400m/14", 360, runtime="onnxruntime"),
        row("g/14", 900, runtime="openvino", flops_per_image=534_000_000_000),
        row("So400m/14", 120, precision="int8"),
        row("g/14", 300, precision="int8", flops_per_image=534_000_000_000),
    ]
    shapes = measured(tmp_path / "latency-cpu.json", rows, failed=[FAILED])
    lines = headline(shapes, read_accuracies()).splitlines()
    assert lines[0] == (
        "An image through SoViT-400m/14 costs 0.400 to 0.444 times what it costs through ViT-g/14: less than half in "
        "both pairings."
    )
    assert "88.2 against 88.4 %" in lines[2]
    so400m, g = (next(line for line in lines if line.startswith(f"| {name} ")) for name in ("So400m/14", "g/14"))
    # The faster runtime's 360 ms: 100 hours for a million images, and 0.400 of g/14's 900 ms.
    assert so400m.split(" | ")[3:7] == ["360 (353\u2013367)", "396, 432", "100", "0.400"]
    assert so400m.split(" | ")[7].startswith("120 (")
    assert g.split(" | ")[6] == "1.00"
    assert any("in the faster of onnxruntime or openvino" in line for line in lines)
    assert lines[-1].endswith(
        "Not measured, or not in every process: G/14 at 224 px in openvino int8: the memory ran out."
    )


def test_what_the_benchmarks_add_themselves_is_below_one_percent() -> None:
    """As it was measured and committed; over HTTP what a bare socket takes is none of theirs."""
    found = json.loads(LATENCY.with_name("overhead.json").read_text(encoding="utf-8"))
    shares = {one["benchmark"]: one["said_ms"] / one["own_ms"] - 1 for one in found["rows"]}
    socket = shares.pop("bare socket")
    assert len(shares) == 6
    for name, share in shares.items():
        assert share - (socket if name.startswith("load") else 0) < 0.01, name


def test_what_is_not_to_be_published_is_not(tmp_path: Path) -> None:
    quick = measured(tmp_path / "b.json", [row()], quick=True)
    with pytest.raises(ConfigError, match=r"b\.json is not to be published: a quick run"):
        headline(quick, read_accuracies())
    for other in (row(batch=8), row(image_size=[384, 384]), row(runtime="tensorrt")):
        with pytest.raises(ConfigError, match="several machines, image sizes or batches"):
            headline(measured(tmp_path / "a.json", [row(), other]), read_accuracies())


def test_a_readme_without_the_marks_is_refused() -> None:
    begin, end = "<!-- peers: written by `python -m benchmarks.readme` -->", "<!-- end of peers -->"
    for readme in ("", begin, f"{end} {begin}"):
        with pytest.raises(ConfigError, match=r"README\.md must hold"):
            written(readme, {"peers": "new"})
    assert written(f"before\n{begin}\nold\n{end}\nafter\n", {"peers": "new"}) == (
        f"before\n{begin}\n\nnew\n\n{end}\nafter\n"
    )
