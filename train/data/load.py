"""The one way to open a data set: by a name or a folder.

What reads a kind of them is imported when one of it is opened: each has dependencies of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sovit.errors import ConfigError
from train.data.dataset import DIGITS, HUB, Dataset, Split

# What a split is called, as a folder and as the start of a file's name; the first that is there is taken.
_NAMES: Final[dict[Split, tuple[str, ...]]] = {"train": ("train",), "test": ("test", "val", "validation")}
_SUFFIXES: Final = (".parquet", ".tar")


def load_dataset(data: str, split: Split) -> Dataset:
    """`digits`, `hf:NAME[:CONFIG]` of the Hub, or a folder.

    A folder holds one kind of these: train/CLASS/IMAGE and test/CLASS/IMAGE, train*.parquet and test*.parquet, or
    train*.tar and test*.tar (WebDataset). The files may lie in its `data` subfolder; `test` may be called `val` or
    `validation`. A folder with CLASS/IMAGE alone is a test set: it is never trained on. Raises `ConfigError` for a
    missing split, and where two kinds fit.
    """
    if data == DIGITS:
        from train.data.digits import read_digits

        return read_digits(split)
    if data.startswith(HUB):
        from train.data.hub import read_hub

        return read_hub(data, split)
    root = Path(data)
    if not root.is_dir():
        raise ConfigError(
            f"no data set is called {data!r} and no folder either; known are {DIGITS!r} and {HUB}NAME[:CONFIG]."
        )
    return _read_root(root, split)


def _read_root(root: Path, split: Split) -> Dataset:
    kinds = {
        **{f"{name}/CLASS/IMAGE": "" for names in _NAMES.values() for name in names if (root / name).is_dir()},
        **{
            str((place / f"{name}*{suffix}").relative_to(root)): suffix
            for suffix in _SUFFIXES
            for place in (root, root / "data")
            for names in _NAMES.values()
            for name in names
            if _files(place, name, suffix)
        },
    }
    places = {(suffix, Path(pattern).parts[0] == "data") for pattern, suffix in kinds.items()}
    if len(places) > 1:
        raise ConfigError(f"{root} holds images of more than one kind: {', '.join(kinds)}; keep one of them.")
    for suffix, nested in places:
        for name in _NAMES[split]:
            if suffix and (files := _files(root / "data" if nested else root, name, suffix)):
                return _read_files(files, suffix, _called(root, name))
            if not suffix and (root / name).is_dir():
                return _read_folder(root / name, _called(root, name))
    if split == "test" and not places and any(path.is_dir() for path in root.iterdir()):
        return _read_folder(root, root.absolute().name)
    endings = ("/CLASS/IMAGE", *(f"*{suffix}" for suffix in _SUFFIXES))
    wanted = " or ".join(f"{name}{ending}" for ending in endings for name in _NAMES[split])
    raise ConfigError(f"{root} has no {split} images: it must hold {wanted} (files may lie in {root / 'data'}).")


def _called(root: Path, split: str) -> str:
    return f"{root.absolute().name} ({split})"


def _files(place: Path, prefix: str, suffix: str) -> list[Path]:
    return sorted(path for path in place.glob(f"{prefix}*{suffix}") if path.is_file())


def _read_files(files: Sequence[Path], suffix: str, name: str) -> Dataset:
    if suffix == ".parquet":
        from train.data.parquet import read_parquet

        return read_parquet(files, name)
    from train.data.webdataset import read_webdataset

    return read_webdataset(files, name)


def _read_folder(root: Path, name: str) -> Dataset:
    from train.data.folder import read_folder

    return read_folder(root, name)
