"""The table of runs, `runs.jsonl`: what is to be trained, and what came of it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sovit.jsonio import read_json
from sovit.laws.rows import read_rows
from sovit.laws.sweep import Run, run_of

RESULT: Final = "result.json"


@dataclass(frozen=True)
class RunTable:
    """`runs.jsonl`, the runs that it lists, and the folder that they leave their results in."""

    path: Path
    folder: Path

    @classmethod
    def at(cls, path: Path, folder: Path | None = None) -> RunTable:
        """A table, and beside it the folder of its name without the ending, unless another is given."""
        beside = path.with_suffix("") if path.suffix else path.with_name(path.name + ".runs")
        return cls(path, folder or beside)

    def rows(self) -> dict[str, dict[str, Any]]:
        """Its lines by run. Raises `ConfigError` for lines that are none."""
        return read_rows(self.path)

    def runs(self) -> dict[str, Run]:
        """The runs by name."""
        return {name: run_of(row, f"{self.path}, run {name}") for name, row in self.rows().items()}

    def add(self, runs: Sequence[Run]) -> int:
        """Append those that are not listed yet; returns how many."""
        with self._locked():
            known = self.rows() if self.path.exists() else {}
            new = {run.name: run.row() for run in runs if run.name not in known}
            self._write({**known, **new})
        return len(new)

    def collect(self) -> dict[str, dict[str, Any]]:
        """Write the results that are there into the table; returns its lines."""
        with self._locked():
            rows = self.rows()
            for name in [name for name, row in rows.items() if "points" not in row]:
                rows[name] |= self.result(name) or {}
            self._write(rows)
        return rows

    def result(self, name: str) -> dict[str, Any] | None:
        """What a run has left: its points and the data; None for one that has not ended."""
        path = self.folder / name / RESULT
        found: dict[str, Any] | None = read_json(path) if path.is_file() else None
        return found

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f".{self.path.name}.lock").open("a") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)
            yield

    def _write(self, rows: dict[str, dict[str, Any]]) -> None:
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        beside.write_text("".join(json.dumps(row) + "\n" for row in rows.values()), encoding="utf-8")
        beside.replace(self.path)
