"""How commands are declared, and how their handlers are found: heavy packages are imported when one runs."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sovit.commands.result import Result
from sovit.errors import ConfigError

Handler = Callable[[argparse.Namespace], Result | None]


def command(commands: Any, name: str, run: Handler, text: str) -> argparse.ArgumentParser:
    """A command beside others, that says in its help what it does."""
    added: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
    )
    added.set_defaults(run=run)
    return added


def with_json(added: argparse.ArgumentParser) -> None:
    """Every command that prints a result can print it as JSON."""
    added.add_argument("--json", action="store_true", help="print the result as JSON")


def not_empty(text: str) -> str:
    """A word, as a parser's type: an unset variable of a shell is not taken for no option."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


def folder(text: str) -> Path:
    """A folder's path, as a parser's type; the empty one is not the current folder."""
    return Path(not_empty(text))


def checkout() -> Path:
    """The checkout beside the imported package, put first on the path. Raises `ConfigError` where there is none."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "bentofile.yaml").is_file():
        raise ConfigError(
            "this command needs sovit's checkout (train/, export/, serving/, benchmarks/), and the installed package "
            "is not in one: clone the repository and run `pip install -e .` there."
        )
    if str(root) not in sys.path[:1]:
        sys.path.insert(0, str(root))
    return root


def by_name(module: str, function: str) -> Callable[[argparse.Namespace], Result | None]:
    """A handler whose module is imported when it runs."""

    def run(arguments: argparse.Namespace) -> Result | None:
        handler: Callable[[argparse.Namespace], Result | None] = getattr(importlib.import_module(module), function)
        return handler(arguments)

    return run


def in_checkout(module: str, function: str) -> Callable[[argparse.Namespace], Result | None]:
    """A handler in one of the checkout's packages: the core must not import them."""

    def run(arguments: argparse.Namespace) -> Result | None:
        checkout()
        return by_name(module, function)(arguments)

    return run
