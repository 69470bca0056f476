"""How a plan is built: the settings, and the options of the command line that give them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

from sovit.artifact import check_batch, parse_batch
from sovit.errors import ConfigError
from sovit.runtime.tensorrt.plan import HardwareCompatibility

HIGHEST_LEVEL: Final = 5
_MOST_GIB: Final = 65_536


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """How a plan is built.

    `batch` is the least, the usual and the largest batch (None: the manifest's). `workspace_gib` limits the scratch
    memory a layer may use (None: all of the GPU's). `builder_level` 0 to 5 trades minutes of search for speed; 3 is
    TensorRT's own default. `compute_capabilities`, such as "8.9", are those that a portable engine is built for
    (none: the library's default).
    """

    batch: tuple[int, int, int] | None = None
    workspace_gib: float | None = None
    builder_level: int = 3
    hardware_compatibility: HardwareCompatibility = "none"
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.batch is not None:
            check_batch(self.batch)
        if self.workspace_gib is not None and not 0 < self.workspace_gib <= _MOST_GIB:
            raise ConfigError(f"workspace_gib is {self.workspace_gib}, it must be above 0 and at most {_MOST_GIB:,}.")
        if not 0 <= self.builder_level <= HIGHEST_LEVEL:
            raise ConfigError(f"builder_level is {self.builder_level}, it must be from 0 to {HIGHEST_LEVEL}.")
        if self.hardware_compatibility not in get_args(HardwareCompatibility):
            raise ConfigError(
                f"hardware_compatibility is {self.hardware_compatibility!r}, it must be one of "
                f"{', '.join(get_args(HardwareCompatibility))}."
            )


def add_library_options(parser: argparse.ArgumentParser) -> None:
    """Which library compiles, and where a portable engine is written to or read from."""
    parser.add_argument(
        "--for", dest="library", choices=["tensorrt", "rtx"], default="tensorrt",
        help="TensorRT, or TensorRT for RTX (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--out",
        type=Path,
        metavar="ENGINE",
        help="with --for rtx: write a portable engine to this folder; needs no GPU",
    )
    parser.add_argument(
        "--from", dest="engine", type=Path, metavar="ENGINE",
        help="verify an engine built elsewhere, check its parity, and cache it for this GPU",
    )  # fmt: skip
    parser.add_argument(
        "--compute-capability", nargs="+", default=[], metavar="X.Y",
        help="target GPUs of the engine, such as 8.9 12.0 (default: Ampere and newer)",
    )  # fmt: skip


def add_compile_options(parser: argparse.ArgumentParser, *, batch: bool = True) -> None:
    """The options of a plan; `batch` False leaves `--batch` out, where the command has one of its own."""
    if batch:
        parser.add_argument("--batch", metavar="MIN:OPT:MAX", help="batch sizes (default: the artifact's)")
    parser.add_argument(
        "--workspace-gib", type=float, metavar="N", help="scratch memory a layer may use (default: all of the GPU's)"
    )
    parser.add_argument(
        "--builder-level", type=int, choices=range(HIGHEST_LEVEL + 1), default=CompileOptions.builder_level,
        help="how long to search for fast kernels (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--hardware-compatibility", choices=get_args(HardwareCompatibility),
        default=CompileOptions.hardware_compatibility,
        help="other GPUs the plan must run on, at some cost in speed (default: %(default)s)",
    )  # fmt: skip


def compile_options(arguments: argparse.Namespace) -> CompileOptions:
    """What was asked for on the command line."""
    return CompileOptions(
        batch=None if arguments.batch is None else parse_batch(arguments.batch),
        workspace_gib=arguments.workspace_gib,
        builder_level=arguments.builder_level,
        hardware_compatibility=arguments.hardware_compatibility,
        compute_capabilities=tuple(dict.fromkeys(getattr(arguments, "compute_capability", ()))),
    )
