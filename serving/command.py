"""`sovit serve`: write the settings, start BentoML, pass signals on, leave nothing behind."""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

from serving.config import ENVIRONMENT_VARIABLE, ServeConfig
from serving.entry.keys import read_keys
from serving.inference.store import artifact_folder
from serving.process.failed_start import failed_status
from serving.process.scratch import PREFIX
from sovit.address import DEFAULT_HOST, free_address
from sovit.artifact import read_manifest
from sovit.commands.result import Result
from sovit.errors import ConfigError, MissingDependency
from sovit.jsonio import from_dict, to_dict, write_json

DEFAULT_PORT: Final = 3000
_FIELDS: Final = (
    "runtime",
    "tuned_for",
    "lanes",
    "threads",
    "max_batch",
    "max_queue",
    "max_images",
    "decode_threads",
    "max_body_bytes",
    "max_queue_bytes",
    "decode_memory",
    "timeout_seconds",
    "operations_host",
    "operations_port",
    "trace_endpoint",
    "trace_ratio",
)


def serve(arguments: argparse.Namespace) -> Result:
    """Run the service until it is told to stop; its exit status becomes ours."""
    if importlib.util.find_spec("bentoml") is None:
        raise MissingDependency("bentoml is not installed: pip install 'sovit[serving]'.")
    host, port = free_address(arguments.host or DEFAULT_HOST, arguments.port or DEFAULT_PORT)
    artifacts = _artifacts(arguments.artifacts)
    given = {field: getattr(arguments, field) for field in _FIELDS if getattr(arguments, field) is not None}
    settings: dict[str, Any] = {
        "artifacts": artifacts,
        **given,
        "log_requests": arguments.log_requests,
        "page": not arguments.no_page,
    }
    if arguments.keys is not None:
        settings["keys"] = str(Path(arguments.keys).resolve())
        read_keys(Path(arguments.keys))
    settings["decode"] = {"reduced_scale": arguments.reduced_scale} | (
        {} if arguments.max_pixels is None else {"max_pixels": arguments.max_pixels}
    )
    config = from_dict(ServeConfig, settings, "serve")
    if config.operations_port == port:
        raise ConfigError(f"--operations-port {port} is the port of the service itself; choose another.")
    if config.operations_port:
        free_address(config.operations_host, config.operations_port)
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory(prefix=PREFIX) as scratch:
        path = Path(scratch) / "config.json"
        write_json(path, to_dict(config))
        process = subprocess.Popen(
            # -P keeps the current folder off the path, so that no stray file of the user's hides one of ours.
            [
                *(sys.executable, "-P", "-m", "bentoml", "serve", "serving.service:SoViTService"),
                *("--working-dir", str(root), "--host", host, "--port", str(port)),
            ],
            # BentoML keeps scratch files in its home: ours goes with the service, unless the user has one of their own.
            env={
                "BENTOML_HOME": str(Path(scratch) / "bentoml"),
                **os.environ,
                ENVIRONMENT_VARIABLE: str(path),
                "BENTOML_DO_NOT_TRACK": "True",
            },
        )

        stopped: set[int] = set()

        def pass_on(number: int, _: FrameType | None) -> None:
            stopped.add(number)
            process.send_signal(number)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, pass_on)
        status = process.wait()
        if -status in stopped:  # told to stop before it could listen to that
            status = 0
        failed = failed_status(path.parent)  # the worker has said why
        return Result(None, "", status if failed is None else failed)


def _artifacts(words: Sequence[str]) -> dict[str, str]:
    """Whole paths by name. A name that is not given is the one that the artifact was exported with."""
    artifacts: dict[str, str] = {}
    for word in words:
        is_path = "=" not in word or Path(word).is_dir()  # a folder may have a = in its name
        name, _, reference = ("", "", word) if is_path else word.partition("=")
        folder = artifact_folder(reference).resolve()
        name = name or read_manifest(folder).name
        if name in artifacts:
            raise ConfigError(f"two artifacts have the name {name!r}: give them names, NAME=ARTIFACT.")
        artifacts[name] = str(folder)
    return artifacts
