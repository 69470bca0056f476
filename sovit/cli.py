"""The `sovit` command. Heavy packages are imported inside the command that needs them.

A handler returns a `Result`; standard output carries nothing else, so that `--json` can be piped. Progress and errors
go to standard error. Exit status: 0 done, 1 it failed, 2 wrong usage or bad input.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from sovit import __version__
from sovit.commands.parser import command, in_checkout
from sovit.commands.result import EXIT_INTERRUPTED, Result
from sovit.errors import EXIT_FAILED, EXIT_USAGE, SoViTError

_EXTRA_OF: Final = {
    "torch": "convert",
    "sklearn": "train",
    "onnx": "export",
    "ml_dtypes": "export",
    "bentoml": "serving",
    "orjson": "serving",
    "onnxruntime": "cpu",
    "openvino": "cpu",
    "psutil": "bench",
    "mlperf_loadgen": "bench",
    "huggingface_hub": "convert",
    "scipy": "shape",
    "threadpoolctl": "shape",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        with _ended_in_order():
            result: Result | None = arguments.run(arguments)
        if result is None:
            return 0
        _print(result, as_json=getattr(arguments, "json", False))
        return result.exit_code
    except SoViTError as error:
        return _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        return _fail(f"{error.name} is not installed: pip install 'sovit[{extra}]'.", EXIT_USAGE)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away; nothing to say, and nobody to say it to
        return EXIT_FAILED
    except OSError as error:
        return _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}.", EXIT_FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted.", EXIT_INTERRUPTED)


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM unwinds the block, so that half-written folders go; a command that has more to say to it sets its own."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    from sovit.commands import bench, images, models, serve, shape

    parser = argparse.ArgumentParser(
        prog="sovit", description="Train, export and serve shape-optimised vision transformers.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"sovit {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for room in (models, images, serve, bench, shape):
        room.add_commands(commands)
    demo = command(commands, "demo", in_checkout("train.demo", "demo"), "the whole road on real scans of digits")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"))
    return parser


def _print(result: Result, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result.data, indent=2, default=str))
    elif isinstance(result.text, str):
        print(result.text)
    else:
        from rich.console import Console

        Console(highlight=False).print(result.text)
    sys.stdout.flush()


def _fail(message: str, exit_code: int) -> int:
    print(f"sovit: {message}", file=sys.stderr)
    return exit_code
