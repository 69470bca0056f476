"""The README's tables, written from the committed results and nothing else.

    python -m benchmarks.readme

Writes what stands between the marks in README.md. A test fails where that is not what the results say.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from benchmarks.arguments import run
from benchmarks.cost.accuracy import read_accuracies
from benchmarks.cost.headline import headline
from benchmarks.latency.result import read_measured
from benchmarks.peers.result import in_markdown, read_raced
from sovit.errors import ConfigError

ROOT: Final = Path(__file__).parents[1]
README: Final = ROOT / "README.md"
RESULTS: Final = ROOT / "benchmarks" / "results"
LATENCY: Final = RESULTS / "latency-cpu.json"
PEERS: Final = RESULTS / "peers-ti16.json"


def tables() -> dict[str, str]:
    """What stands between the marks, by their names."""
    return {
        "headline": headline(read_measured(LATENCY), read_accuracies()),
        "peers": in_markdown(read_raced(PEERS)),
    }


def written(readme: str, tables: Mapping[str, str]) -> str:
    """The README with its tables written anew. Raises `ConfigError` where a table has no marks."""
    for name, text in tables.items():
        begin, end = f"<!-- {name}: written by `python -m benchmarks.readme` -->", f"<!-- end of {name} -->"
        before, found, rest = readme.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ConfigError(f"README.md must hold {begin} and, below it, {end}.")
        readme = f"{before}{begin}\n\n{text}\n\n{end}{after}"
    return readme


def main() -> int:
    """Write the README anew."""
    README.write_text(written(README.read_text(encoding="utf-8"), tables()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
