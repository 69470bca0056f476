"""`sovit convert`: a foreign checkpoint becomes a checkpoint folder, exactly or not at all.

    sovit convert siglip_so400m.npz --to runs/so400m
    sovit convert hf:timm/vit_so150m2_patch16_reg1_gap_256.sbb_e200_in12k_ft_in1k --to runs/so150m2

Three steps: describe (keys and shapes only), check (every key accounted for), fill and write. Weights keep the type
they have in the source, but where something is added to them or they are resampled; safetensors are mapped, not read.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sovit.checkpoint import CONFIG, TEXT_CONFIG, TEXT_WEIGHTS, own_files, write_checkpoint
from sovit.convert import big_vision, hub, timm, transformers
from sovit.convert.files import refuse_pickles
from sovit.convert.foreign import Foreign, ImportOptions
from sovit.convert.rules import check, fill, keys
from sovit.errors import CheckpointMismatch, ConfigError
from sovit.folder import check_replaceable
from sovit.jsonio import read_json, write_json
from sovit.labels import numbered
from sovit.position import resample_position_embedding
from sovit.spec import ModelSpec


@dataclass(frozen=True)
class Imported:
    """What was imported: `layout` is the code base, `notes` what was chosen where the source said nothing."""

    folder: Path
    layout: str
    spec: ModelSpec
    text_keys: int
    notes: tuple[str, ...]


def import_checkpoint(source: str | Path, folder: str | Path, options: ImportOptions | None = None) -> Imported:
    """Import `source` into the checkpoint folder `folder`, which appears whole or not at all.

    `source` is an npz file, a folder or safetensors file with its `config.json`, or `hf:OWNER/NAME[@REVISION]`. Raises
    `CheckpointMismatch` when it does not fit to the last key, `ConfigError` for choices that make no sense, and
    `ServiceError` when the hub cannot be reached.
    """
    options = options or ImportOptions()
    folder = Path(folder)
    check_replaceable(folder.resolve(), "checkpoint", own_files)
    path, provenance = _locate(str(source))
    parts = [path, *(path.iterdir() if path.is_dir() else ())]  # a file of the source may be a link into the folder
    if any(part.resolve().is_relative_to(folder.resolve()) for part in parts):
        raise ConfigError(f"{folder} holds the source, and would be replaced: choose another folder.")
    foreign = _describe(path, options)
    check(keys(foreign.table) | dict(foreign.text), foreign.weights, foreign.ignored)
    spec, notes = _chosen(foreign, options)
    tensors = dict(fill(foreign.table, foreign.weights))
    if "pos_embed" in tensors:
        tensors["pos_embed"] = resample_position_embedding(
            tensors["pos_embed"], foreign.spec.model.grid, spec.model.grid, spec.model.position_resampling
        ).contiguous()
    if spec.model.num_classes and "head.weight" not in tensors:
        tensors["head.weight"] = torch.zeros(spec.model.num_classes, spec.model.width)
        tensors["head.bias"] = torch.zeros(spec.model.num_classes)
    provenance |= {"layout": foreign.layout, "image_size": list(foreign.spec.model.image_size)}
    with write_checkpoint(folder, tensors, spec, provenance) as aside:
        _keep_text(foreign, aside)
    return Imported(folder, foreign.layout, spec, len(foreign.text), (*foreign.notes, *notes))


def _locate(source: str) -> tuple[Path, dict[str, Any]]:
    """Where the source lies on this machine, and what a checkpoint says about its origin."""
    if source.startswith(hub.PREFIX):
        path, revision = hub.fetch(source)
        return path, {"source": source, "revision": revision}
    path = Path(source)
    if not path.exists():
        raise ConfigError(
            f"{source} does not exist; a source is an .npz file, a folder or .safetensors file with its config.json, "
            "or hf:OWNER/NAME."
        )
    return path, {"source": path.resolve().name}


def _describe(path: Path, options: ImportOptions) -> Foreign:
    if not path.is_file() and not path.is_dir():
        raise CheckpointMismatch(f"{path} is neither a file nor a folder.")
    if path.is_file():
        refuse_pickles(path)
        if path.suffix == ".npz":
            return big_vision.describe(path, options)
        if path.suffix != ".safetensors":
            raise CheckpointMismatch(f"{path} is no .npz and no .safetensors file.")
    folder, weights = (path.parent, path) if path.is_file() else (path, None)
    if not (folder / CONFIG).is_file():
        raise CheckpointMismatch(f"{folder} has no {CONFIG}, which says what the weights are.")
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise CheckpointMismatch(f"{folder / CONFIG} is no JSON object.")
    if own_files(folder) is not None:
        raise ConfigError(f"{folder} is a checkpoint of sovit's already.")
    if isinstance(config.get("architecture"), str):
        return timm.describe(folder, config, options, weights)
    if isinstance(config.get("model_type"), str):
        return transformers.describe(folder, config, options, weights)
    raise CheckpointMismatch(
        f"{folder / CONFIG} names neither an architecture of timm nor a model_type of transformers."
    )


def _chosen(foreign: Foreign, options: ImportOptions) -> tuple[ModelSpec, list[str]]:
    """The source's spec with the user's choices in it, and what to tell about choices that nobody made."""
    spec, notes = foreign.spec, []
    model, labels = spec.model, spec.labels
    if options.num_classes is not None and not model.num_classes:
        model, labels = replace(model, num_classes=options.num_classes), numbered(options.num_classes)
        notes.append(f"a new head of {options.num_classes} classes starts at zero: it must be trained before use")
    preprocess = options.preprocess(spec.preprocess)
    spec = ModelSpec(
        model=replace(model, naflex=preprocess.resize == "naflex"),
        preprocess=preprocess,
        labels=labels if options.labels is None else options.labels,
        score=options.score or spec.score,
    )
    spec = spec.at(options.image_size) if options.image_size else spec
    silent = [name for name in foreign.silent if getattr(options, name, None) is None]
    silent = [name for name in silent if getattr(spec.preprocess, name) is not None]
    if options.resize is not None:
        silent = [name for name in silent if name != "crop_fraction"]
    values = [f"{name.replace('_', '-')} {getattr(spec.preprocess, name)}" for name in silent]
    if values:
        notes.append(f"the source says nothing about part of the preprocessing; taken by default: {', '.join(values)}")
    return spec, notes


def _keep_text(foreign: Foreign, folder: Path) -> None:
    """The text tower as it is, under the source's own names: nothing of a file is lost."""
    if not foreign.text:
        return
    tensors = {key: foreign.weights.read(key).contiguous() for key in foreign.text}
    for key, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise CheckpointMismatch(f"{foreign.weights.name}: {key} is {tensor.dtype}, weights must be floats.")
    save_file(tensors, folder / TEXT_WEIGHTS, metadata={"format": "pt"})
    write_json(folder / TEXT_CONFIG, {"layout": foreign.layout, **foreign.text_config})
    for path in foreign.files:
        shutil.copyfile(path, folder / path.name)
