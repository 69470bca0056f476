"""The table of runs, `runs.jsonl`: what is to be trained, and what came of it."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from pydantic import ConfigDict

from sovit.config import Pool
from sovit.errors import ConfigError
from sovit.jsonio import STRICT, from_dict, read_json, to_dict, write_text
from sovit.laws.rows import read_rows
from sovit.laws.sweep import Run, run_of

RESULT: Final = "result.json"


@dataclass(frozen=True, kw_only=True)
class RunPoint:
    """What a run was measured to be at one of its horizons; `forward_flops` are those of all images up to there."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    steps: int
    images: int
    forward_flops: float
    error: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run adds to its line of the table: its points, what it was trained on, and how long it warmed up."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    data: str
    train_images: int
    test_images: int
    classes: int
    pool: Pool
    points: tuple[RunPoint, ...]
    warmup_steps: int | None = None

    def __post_init__(self) -> None:
        if not self.points:
            raise ConfigError("a result has one point or more.")


def is_done(row: Mapping[str, Any]) -> bool:
    """Whether a line of the table has its points."""
    return bool(row.get("points"))


@dataclass(frozen=True)
class RunTable:
    """`runs.jsonl`, the runs that it lists, and the folder that they leave their results in."""

    path: Path
    folder: Path

    @classmethod
    def at(cls, path: Path, folder: Path | None = None) -> RunTable:
        """A table, and beside it the folder of its name without the ending, unless another is given.

        Raises `ConfigError` for a path that is no file's, before anything is written beside it.
        """
        if not path.name or (path.exists() and not path.is_file()):
            raise ConfigError(f"{path} is a folder or a device, and no file that a table could be.")
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
        """Write the results that are there into the table; returns its lines.

        Raises `ConfigError` for a result that is none, when the others are in the table.
        """
        with self._locked():
            rows = self.rows()
            broken = None
            for name in [name for name, row in rows.items() if not is_done(row)]:
                try:
                    result = self.result(name)
                except ConfigError as error:
                    broken = broken or error
                else:
                    rows[name] |= to_dict(result) if result is not None else {}
            self._write(rows)
        if broken is not None:
            raise broken
        return rows

    def result(self, name: str) -> RunResult | None:
        """What a run has left; None for one that has not ended. Raises `ConfigError` for a file that is no result."""
        path = self.folder / name / RESULT
        if not path.is_file():
            return None
        try:
            return from_dict(RunResult, read_json(path), "the result")
        except ConfigError as error:
            raise ConfigError(f"{path}: {error} Delete the file, and the run is trained again.") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f".{self.path.name}.lock").open("a") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)
            yield

    def _write(self, rows: dict[str, dict[str, Any]]) -> None:
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows.values()))
