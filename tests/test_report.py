from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from benchmarks.cost.accuracy import read_accuracies
from benchmarks.cost.blocks import Cell
from benchmarks.cost.command import cost
from benchmarks.cost.markdown import to_markdown
from benchmarks.cost.naming import in_words
from benchmarks.cost.page import to_html
from benchmarks.cost.plots import Mark, scatter
from benchmarks.cost.prices import PUBLISHED, Price, parse_price, read_prices
from benchmarks.cost.report import build, to_json
from benchmarks.intervals import Estimate
from benchmarks.latency.result import read_measured
from sovit.commands.result import Result
from sovit.errors import ConfigError
from sovit.plot.scales import linear_ticks, log_ticks
from tests.test_compare import FAILED, estimate, result_file, row

ROWS: Final = [
    row("S/16", 20, precision="int8", cosine=0.9996),
    row("L/16", 300),
    row("L/16", 110, precision="int8", cosine=0.9991),
    row("So400m/14", 400, cosine=1.0),
    row("So400m/14", 150, precision="int8"),
    row("g/14", 1000, flops_per_image=534_000_000_000),
    row("g/14", 360, precision="int8", flops_per_image=534_000_000_000),
]
VOID: Final = {"meta", "br", "img", "link", "hr", "input"}


def run(tmp_path: Path, rows: list[dict[str, Any]] | None = None, **changed: Any) -> tuple[Result, str]:
    """`bench cost` on one file, and the report it wrote."""
    out: Path = changed.pop("out", tmp_path / "report.html")
    arguments = {"price": changed.pop("price", []), "prices": changed.pop("prices", None)}
    path = result_file(tmp_path / "latency.json", ROWS if rows is None else rows, **changed)
    result = cost(argparse.Namespace(results=[path], out=out, **arguments))
    return result, out.read_text(encoding="utf-8")


def shown(result: Result, capsys: pytest.CaptureFixture[str]) -> str:
    Console(width=200, highlight=False).print(result.text)
    return " ".join(capsys.readouterr().out.split())


class Page(HTMLParser):
    """What a page holds: whether its tags are closed, what it would load, its ids, its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.labelled: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.loads += [f"{tag} {name}" for name in found if name in ("src", "srcset", "data", "poster", "xlink:href")]
        self.loads += [f"{tag} {name}" for name in found if name.startswith("on")]
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.labelled += (found.get("aria-labelledby") or "").split()
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    _, text = run(tmp_path, price=["AMD EPYC=0.36"])
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "iframe", "img", "object", "base"} & set(page.tags)
    assert page.loads == []
    assert "url(" not in text
    assert "@import" not in text
    assert text.startswith('<!doctype html>\n<html lang="en">')
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_every_plot_can_be_read_without_seeing_it(tmp_path: Path) -> None:
    _, text = run(tmp_path, price=["AMD EPYC=0.36"])
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert page.labelled
    assert set(page.labelled) == set(page.ids)
    plots = [ET.fromstring(svg) for svg in re.findall(r"<svg viewBox[^>]*role=.*?</svg>", text, re.DOTALL)]
    assert len(plots) == 1 + 2 * 2  # the cost of all, then linear probe and 10-shot, each against cost and latency
    for plot in plots:
        title, description = plot.findtext("title"), plot.findtext("desc") or ""
        assert title
        assert "So400m/14 at 224 px in openvino int8, batch 1, 2 threads" in description
    assert plots[1].findtext("title") == "ImageNet-1k top-1, linear probe against cost on AMD EPYC, 2 cores"
    assert "88.2 % at 15.0 (14.7 to 15.3) USD" in (plots[1].findtext("desc") or "")


def test_the_price_stands_beside_the_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """400 ms an image at 0.36 USD an hour: 2.5 images a second, 111.1 machine-hours and 40 USD for a million."""
    result, text = run(tmp_path, price=["AMD EPYC=0.36"])
    line = next(line for line in result.data["machines"][0]["lines"] if line["row"]["p50_ms"]["value"] == 400)
    assert line["usd_at_low"]["value"] == line["usd_at_high"]["value"] == pytest.approx(40)
    assert line["machine_hours"]["value"] == pytest.approx(111.111, rel=1e-5)
    assert "USD at $0.36/h" in text
    assert "40.0<small>39.2–40.8</small>" in text  # noqa: RUF001
    assert "Price used: $0.36 an hour (given by the user)." in text
    said = shown(result, capsys)
    assert "USD/M at 0.36/h" in said
    assert "Price used: $0.36 an hour" in said


def test_a_range_of_prices_gives_both_costs_with_date_and_source(tmp_path: Path) -> None:
    rows = [row("So400m/14", 4, runtime="tensorrt")]
    result, text = run(tmp_path, rows, gpu="NVIDIA H100 80GB HBM3")
    (line,) = result.data["machines"][0]["lines"]
    assert line["usd_at_low"]["value"] == pytest.approx(1.99 / 3600 / 250 * 1e6)  # 2.21
    assert line["usd_at_high"]["value"] == pytest.approx(5.00 / 3600 / 250 * 1e6)  # 5.56
    assert ">2.21<" in text
    assert ">5.56<" in text
    assert "USD at $1.99/h" in text
    assert "USD at $5.00/h" in text
    assert "At $5.00 an hour everything costs 2.51 times as much." in text
    assert "Mercatus, Cloud GPU pricing, 2026-05" in text
    assert '<a href="https://www.mercatus-ai.com/blog/cloud-gpu-pricing">' in text


def test_without_a_price_the_cost_is_blank_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, text = run(tmp_path)
    (machine,) = result.data["machines"]
    assert machine["price"] is None
    assert all(line["usd_at_low"] is line["usd_at_high"] is None for line in machine["lines"])
    assert "$" not in "".join(Page(text).words)
    assert "The cost in US dollars is blank: no price of AMD EPYC, 2 cores is known" in text
    assert "<code>--price &#x27;AMD EPYC=USD_PER_HOUR&#x27;</code>" in text
    assert "machine-hours for a million images" in text
    assert "The cost in US dollars is blank" in shown(result, capsys)


def test_rows_that_overlap_are_not_ranked(tmp_path: Path) -> None:
    rows = [row("S/16", 20), row("B/16", 70), row("L/16", 71), row("g/14", 1000)]
    _, text = run(tmp_path, rows, out=tmp_path / "report.md")
    table = [line.split(" | ")[:2] for line in text.splitlines() if re.match(r"\| \d", line)]
    assert table == [["| 1", "S/16"], ["| 2–3", "B/16"], ["| 2–3", "L/16"], ["| 4", "g/14"]]  # noqa: RUF001


def test_the_claim_is_in_this_files_numbers(tmp_path: Path) -> None:
    result, text = run(tmp_path)
    assert [claim["verdict"] for claim in result.data["claims"]] == ["less than half", "less than half"]
    assert (
        "An image through SoViT-400m/14 costs 0.400 to 0.417 times what it costs through ViT-g/14: less than half in "
        "both pairings." in text
    )
    assert "88.2 against 88.4 % (ImageNet-1k top-1, linear probe)" in text
    _, text = run(tmp_path, ROWS[3:6])
    assert (
        "An image through SoViT-400m/14 costs 0.400 (0.384 to 0.416) times what it costs through ViT-g/14: less than "
        "half." in text
    )
    result, text = run(tmp_path, ROWS[:5])
    assert result.data["claims"] == []
    assert "was not measured here" in text


def test_a_run_that_is_not_to_be_published_says_so_on_top(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out in ("report.html", "report.md"):
        result, text = run(tmp_path, [row()], quick=True, complete=False, failed=[FAILED], out=tmp_path / out)
        top = text.partition("SoViT-400m/14 against")[0]
        for said in ("a quick run, not to be published", "an incomplete run"):
            assert said in top
        assert "G/14 at 224 px in openvino int8: the memory ran out." in text
    assert shown(result, capsys).startswith("Read with care: latency.json: a quick run")
    _, text = run(tmp_path)
    assert "Read with care" not in text


HOSTILE: Final = "<script>alert(1)</script> & \"quoted\" 'too' | *x* `y`"


def test_nothing_in_a_file_becomes_markup(tmp_path: Path) -> None:
    conditions = {"processor": HOSTILE, "packages": {HOSTILE: HOSTILE}, "python": HOSTILE, "sovit": HOSTILE}
    rows = [row(HOSTILE, 20), row(runtime=HOSTILE, weights=HOSTILE), row("g/14", 900, runtime=HOSTILE), *ROWS]
    _, text = run(tmp_path, rows, **conditions)
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert page.loads == []
    assert "<script>alert(1)</script>" in "".join(page.words)  # as words
    for svg in re.findall(r"<svg viewBox[^>]*role=.*?</svg>", text, re.DOTALL):
        ET.fromstring(svg)
    _, markdown = run(tmp_path, rows, out=tmp_path / "report.md", **conditions)
    assert "<script>" not in re.sub(r"`[^`]*`", "", markdown).replace("\\<script\\>", "")
    header = next(line for line in markdown.splitlines() if line.startswith("| place"))
    cells = len(re.findall(r"(?<!\\)\|", header))
    for line in markdown.partition(header)[2].strip().split("\n\n")[0].splitlines():
        assert len(re.findall(r"(?<!\\)\|", line)) == cells


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    """In processes that hash strings differently, too."""
    path = result_file(tmp_path / "latency.json", ROWS)
    program = (
        "import argparse, sys; from pathlib import Path; from benchmarks.cost.command import cost\n"
        "for name in ('html', 'md', 'json'):\n"
        "    cost(argparse.Namespace(results=[Path(sys.argv[1])], price=['AMD EPYC=1'], prices=None,"
        " out=Path(sys.argv[2] + '.' + name)))"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", program, str(path), str(tmp_path / seed)],
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
    for name in ("html", "md", "json"):
        assert (tmp_path / f"1.{name}").read_bytes() == (tmp_path / f"2.{name}").read_bytes()


def test_all_forms_are_of_the_same_data(tmp_path: Path) -> None:
    path = result_file(tmp_path / "latency.json", ROWS)
    prices: list[Price] = [parse_price("AMD EPYC=0.36"), *read_prices()]
    report = build([read_measured(path)], prices, read_accuracies())
    words = " ".join("".join(Page(to_html(report)).words).split())
    markdown, data = to_markdown(report), json.loads(json.dumps(to_json(report)))
    assert (data["benchmark"], data["schema_version"]) == ("cost", 1)
    assert data["claims"][0]["row"]["variant"] == "So400m/14"
    for line in data["machines"][0]["lines"]:
        number = in_words(Estimate(**line["usd_at_low"]))
        assert f"{number.text} ({number.small})" in markdown
        assert f"{number.text}{number.small}" in words
    for source in ("table 2", "table 3", "table 4"):
        assert source in words
        assert source in markdown


def test_the_form_is_that_of_the_files_name(tmp_path: Path) -> None:
    _, text = run(tmp_path, out=tmp_path / "report.json")
    assert json.loads(text)["benchmark"] == "cost"
    with pytest.raises(ConfigError, match=r"report\.pdf must end in \.html, \.md, \.json"):
        run(tmp_path, out=tmp_path / "report.pdf")


def test_a_users_price_file_comes_before_the_published_one(tmp_path: Path) -> None:
    prices = tmp_path / "prices.json"
    mine = {"machine": "Mine", "names": ["AMD EPYC"], "usd_per_hour": {"low": 1, "high": 1}, "source": "my bill"}
    prices.write_text(json.dumps({"schema_version": 1, "prices": [mine | {"date": "2026-10"}]}))
    _, text = run(tmp_path, prices=prices)
    assert "Price used: $1.00 an hour (my bill, 2026-10)." in text
    _, text = run(tmp_path, prices=prices, price=["AMD EPYC=2"])
    assert "Price used: $2.00 an hour (given by the user)." in text


@pytest.mark.parametrize(
    ("price", "said"),
    [
        (["Intel Xeon=1"], "nothing ran on Intel Xeon; what would fit is 'AMD EPYC, 2 cores=USD_PER_HOUR'"),
        (["AMD EPYC=-1"], "a number above 0"),
        (["AMD EPYC=1", "amd epyc=2"], "gives amd epyc two prices"),
    ],
)
def test_a_price_that_is_of_no_use_is_refused(tmp_path: Path, price: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run(tmp_path, price=price)


def test_what_is_read_is_not_written_over(tmp_path: Path) -> None:
    path = result_file(tmp_path / "a.json", [row()])
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"a\.json is one of the files that are read"):
        cost(argparse.Namespace(results=[path], price=[], prices=None, out=path))
    prices = tmp_path / "prices.json"
    prices.write_bytes(PUBLISHED.read_bytes())
    with pytest.raises(ConfigError, match=r"prices\.json is one of the files that are read"):
        cost(argparse.Namespace(results=[path], price=[], prices=prices, out=prices))
    assert (path.read_bytes(), prices.read_bytes()) == (before, PUBLISHED.read_bytes())


def test_two_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "latency.json" for folder in "ab"]
    for path, variant in zip(paths, ("So400m/14", "g/14"), strict=True):
        path.parent.mkdir()
        result_file(path, [row(variant)])
    result = cost(argparse.Namespace(results=paths, price=[], prices=None, out=None))
    assert [file["file"] for file in result.data["files"]] == [str(path) for path in paths]
    assert len(result.data["machines"]) == 1


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (estimate(346.0, 340.1, 352.0), Cell("346", "340–352")),  # noqa: RUF001
        (estimate(2.89, 2.8, 2.95), Cell("2.89", "2.80–2.95")),  # noqa: RUF001
        (estimate(12345.6, 12000.0, 13000.0), Cell("12,346", "12,000–13,000")),  # noqa: RUF001
        (estimate(0.0123456, 0.012, 0.013), Cell("0.0123", "0.0120–0.0130")),  # noqa: RUF001
        (estimate(100.0, 99.98, 100.02), Cell("100.00", "99.98–100.02")),  # noqa: RUF001
        (estimate(5.0, 5.0, 5.0), Cell("5.00", "5.00–5.00")),  # noqa: RUF001
    ],
)
def test_numbers_in_words(value: dict[str, float], words: Cell) -> None:
    assert in_words(Estimate(**value)) == words


@given(st.floats(1e-6, 1e6), st.floats(1.1, 1e6))
def test_ticks_are_few_and_inside(low: float, factor: float) -> None:
    high = low * factor
    for ticks in (log_ticks(low, high), linear_ticks(low, high)):
        assert 1 <= len(ticks) <= 15
        assert ticks == sorted(set(ticks))
        assert all(low * (1 - 1e-5) <= tick <= high * (1 + 1e-5) for tick in ticks)


def test_a_mark_lies_where_its_value_is() -> None:
    """Evenly spaced on a logarithmic axis: 1, 10 and 100; the more accurate, the higher."""
    marks = [
        Mark(x=Estimate(x, x, x), y=y, series="only", title=f"{x} {y}", on_front=True)
        for x, y in ((1.0, 80.0), (10.0, 85.0), (100.0, 90.0))
    ]
    svg = scatter(
        name="a",
        title="t",
        description="d",
        series=["only"],
        marks=marks,
        labels=[("S", 80.0), ("B", 85.0), ("L", 90.0)],
        x_label="x",
        y_label="y",
    )
    found = {
        group.findtext("title"): (float(circle.attrib["cx"]), float(circle.attrib["cy"]))
        for group in ET.fromstring(svg).iter("g")
        if (circle := group.find("circle[@class='mark']")) is not None
    }
    first, second, third = (found[mark.title] for mark in marks)
    assert second[0] - first[0] == pytest.approx(third[0] - second[0], abs=0.2)
    assert first[0] < second[0] < third[0]
    assert first[1] - second[1] == pytest.approx(second[1] - third[1], abs=0.2)
    assert first[1] > second[1] > third[1]
