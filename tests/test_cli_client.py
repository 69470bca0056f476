"""The commands `classify` and `embed` when a service answers them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import sovit
from sovit.artifact import Artifact
from sovit.predict import Predictor
from tests.conftest import png
from tests.standing_in import KEY, keyed_service, noise
from tests.test_cli import run


@pytest.fixture(scope="module")
def url(exported: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with keyed_service(exported, tmp_path_factory.mktemp("service")) as url:
        yield url


@pytest.fixture(scope="module")
def predictor(exported: Artifact) -> Predictor:
    return sovit.load_artifact(exported.folder)


def test_the_commands_ask_a_service(
    url: str, predictor: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(tmp_path / f"{index}.png") for index in range(9)]
    for index, path in enumerate(paths):
        Path(path).write_bytes(png(noise(index, 16, 16, 3)) if index != 4 else b"text")
    (tmp_path / "key").write_text(f"{KEY}\n")
    key = ("--key-file", str(tmp_path / "key"), "--model", "tiny")
    code, out, _ = run(capsys, "classify", "--url", url, *key, "--top-k", "2", "--json", *paths)
    results = json.loads(out)["results"]
    assert code == 1
    assert [one["image"] for one in results] == paths
    assert [len(one.get("predictions", ())) for one in results] == [2, 2, 2, 2, 0, 2, 2, 2, 2]
    assert "are no image" in results[4]["error"]
    array = tmp_path / "e.npy"
    assert run(capsys, "embed", url, *paths[:4], *key, "--out", str(array))[0] == 0
    np.testing.assert_allclose(np.load(array), predictor.embed(paths[:4]), rtol=1e-3, atol=1e-5)
    code, out, _ = run(capsys, "embed", *paths[3:5], "--url", url, *key, "--no-normalize", "--out", str(array))
    assert code == 1
    assert np.isnan(np.load(array)).all(axis=1).tolist() == [False, True]
    assert run(capsys, "classify", "--url", url, paths[0], *key)[0] == 0
    code, out, errors = run(capsys, "classify", "--url", url, paths[0])
    assert (code, out, errors.count("\n")) == (1, "", 1)
    assert "answered 401" in errors
