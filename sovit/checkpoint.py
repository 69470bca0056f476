"""The checkpoint folder: `model.safetensors` + `config.json`. No pickle anywhere.

One imported from two towers also holds `text.safetensors`, `text_config.json` and the tokenizer's files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import safetensors
from pydantic import ConfigDict

from sovit.errors import CheckpointMismatch, ConfigError
from sovit.folder import replace_folder
from sovit.jsonio import STRICT, from_dict, read_json, to_dict, write_json
from sovit.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

    from sovit.model import ViT

SCHEMA_VERSION: Final = 1
CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
TEXT_WEIGHTS: Final = "text.safetensors"
TEXT_CONFIG: Final = "text_config.json"
TOKENIZER_FILES: Final = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "spiece.model",
    "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(ModelSpec):
    """A checkpoint's `config.json`. `provenance` says in free form where the weights come from."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    schema_version: int = SCHEMA_VERSION
    provenance: dict[str, Any] = field(default_factory=dict)


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder looks like a checkpoint, of ours or a foreign one."""
    return (folder / CONFIG).is_file()


def own_files(folder: Path) -> tuple[str, ...] | None:
    """The names of the files of a checkpoint that sovit wrote; None for any other folder."""
    try:
        data = read_json(folder / CONFIG)
    except ConfigError:
        return None
    fields = {"schema_version", "model", "preprocess", "provenance"}
    if not isinstance(data, dict) or not fields <= data.keys() or not (folder / WEIGHTS).is_file():
        return None
    return (CONFIG, WEIGHTS, TEXT_WEIGHTS, TEXT_CONFIG, *TOKENIZER_FILES)


def save_checkpoint(folder: Path, model: ViT, spec: ModelSpec, provenance: dict[str, Any]) -> None:
    """Write a checkpoint folder; an older one in its place survives until the new one is complete."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with write_checkpoint(folder, tensors, spec, provenance):
        pass


@contextmanager
def write_checkpoint(
    folder: Path, tensors: Mapping[str, Tensor], spec: ModelSpec, provenance: dict[str, Any]
) -> Iterator[Path]:
    """Write weights and config, and yield the folder for further files before it is put in place."""
    from safetensors.torch import save_file

    config = CheckpointConfig(
        model=spec.model, preprocess=spec.preprocess, labels=spec.labels, score=spec.score, provenance=provenance
    )
    with replace_folder(folder, "checkpoint", own_files) as aside:
        save_file(dict(tensors), aside / WEIGHTS, metadata={"format": "pt"})
        write_json(aside / CONFIG, to_dict(config))
        yield aside


def read_config(folder: Path) -> CheckpointConfig:
    """A checkpoint's config, without its weights."""
    data = read_json(folder / CONFIG)
    if isinstance(data, dict) and data.keys() & {"architecture", "model_type"} and "schema_version" not in data:
        raise CheckpointMismatch(f"{folder} is a foreign checkpoint: import it with `sovit convert {folder} --to DIR`.")
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise CheckpointMismatch(
            f"{folder / CONFIG} has schema_version {version!r}, this sovit reads {SCHEMA_VERSION}."
        )
    return from_dict(CheckpointConfig, data, str(folder / CONFIG))


def load_model(folder: str | Path, *, image_size: tuple[int, int] | None = None) -> ViT:
    """Build the model of a checkpoint folder in evaluation mode, on the CPU, in float32.

    `image_size` (Y, X) other than the checkpoint's resamples a learned position embedding. Raises `ConfigError` or
    `CheckpointMismatch`, naming the file and the key.
    """
    import torch

    from sovit.model import ViT
    from sovit.position import resample_position_embedding, sincos2d

    folder = Path(folder)
    saved = read_config(folder)
    wanted = saved.at(image_size).model if image_size else saved.model
    weights = _read_weights(folder / WEIGHTS)
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in ViT(saved.model).state_dict().items()}
        model = ViT(wanted)
    _check_keys(folder / WEIGHTS, expected, {name: tuple(tensor.shape) for name, tensor in weights.items()})
    if wanted.position_embedding == "learn":
        weights["pos_embed"] = resample_position_embedding(
            weights["pos_embed"], saved.model.grid, wanted.grid, saved.model.position_resampling
        )
    else:
        model.pos_embed = sincos2d(wanted.grid, wanted.width)
    model.load_state_dict(weights, assign=True)
    return model.float().eval()


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointMismatch(f"{path} is missing.")
    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointMismatch(f"{path} is truncated or is no safetensors file.") from error


def _check_keys(path: Path, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    for name in sorted(expected.keys() - found.keys()):
        raise CheckpointMismatch(f"{path} lacks the key {name} {list(expected[name])}.")
    for name in sorted(found.keys() - expected.keys()):
        raise CheckpointMismatch(f"{path} has the unexpected key {name} {list(found[name])}.")
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointMismatch(
                f"{path}: {name} has shape {list(found[name])}, the config asks for {list(shape)}."
            )
