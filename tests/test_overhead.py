"""The study of what the benchmarks add measures what it says: never less than the work itself."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.studies.overhead import IN_PROCESS_SECONDS, SERVER_SECONDS, main


def test_every_benchmark_is_held_against_work_that_timed_itself(tmp_path: Path) -> None:
    out = tmp_path / "overhead.json"
    assert main(["--rounds", "20", "--seconds", "0.5", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["benchmark"] for row in rows] == [
        "latency",
        "scenario single-stream",
        "bare socket",
        "load, 8 clients",
        "load, 10 a second",
        "load, 50 a second",
        "load, 200 a second",
    ]
    for row, seconds in zip(rows, [IN_PROCESS_SECONDS] * 2 + [SERVER_SECONDS] * 5, strict=True):
        # What is timed holds the work, run by run; how much more it holds is for a quiet machine to say.
        assert min(row["said_ms"], row["own_ms"]) >= 1e3 * seconds
        assert row["share"] == row["said_ms"] / row["own_ms"] - 1
