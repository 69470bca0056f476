from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

import sovit.cores
from sovit.cores import _container_limit, available_cores


def limit(tmp_path: Path, own: str, **limits: str) -> float:
    """The limit of a process in the group `own`; `limits` are those of the `root`, the `pod` and the `box` in it."""
    (tmp_path / "self").write_text(f"0::{own}\n", encoding="utf-8")
    groups = tmp_path / "groups"
    folders = {"root": groups, "pod": groups / "pod", "box": groups / "pod" / "box"}
    folders["box"].mkdir(parents=True, exist_ok=True)
    for place, folder in folders.items():
        (folder / "cpu.max").write_text(limits.get(place, "max 100000"), encoding="utf-8")
    return _container_limit(tmp_path / "self", groups)


def test_the_lowest_limit_on_the_way_up_holds(tmp_path: Path) -> None:
    assert limit(tmp_path, "/pod/box") == math.inf
    assert limit(tmp_path, "/pod/box", pod="250000 100000") == 2.5
    assert limit(tmp_path, "/pod/box", pod="250000 100000", box="150000 100000") == 1.5
    assert limit(tmp_path, "/pod", box="150000 100000") == math.inf
    assert limit(tmp_path, "/", root="50000 100000") == 0.5
    assert limit(tmp_path, "/pod/box", box="nonsense", pod="100000 0") == math.inf
    assert _container_limit(tmp_path / "nowhere", tmp_path) == math.inf


@pytest.mark.parametrize(("quota", "cores"), [(0.2, 1), (1.5, 2), (math.inf, None)])
def test_cores_are_whole_and_at_most_those_there_are(
    monkeypatch: pytest.MonkeyPatch, quota: float, cores: int | None
) -> None:
    monkeypatch.setattr(sovit.cores, "_container_limit", lambda *_: quota)
    there = len(os.sched_getaffinity(0))
    assert available_cores() == (there if cores is None else min(cores, there))
