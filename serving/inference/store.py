"""Where an artifact is served from: a folder, or an entry of BentoML's model store (`bentoml:TAG`)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sovit.errors import ConfigError, MissingDependency

STORE: Final = "bentoml:"


def artifact_folder(reference: str) -> Path:
    """The folder that a path or `bentoml:TAG` names. Raises `ConfigError` for a tag that the store does not have."""
    if not reference.startswith(STORE):
        return Path(reference)
    try:
        import bentoml
    except ImportError as error:
        raise MissingDependency("bentoml is not installed: pip install 'sovit[serving]'.") from error
    tag = reference.removeprefix(STORE)
    try:
        return Path(bentoml.models.get(tag).path)
    except (bentoml.exceptions.BentoMLException, ValueError) as error:
        raise ConfigError(f"the model store has no {tag!r}; `bentoml models list` shows what it has.") from error
