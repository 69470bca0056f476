"""The command line of benchmarks that have a module of their own and run a service on images."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.load.loops import read_images
from sovit.commands.result import EXIT_INTERRUPTED
from sovit.errors import EXIT_FAILED, ConfigError, MissingDependency, SoViTError
from sovit.jsonio import must_be_writable


def parser_of(description: str | None, *, seconds: float) -> argparse.ArgumentParser:
    """What they all take: the artifact, images, rounds of so many seconds, and where the result goes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--images", type=Path, nargs="+", help="JPEG files or folders; two photographs when left out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=seconds, help="length of a turn under one load")
    parser.add_argument("--out", type=Path, help="write the result as JSON there")
    parser.epilog = "What follows -- is passed to `sovit serve`."
    return parser


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """The benchmark's own arguments, and those of `sovit serve`."""
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments = parser.parse_args(sys.argv[1:cut])
    require_turns(arguments.rounds, arguments.seconds)
    must_be_writable(arguments.out)
    return arguments, sys.argv[cut + 1 :]


def require_turns(rounds: int, seconds: float) -> None:
    """Raises `ConfigError` where there would be none, or they would have no end."""
    if rounds < 1:
        raise ConfigError(f"--rounds {rounds} must be at least 1.")
    if not 0 < seconds < math.inf:
        raise ConfigError(f"--seconds {seconds:g} must be above 0, and finite.")


def images_of(paths: Sequence[Path] | None) -> list[bytes]:
    """The JPEG files among these paths and in these folders, or two photographs."""
    return read_images(paths) if paths else photographs()


def photographs() -> list[bytes]:
    """The two JPEG photographs that scikit-learn ships, 640 x 427."""
    try:
        import sklearn.datasets
    except ImportError as error:
        raise MissingDependency(
            "this benchmark's photographs ship with scikit-learn: pip install 'sovit[export]'."
        ) from error
    folder = Path(sklearn.datasets.__file__).parent / "images"
    return [(folder / name).read_bytes() for name in ("china.jpg", "flower.jpg")]


def run(main: Callable[[], int]) -> int:
    """A command line that says in a sentence what was wrong, as `sovit` does."""
    try:
        return main()
    except SoViTError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        print(f"{error.name} is not installed: pip install 'sovit[peers]'.", file=sys.stderr)
        return EXIT_FAILED
    except OSError as error:
        print(f"{error.filename or 'the system'}: {error.strerror or error}.", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
