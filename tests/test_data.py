"""Where labelled images come from: folders, Parquet files, tar shards, the Hub; and what is checked before training."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sovit.decode import ImageSource
from sovit.errors import ConfigError, MissingDependency
from train.data.checks import check_splits
from train.data.dataset import Dataset, Split
from train.data.images import Names
from train.data.load import load_dataset

ROOT = Path(__file__).parents[1]
CIFAR10 = ROOT.parent / "shared" / "data" / "cifar10"


def png(number: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), number % 256, np.uint8)).save(content, "PNG", comment=str(number))
    return content.getvalue() + str(number).encode()  # each its own, whatever the colour


def read_in_a_new_process(images: Sequence[ImageSource], indices: list[int]) -> list[Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.map(images.__getitem__, indices)


def of_bytes(images: Sequence[ImageSource], targets: Sequence[int], classes: Sequence[str], name: str = "x") -> Dataset:
    return Dataset(name, images, np.array(targets, np.int64), tuple(classes))


def test_no_data_set_needs_torch() -> None:
    modules = sorted(path.stem for path in (ROOT / "train" / "data").glob("*.py") if path.stem != "__init__")
    assert "parquet" in modules
    code = "import sys\nsys.modules['torch'] = None\n" + "".join(f"import train.data.{name}\n" for name in modules)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Digits and folders.


def test_the_digits_split_is_fixed_and_disjoint() -> None:
    train_set, test_set = load_dataset("digits", "train"), load_dataset("digits", "test")
    assert (len(train_set), len(test_set)) == (1437, 360)
    assert train_set.classes == tuple("0123456789")
    assert set(test_set.targets.tolist()) == set(range(10))
    for one, two in zip(test_set.images, load_dataset("digits", "test").images, strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(two))
    # Two scans may be alike by chance, hardly more: the two parts share no image by construction.
    seen = {np.asarray(image).tobytes() for image in train_set.images}
    assert sum(np.asarray(image).tobytes() in seen for image in test_set.images) <= 1
    assert train_set.image_name(17) == "image 17 of digits (train)"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    root = tmp_path / "pets"
    for split, count in (("train", 3), ("test", 1)):
        for name in ("cat", "ant"):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                (root / split / name / f"{index}.PNG").write_bytes(png(index))
            (root / split / name / "notes.txt").write_text("no image")
            (root / split / name / ".hidden.png").write_bytes(b"")
        (root / split / ".ipynb_checkpoints").mkdir()
        (root / split / "empty").mkdir()
    return root


def test_a_folder_is_a_dataset(pictures: Path) -> None:
    found = load_dataset(str(pictures), "train")
    assert (found.name, found.classes, found.targets.tolist()) == ("pets (train)", ("ant", "cat"), [0, 0, 0, 1, 1, 1])
    assert list(found.images) == [pictures / "train" / name / f"{i}.PNG" for name in ("ant", "cat") for i in range(3)]
    assert found.image_name(4) == str(pictures / "train" / "cat" / "1.PNG")
    assert len(load_dataset(str(pictures / "test"), "test")) == 2
    assert pickle.loads(pickle.dumps(found.images))[5] == found.images[5]


def test_a_slice_is_as_lazy_as_the_whole(pictures: Path) -> None:
    found = load_dataset(str(pictures), "train")
    part = Dataset("part", found.images[4:0:-2], found.targets[4:0:-2], found.classes)
    assert list(part.images) == [found.images[4], found.images[2]]
    assert part.image_name(1) == str(found.images[2])
    assert part.images[-1:][0] == part.images[1]
    for index in (2, -3):
        with pytest.raises(IndexError):
            part.images[index]


@given(st.lists(st.text(max_size=12).filter(lambda name: name.isprintable())))
def test_names_come_back_from_one_buffer(names: list[str]) -> None:
    found = Names([*names, "odd\udcff"])
    assert list(found) == [*names, "odd\udcff"]
    assert found[1:] == [*names, "odd\udcff"][1:]
    assert found[-1] == "odd\udcff"


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no data set is called 'digit' .* known are 'digits' and hf:NAME"):
        load_dataset("digit", "train")
    with pytest.raises(
        ConfigError, match=r"no train images: it must hold train/CLASS/IMAGE or train\*.parquet or train"
    ):
        load_dataset(str(tmp_path), "train")
    with pytest.raises(ConfigError, match=r"no test images: .* validation\*.tar"):
        load_dataset(str(tmp_path), "test")
    (tmp_path / "cat").mkdir()
    with pytest.raises(ConfigError, match="holds no images in class folders"):
        load_dataset(str(tmp_path), "test")


def test_two_kinds_in_a_folder_are_refused(pictures: Path) -> None:
    write_parquet(pictures / "data" / "test-0.parquet", [png(0)], [0], names=["ant", "cat"])
    for split in ("train", "test"):
        with pytest.raises(ConfigError, match=r"more than one kind: train/CLASS/IMAGE, .*data/test\*.parquet"):
            load_dataset(str(pictures), split)


# Parquet.


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Any,
    *,
    names: Sequence[str] | None = None,
    columns: tuple[str, str] = ("image", "label"),
    plain: bool = False,
    more: Mapping[str, Any] | None = None,
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: Any = pa.array(images, pa.binary())
    if not plain:
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        rows = pa.array([{"bytes": image, "path": "x.png"} for image in images], kind)
    table = pa.table(
        {"id": pa.array(map(str, range(len(images))), pa.string()), columns[0]: rows, columns[1]: labels}
        | dict(more or {})
    )
    if names is not None:
        features = {columns[0]: {"_type": "Image"}, columns[1]: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(table, path, row_group_size=700)


def test_parquet_shards_are_read_back_right(tmp_path: Path) -> None:
    contents = [png(i) for i in range(2500)]
    labels = np.arange(2500) % 3
    for shard, rows in enumerate((slice(0, 1500), slice(1500, 1500), slice(1500, 2500))):
        path = tmp_path / "data" / f"train-0000{shard}-of-00003.parquet"
        write_parquet(path, contents[rows], labels[rows], names=["c", "a", "b"])
    write_parquet(tmp_path / "data" / "validation-0.parquet", contents[:2], labels[:2], names=["c", "a", "b"])
    found = load_dataset(str(tmp_path), "train")
    assert (found.classes, found.name) == (("c", "a", "b"), f"{tmp_path.name} (train)")
    assert found.targets.tolist() == labels.tolist()
    assert list(found.images) == contents
    assert found.image_name(17) == f"image 17 of {found.name}"
    assert len(load_dataset(str(tmp_path), "test")) == 2
    # What is sent to another process is small, and that process reads the files by itself.
    assert len(pickle.dumps(found.images)) < 2000
    assert read_in_a_new_process(found.images, [0, 1499, 1500, 2499]) == [contents[i] for i in (0, 1499, 1500, 2499)]


@pytest.mark.parametrize(
    ("labels", "classes", "targets"),
    [
        ([7, 3, 3, 10], ("3", "7", "10"), [1, 0, 0, 2]),
        (["dog", "ant", "dog", "cat"], ("ant", "cat", "dog"), [2, 0, 2, 1]),
    ],
)
@pytest.mark.parametrize("column", ["target", "whatever"])
def test_parquet_labels_without_names_are_their_own(
    labels: list[Any], classes: tuple[str, ...], targets: list[int], column: str, tmp_path: Path
) -> None:
    import pyarrow as pa

    path, more = tmp_path / "train.parquet", {"id": pa.array([0.5] * 4), "width": pa.array([None] * 4, pa.float32())}
    write_parquet(path, [png(i) for i in range(4)], labels, columns=("thing", column), plain=True, more=more)
    found = load_dataset(str(tmp_path), "train")
    assert (found.classes, found.targets.tolist()) == (classes, targets)
    assert found.images[2] == png(2)
    write_parquet(path, [png(i) for i in range(4)], pa.array(labels).dictionary_encode(), more=more)
    assert load_dataset(str(tmp_path), "train").classes == classes


def test_text_labels_may_have_names(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test.parquet", [png(0), png(1)], ["b", "b"], names=["b", "a"])
    assert load_dataset(str(tmp_path), "test").classes == ("b", "a")
    write_parquet(tmp_path / "test.parquet", [png(0), png(1)], ["b", "c"], names=["b", "a"])
    with pytest.raises(ConfigError, match=r"row 1 of .*test.parquet has label 'c', which is none of the 2 classes"):
        load_dataset(str(tmp_path), "test")


def test_parquet_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    import pyarrow as pa

    path = tmp_path / "train-1.parquet"
    write_parquet(tmp_path / "train-0.parquet", [png(i) for i in range(5)], [0] * 5, names=["a", "b"])

    def refused(message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            load_dataset(str(tmp_path), "train")

    two = [png(0), png(1)]
    write_parquet(path, two, [0, -1], names=["a", "b"])
    refused(r"row 1 of .*train-1.parquet has label -1, which is none of the 2 classes")
    write_parquet(path, two, [0, 1], names=["a", "c"])
    refused(r"train-1.parquet names other classes than .*train-0.parquet")
    write_parquet(path, two, ["a", "b"], names=["a", "b"])
    refused(r"train-1.parquet has no column label of int64")
    write_parquet(path, two, pa.array([0, None]), names=["a", "b"])
    refused(r"row 1 of .*train-1.parquet has no label: it is null")
    write_parquet(path, [*[png(0)] * 1200, None], [0] * 1201, names=["a", "b"])
    refused(r"row 1200 of .*train-1.parquet has no image: it is null")
    path.write_bytes(b"PAR1 is not enough")
    refused("train-1.parquet is no Parquet file, or is truncated")
    whole = (tmp_path / "train-0.parquet").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused("train-1.parquet is no Parquet file, or is truncated")
    path.write_bytes(whole[:4] + b"\xff" * (len(whole) // 2) + whole[4 + len(whole) // 2 :])
    refused("train-1.parquet is no Parquet file, or is truncated")


def test_columns_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    import pyarrow as pa

    path = tmp_path / "train.parquet"
    write_parquet(path, [png(0)], [0], columns=("one", "label"), more={"two": pa.array([b""])})
    with pytest.raises(ConfigError, match="more than one image column among id, one, label, two; call it one of image"):
        load_dataset(str(tmp_path), "train")
    write_parquet(path, [png(0)], [0.5], more={"id": pa.array([0.5])})
    with pytest.raises(ConfigError, match="no label column among id, image, label"):
        load_dataset(str(tmp_path), "train")
    # Of several that fit, the one with a usual name, else the one whose classes have names.
    write_parquet(path, [png(0)], [1], columns=("image", "breed"), names=["a", "b"])
    assert load_dataset(str(tmp_path), "train").classes == ("a", "b")
    write_parquet(path, [png(0)], [1], columns=("image", "breed"), names=["a", "b"], more={"label": pa.array([5])})
    assert load_dataset(str(tmp_path), "train").classes == ("5",)
    write_parquet(path, [], pa.array([], pa.int64()))
    with pytest.raises(ConfigError, match="has no rows"):
        load_dataset(str(tmp_path), "train")


def test_parquet_must_fit_in_half_of_the_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [os.urandom(1000) for _ in range(100)]
    write_parquet(tmp_path / "train.parquet", contents, [0] * 100)
    monkeypatch.setattr("train.data.parquet.free_memory", lambda: 190_000)
    with pytest.raises(ConfigError, match=r"more than half of the .* write it as tar shards or as a folder"):
        load_dataset(str(tmp_path), "train")
    monkeypatch.setattr("train.data.parquet.free_memory", lambda: 230_000)
    assert load_dataset(str(tmp_path), "train").images[99] == contents[99]


def test_pyarrow_is_asked_for_by_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingDependency, match=r"pip install 'sovit\[train\]'"):
        load_dataset(str(tmp_path), "train")


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="CIFAR-10 is not beside the checkout")
def test_cifar10_is_as_published() -> None:
    train_set, test_set = load_dataset(str(CIFAR10), "train"), load_dataset(str(CIFAR10), "test")
    assert np.bincount(train_set.targets).tolist() == [5000] * 10
    assert np.bincount(test_set.targets).tolist() == [1000] * 10
    assert train_set.classes[3] == "cat"
    content = train_set.images[-1]
    assert isinstance(content, bytes)
    assert Image.open(io.BytesIO(content)).size == (32, 32)
    assert all("can be found in" in warning for warning in check_splits(train_set, test_set))


# Tar shards.


def write_tar(path: Path, members: Mapping[str, bytes], format: int = tarfile.GNU_FORMAT) -> None:
    with tarfile.open(path, "w", format=format) as tar:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def samples(numbers: Sequence[int], label: Callable[[int], str | bytes]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for number in numbers:
        given = label(number)
        content, kind = (given.encode(), "cls") if isinstance(given, str) else (given, "json")
        found |= {f"a/{number:05d}.jpg": png(number), f"a/{number:05d}.{kind}": content}
    return found


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_tar_shards_are_read_back_right(format: int, tmp_path: Path) -> None:
    for shard in range(2):
        write_tar(
            tmp_path / f"train-{shard}.tar",
            samples(range(800 * shard, 800 * shard + 800), lambda i: f"{i % 3}\n"),
            format,
        )
    found = load_dataset(str(tmp_path), "train")
    assert (found.classes, found.targets.tolist()) == (("0", "1", "2"), [i % 3 for i in range(1600)])
    assert list(found.images) == [png(i) for i in range(1600)]
    assert found.image_name(801) == f"{tmp_path / 'train-1.tar'}: a/00801.jpg"
    # Threads share what is open.
    with ThreadPoolExecutor(4) as pool:
        copy = pickle.loads(pickle.dumps(found.images))
        assert list(pool.map(copy.__getitem__, range(1600))) == list(found.images)


def test_tar_shards_are_opened_again_in_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.data.webdataset._MOST_OPEN", 3)
    for shard in range(8):
        write_tar(
            tmp_path / f"val{shard}.tar", samples([2 * shard, 2 * shard + 1], lambda i: "ant" if i % 2 else "cat")
        )
    found = load_dataset(str(tmp_path), "test")
    assert (found.classes, found.targets.tolist()) == (("ant", "cat"), [1, 0] * 8)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else None
    assert list(found.images) == [png(i) for i in range(16)]
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before + 3
    assert read_in_a_new_process(found.images, [0, 7, 15]) == [png(0), png(7), png(15)]
    (tmp_path / "val7.tar").unlink()
    with pytest.raises(ConfigError, match=r"val7.tar cannot be read: No such file"):
        found.images[15]
    os.truncate(tmp_path / "val0.tar", 1050)
    with pytest.raises(ConfigError, match=r"val0.tar: a/00000.jpg: the shard is shorter"):
        found.images[0]


def test_tar_labels_of_every_kind(tmp_path: Path) -> None:
    def loaded(label: Callable[[int], str | bytes]) -> tuple[tuple[str, ...], list[int]]:
        write_tar(tmp_path / "train.tar", samples(range(4), label))
        found = load_dataset(str(tmp_path), "train")
        return found.classes, found.targets.tolist()

    def as_json(**entries: Any) -> bytes:
        return json.dumps(entries).encode()

    assert loaded(lambda i: as_json(label=i % 2)) == (("0", "1"), [0, 1, 0, 1])
    assert loaded(lambda i: as_json(cls=f"n{3 - i}")) == (("n0", "n1", "n2", "n3"), [3, 2, 1, 0])
    named = loaded(lambda i: as_json(label=2 * (i % 2), classname="bee" if i % 2 else "ant", x=1))
    assert named == (("ant", "1", "bee"), [0, 2, 0, 2])
    (tmp_path / "classes.txt").write_text("x\ny\nz\n")
    assert loaded(lambda i: str(i % 2)) == (("x", "y", "z"), [0, 1, 0, 1])
    assert loaded(lambda i: "zyxz"[i]) == (("x", "y", "z"), [2, 1, 0, 2])
    with pytest.raises(ConfigError, match=r"train.tar: a/00003.jpg has label 3, which is none of the 3 classes"):
        loaded(str)
    with pytest.raises(ConfigError, match=r"train.tar: a/00000.jpg has label 'w', which is none of the 3 classes"):
        loaded(lambda i: "w")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"1.cls": b"0"}, "sample 1 has no image"),
        ({"1.jpg": b"", "1.png": b"", "1.cls": b"0"}, "sample 1 has jpg, png; give it one image"),
        ({"1.jpg": b"", "2.cls": b"0"}, "sample 1 has no label"),
        ({"1.jpg": b"", "1.JPG": b"", "1.cls": b"0"}, "sample 1 has two members .JPG"),
        ({"1.jpg": b"", "1.cls": b"-1"}, "sample 1 has label -1"),
        ({"1.jpg": b"", "1.cls": b"99999999"}, "sample 1 has label 99999999"),
        ({"1.jpg": b"", "1.cls": b" "}, "sample 1: its label is ''"),
        ({"1.jpg": b"", "1.cls": b"\xff"}, "sample 1: its .cls holds no label"),
        ({"1.jpg": b"", "1.json": b"{"}, "sample 1: its .json holds no label"),
        ({"1.jpg": b"", "1.json": b"[]"}, "sample 1: its .json holds no label"),
        ({"1.jpg": b"", "1.json": b"{}"}, "sample 1: its .json holds no label"),
        ({"1.jpg": b"", "1.json": b'{"label": true}'}, "sample 1: its label is True"),
        (
            {"1.jpg": b"", "1.cls": b"0", "2.jpg": b"", "2.cls": b"x"},
            "1.jpg has a number for a label, others have names",
        ),
        (
            {
                "1.jpg": b"",
                "1.json": b'{"cls": 0, "classname": "x"}',
                "2.jpg": b"",
                "2.json": b'{"cls": 0, "classname": "y"}',
            },
            "sample 2 calls class 0 'y', another one 'x'",
        ),
        ({".hidden.jpg": b"", "README": b""}, "holds no samples"),
    ],
)
def test_odd_samples_are_named(members: dict[str, bytes], message: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", members)
    with pytest.raises(ConfigError, match=f"train.tar.*{message}"):
        load_dataset(str(tmp_path), "train")


def test_broken_shards_are_told_apart_from_short_ones(tmp_path: Path) -> None:
    path = tmp_path / "train.tar"
    write_tar(path, samples(range(3), str))
    whole = path.read_bytes()
    used = len(whole.rstrip(b"\0"))
    for size in (100, 512, 700, used - 600, used, -(-used // 512) * 512):
        path.write_bytes(whole[:size])
        with pytest.raises(ConfigError, match=r"train.tar is (no uncompressed tar file, or is )?truncated"):
            load_dataset(str(tmp_path), "train")
    broken = bytearray(whole)
    broken[512 * 3 : 512 * 4] = b"x" * 512  # the second member's header
    path.write_bytes(broken)
    with pytest.raises(ConfigError, match=r"train.tar is truncated or broken after sample a/00000"):
        load_dataset(str(tmp_path), "train")
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("1.jpg"))
    with pytest.raises(ConfigError, match=r"train.tar is no uncompressed tar file"):
        load_dataset(str(tmp_path), "train")
    write_tar(path, {})
    with pytest.raises(ConfigError, match=r"train.tar holds no samples"):
        load_dataset(str(tmp_path), "train")


# The Hub. The package `datasets` is stood in for by what its documentation says of the few things that are used.


@dataclass
class HubImage:
    decode: bool = True


@dataclass
class HubClassLabel:
    names: list[str]


@dataclass
class HubValue:
    dtype: str


class HubRows:
    """Rows as dictionaries; a slice gives a dictionary of lists."""

    def __init__(self, features: dict[str, Any], rows: dict[str, list[Any]]) -> None:
        self.features = features
        self.rows = rows

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def __getitem__(self, index: int | slice) -> dict[str, Any]:
        for feature in self.features.values():
            assert not (isinstance(feature, HubImage) and feature.decode), "images are not to be decoded here"
        return {name: values[index] for name, values in self.rows.items()}

    def select_columns(self, names: list[str]) -> HubRows:
        return HubRows({n: self.features[n] for n in names}, {n: self.rows[n] for n in names})

    def cast_column(self, name: str, feature: Any) -> HubRows:
        return HubRows({**self.features, name: feature}, self.rows)


class HubDatasetsError(Exception):
    pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str | None], dict[str, HubRows]]:
    repositories: dict[tuple[str, str | None], dict[str, HubRows]] = {}

    def split_names(name: str, config: str | None = None) -> list[str]:
        if (name, config) not in repositories:
            raise HubDatasetsError(f"Dataset '{name}' doesn't exist on the Hub or cannot be accessed.\nMore.")
        return list(repositories[name, config])

    def load(name: str, config: str | None = None, *, split: str) -> HubRows:
        return repositories[name, config][split]

    module = ModuleType("datasets")
    vars(module).update(
        Image=HubImage,
        ClassLabel=HubClassLabel,
        Value=HubValue,
        get_dataset_split_names=split_names,
        load_dataset=load,
        exceptions=SimpleNamespace(DatasetsError=HubDatasetsError),
    )
    monkeypatch.setitem(sys.modules, "datasets", module)
    return repositories


def hub_rows(labels: list[Any], label: Any = None, images: list[Any] | None = None) -> HubRows:
    features = {"image": HubImage(), "label": label or HubClassLabel(["ant", "bee"]), "id": HubValue("int64")}
    images = images or [{"bytes": png(i), "path": None} for i in range(len(labels))]
    return HubRows(features, {"image": images, "label": labels, "id": list(range(len(labels)))})


def test_a_data_set_of_the_hub(hub: dict[tuple[str, str | None], dict[str, HubRows]], tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(0))
    images = [{"bytes": None, "path": str(tmp_path / "0.png")}, {"bytes": png(1), "path": "1.png"}, None]
    hub["me/pets", None] = {"train": hub_rows([1, 0, 1], images=images), "test": hub_rows([0])}
    found = load_dataset("hf:me/pets", "train")
    assert (found.name, found.classes, found.targets.tolist()) == ("hf:me/pets (train)", ("ant", "bee"), [1, 0, 1])
    assert list(found.images[:2]) == [tmp_path / "0.png", png(1)]
    assert found.image_name(1) == "image 1 of hf:me/pets (train)"
    with pytest.raises(ConfigError, match=r"row 2 of hf:me/pets \(train\) has neither"):
        found.images[2]
    assert load_dataset("hf:me/pets", "test").name == "hf:me/pets (test)"


def test_configurations_splits_and_labels_of_the_hub(hub: dict[tuple[str, str | None], dict[str, HubRows]]) -> None:
    hub["pets", "small"] = {"train": hub_rows(["b", "a"], HubValue("string")), "validation": hub_rows([1, 1])}
    assert load_dataset("hf:pets:small", "train").classes == ("a", "b")
    assert load_dataset("hf:pets:small", "test").name == "hf:pets:small (validation)"
    # A competition's test split has no labels; its validation split has.
    hub["pets", None] = {"test": hub_rows([-1, -1]), "validation": hub_rows([0, 1])}
    assert load_dataset("hf:pets", "test").name == "hf:pets (validation)"
    hub["pets", None] = {"test": hub_rows([-1, -1])}
    for data, split, message in (
        ("hf:pets", "test", r"row 0 of hf:pets \(test\) has label -1"),
        ("hf:pets", "train", "hf:pets has no split train; it has test"),
        (
            "hf:dogs",
            "train",
            "hf:dogs cannot be loaded: Dataset 'dogs' doesn't exist on the Hub or cannot be accessed.$",
        ),
        ("hf:", "train", "names no data set"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_dataset(data, split)  # type: ignore[arg-type]
    hub["pets", None] = {"train": hub_rows([0, None])}
    with pytest.raises(ConfigError, match=r"row 1 of hf:pets \(train\) has no label"):
        load_dataset("hf:pets", "train")
    hub["pets", None] = {"train": hub_rows([0.5], HubValue("float32")).select_columns(["image", "label"])}
    with pytest.raises(ConfigError, match="no label column among image, label"):
        load_dataset("hf:pets", "train")


def test_the_hub_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependency, match=r"pip install 'sovit\[hub\]'"):
        load_dataset("hf:pets", "train")


# Checks before training.

TRAIN = of_bytes([b"1", b"2", b"3"], [0, 1, 1], ["ant", "bee"], "train")


def test_good_splits_pass() -> None:
    assert check_splits(TRAIN, of_bytes([b"4", b"5"], [0, 1], ["bee", "ant"])) == ()
    assert check_splits(TRAIN, of_bytes([b"4"], [0], ["bee"])) == (
        "x has no image of ant: how well that is learnt will not be seen.",
    )
    assert "360" not in " ".join(check_splits(load_dataset("digits", "train"), load_dataset("digits", "test")))


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (of_bytes([b"1"], [0], ["ant"]), TRAIN, "x has 1 class; there must be at least two"),
        (of_bytes([b"1"], [0], ["ant", "bee", "cat"]), TRAIN, "x has no image of bee, cat"),
        (of_bytes([b"1"], [0], [str(i) for i in range(30)]), TRAIN, "20 and 9 more; every class needs one"),
        (of_bytes([b"1", b"2"], [0, 2], ["ant", "bee"]), TRAIN, "image 1 of x has label 2, which is none of the 2"),
        (of_bytes([b"1"], [0, 1], ["ant", "bee"]), TRAIN, "x has 1 images and 2 labels"),
        (of_bytes([b"1", b"2"], [0, 1], ["ant", "ant"]), TRAIN, "x has several classes called ant"),
        (TRAIN, of_bytes([b"1"], [-1], ["ant"]), "image 0 of x has label -1"),
        (TRAIN, of_bytes([], [], ["ant"]), "x has no images"),
        (TRAIN, of_bytes([b"4"], [1], ["ant", "cow"]), "x has classes that have no training images: cow"),
    ],
)
def test_bad_splits_are_named(train: Dataset, test: Dataset, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_splits(train, test)


def test_images_in_both_splits_are_warned_of() -> None:
    test = of_bytes([b"9", b"3", b"1"], [0, 0, 1], ["ant", "bee"], "test")
    (warning,) = check_splits(TRAIN, test)
    assert warning.startswith("2 images of test can be found in train too, the first as image 2 of test and image 0 of")
    pixels = [np.full((2, 2, 3), value, np.uint8) for value in (1, 2)]
    _, warning = check_splits(of_bytes(pixels, [0, 1], "ab"), of_bytes(pixels[1:], [1], "ab"))
    assert warning.startswith("1 image of")
    flat = [image.reshape(1, 4, 3) for image in pixels]
    assert check_splits(of_bytes(pixels, [0, 1], "ab"), of_bytes(flat, [0, 1], "ab")) == ()


def test_files_in_both_splits_are_found_through_links(pictures: Path) -> None:
    splits: tuple[Split, Split] = ("train", "test")
    assert check_splits(*(load_dataset(str(pictures), split) for split in splits)) == ()  # alike, but other files
    (pictures / "test" / "ant" / "link.png").symlink_to(pictures / "train" / "ant" / "1.PNG")
    (warning,) = check_splits(*(load_dataset(str(pictures), split) for split in splits))
    assert warning.startswith("1 image of pets (test)")
    assert str(pictures / "test" / "ant" / "link.png") in warning


def test_large_sets_are_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "test"):
        write_tar(tmp_path / f"{split}.tar", samples(range(2), str))
    splits = load_dataset(str(tmp_path), "train"), load_dataset(str(tmp_path), "test")
    assert check_splits(*splits)[0].startswith("2 images of")
    monkeypatch.setattr("train.data.checks._MOST_READ", 100)
    assert "too large to look for images that are in both" in check_splits(*splits)[0]
    monkeypatch.setattr("train.data.checks._MOST_READ", 2**30)
    monkeypatch.setattr("train.data.checks._MOST_HASHED", 3)
    assert "too large to look for images that are in both" in check_splits(*splits)[0]
