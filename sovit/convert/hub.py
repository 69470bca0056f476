"""`hf:OWNER/NAME[@REVISION]`: safetensors checkpoints of the Hugging Face hub, through its own client and cache.

Only the files an import needs are fetched, never a pickle. Environment variables of the client (HF_HOME, HF_ENDPOINT,
HF_TOKEN, HF_HUB_OFFLINE) work as everywhere.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from sovit.checkpoint import TOKENIZER_FILES, WEIGHTS
from sovit.convert.files import SHARD_INDEX, SHARDS
from sovit.convert.transformers import PROCESSOR_CONFIGS
from sovit.errors import CheckpointMismatch, ConfigError, MissingDependency, ServiceError

PREFIX: Final = "hf:"
_SOURCE: Final = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)
_FILES: Final = ("config.json", *PROCESSOR_CONFIGS, WEIGHTS, SHARD_INDEX, SHARDS, *TOKENIZER_FILES)


def fetch(source: str) -> tuple[Path, str]:
    """The folder of a repository in the client's cache, and the commit it holds; shows progress while it loads.

    Raises `ConfigError` for an id that is none or that does not exist, `ServiceError` when the hub cannot be reached.
    """
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise ConfigError(f"{source!r} is no hub id: write hf:OWNER/NAME or hf:OWNER/NAME@REVISION.")
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise MissingDependency("hf: sources need huggingface_hub: pip install 'sovit[convert]'.") from error
    revision = match["revision"]
    try:
        folder = Path(
            snapshot_download(
                match["repo"],
                revision=revision,
                allow_patterns=list(_FILES),
            )
        )
    except errors.GatedRepoError as error:
        raise ConfigError(f"{source} is gated: accept its terms on the hub and log in with `hf auth login`.") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ConfigError(f"{source} does not exist on the hub, or is private and you are not logged in.") from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(f"{source}: the hub has no revision {revision!r} of it.") from error
    except errors.LocalEntryNotFoundError as error:
        raise ServiceError(f"{source} is not in the local cache, and the hub cannot be reached.") from error
    # What its HTTP client raises when a connection breaks has no base of the hub's own.
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ServiceError(f"{source} could not be fetched from the hub: {first_line}.") from error
    if not any(folder.glob("*.safetensors")):
        raise CheckpointMismatch(f"{source} has no model.safetensors; sovit takes no pickled weights.")
    return folder, folder.name
