"""The lines of a table of runs, `runs.jsonl`: one JSON object each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sovit.errors import ConfigError


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Its lines by run, in their order. Raises `ConfigError` that names the line."""
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path} cannot be read as a table: it is a folder, or a device.")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist: `sovit shape sweep` writes a table.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a table: {error}.") from error
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = _row(line, f"{path}, line {number}")
        if row["run"] in found:
            raise ConfigError(f"{path} holds run {row['run']} twice: every run has one line.")
        found[row["run"]] = row
    return found


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is no JSON: {error}.") from error
    if not isinstance(row, dict) or not isinstance(row.get("run"), str):
        raise ConfigError(f'{where} is no run: it needs an object with a "run".')
    points = row.get("points") or []
    if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
        raise ConfigError(f'{where}: "points" must be a list of objects.')
    return row
