"""Frozen dataclasses to and from JSON, strictly: an unknown key, a missing key or a wrong type is a `ConfigError`.

A class takes part by setting `__pydantic_config__ = STRICT`.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from sovit.errors import ConfigError

T = TypeVar("T")

STRICT: Final = ConfigDict(extra="forbid", allow_inf_nan=False)


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def explain(error: ValidationError, field_names: tuple[str, ...] = ()) -> str:
    """The first complaint of a validation error as `field: reason`, without the offending value."""
    first = error.errors(include_url=False, include_input=False)[0]
    # A union's members stand in the path by their class names, which tell a user nothing.
    where = ".".join(str(part) for part in first["loc"] if part != "__root__" and not str(part)[:1].isupper())
    reason = {
        "unexpected_keyword_argument": "unknown field",
        "extra_forbidden": "unknown field",
        "missing": "missing",
        "missing_argument": "missing",
        "missing_keyword_only_argument": "missing",
        "dataclass_type": "must be an object",
        "dataclass_exact_type": "must be an object",
        "model_type": "must be an object",
    }.get(first["type"], first["msg"].removeprefix("Value error, "))
    known = f" (known: {', '.join(field_names)})" if reason == "unknown field" and field_names else ""
    return f"{where}: {reason}{known}" if where else reason


def from_dict(cls: type[T], data: object, what: str) -> T:
    """Build a `cls` from plain JSON data. `what` names the source in the error."""
    try:
        return _adapter(cls).validate_python(data)  # type: ignore[no-any-return,arg-type]
    except ValidationError as error:
        raise ConfigError(f"{what}: {explain(error)}.") from error


def to_dict(value: object) -> dict[str, Any]:
    """Plain JSON data of a dataclass instance."""
    return _adapter(type(value)).dump_python(value, mode="json")  # type: ignore[no-any-return,arg-type]


def read_json(path: Path) -> Any:
    """Parse a JSON file; raises `ConfigError` naming the file when it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist.") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}.") from error
    except (RecursionError, ValueError) as error:  # nested or long numbers beyond what Python reads
        raise ConfigError(f"{path} cannot be read as JSON: too deeply nested, or too long a number.") from error


def write_json(path: Path, data: object) -> None:
    """Write JSON, indented, with a final newline. A file that is there is whole at any time: the old one or the new."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; into a device or a pipe as it is."""
    target = path.resolve()
    if target.exists() and not target.is_file():  # a device or a pipe
        target.write_text(text, encoding="utf-8")
        return
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def must_be_writable(path: Path | None, option: str = "--out") -> None:
    """Raises `ConfigError` where a result could not be written, before the work that leads to it."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: the folder {path.parent} does not exist.")
    needed = [path] * path.exists() + [path.parent] * (path.is_file() or not path.exists())
    if path.is_dir() or not all(os.access(one, os.W_OK) for one in needed):
        raise ConfigError(f"{option} {path} cannot be written: it is a folder, or not yours to write.")
