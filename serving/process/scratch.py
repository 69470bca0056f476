"""The folder that `sovit serve` keeps its settings in for as long as it runs. Nobody else's folder is written to."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from serving.config import ENVIRONMENT_VARIABLE
from sovit.errors import ConfigError
from sovit.jsonio import read_json, write_json

logger = logging.getLogger(__name__)

PREFIX: Final = "sovit-serve-"


def own_settings() -> Path | None:
    """The settings that `sovit serve` wrote; None where the user's own file is in use."""
    path = Path(os.environ.get(ENVIRONMENT_VARIABLE, ""))
    return path if path.parent.name.startswith(PREFIX) else None


def remember_artifact(name: str, reference: str) -> None:
    """Have a worker that takes the place of this one serve what was swapped in."""
    path = own_settings()
    if path is None:
        logger.warning("%s: change the settings file too, or a restart serves what it says", name)
        return
    whole = path.with_suffix(".new")
    try:
        settings = read_json(path)
        settings["artifacts"][name] = reference
        write_json(whole, settings)
        whole.replace(path)
    except (OSError, ConfigError) as error:
        logger.warning("%s: a worker that takes the place of this one serves the artifact before: %s", name, error)
