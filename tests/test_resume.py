"""Stopped in any way, a run goes on to the very weights of a run that was never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
SETTINGS = (
    "width=16", "depth=2", "mlp_dim=32", "num_heads=2", "steps=60", "warmup_steps=6", "batch_size=32", "ema=0.9",
    "stochastic_depth=0.2", "mixup=0.2", "flip=true", "save_every=10", "log_every=5", "threads=1",
)  # fmt: skip


def command(out: Path, *settings: str) -> list[str]:
    words = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
    return [sys.executable, "-m", "sovit", "train", "digits", "--data", "digits", "--out", str(out), *words]


def run(out: Path, *settings: str) -> str:
    done = subprocess.run(command(out, *settings), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def started(out: Path, *settings: str, beyond: int = 0) -> subprocess.Popen[str]:
    """A run that has saved a state beyond this step, and has some way to go; in a process group of its own."""
    process = subprocess.Popen(
        command(out, *settings), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    limit = time.monotonic() + 120
    while not any(int(path.name[-9:]) > beyond for path in out.glob("state/step-*")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit
        time.sleep(0.01)
    return process


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoint" / "model.safetensors")


def losses(out: Path) -> dict[int, float]:
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    out = tmp_path_factory.mktemp("whole")
    run(out)
    return out


def assert_same(one: Path, other: Path) -> None:
    found, wanted = weights(one), weights(other)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    assert losses(one) == losses(other)


def test_kill_9_and_again_with_other_workers_ends_at_the_same_bits(whole: Path, tmp_path: Path) -> None:
    for beyond in (0, 10):
        process = started(tmp_path, "steps=60", beyond=beyond)
        process.kill()
        process.communicate()
    assert not (tmp_path / "checkpoint").exists()
    assert "going on after step" in run(tmp_path, "workers=2")
    assert_same(tmp_path, whole)


def test_a_kill_in_the_middle_of_a_save_costs_nothing_older(whole: Path, tmp_path: Path) -> None:
    process = started(tmp_path)
    process.kill()
    process.communicate()
    last = sorted(tmp_path.glob("state/step-*"))[-1]
    # What a kill leaves that came before the rename: a part of a later state, under its name of before.
    torn = tmp_path / "state" / ".step-000000059"
    torn.mkdir()
    (torn / "__0_0.distcp").write_bytes(b"half")
    assert f"going on after step {int(last.name[-9:])}" in run(tmp_path)
    assert_same(tmp_path, whole)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_how_to_go_on(number: int, status: int, whole: Path, tmp_path: Path) -> None:
    process = started(tmp_path, "save_every=3", "workers=1")
    os.killpg(process.pid, number)  # as launchers do, and a terminal: its workers are told as well
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    assert "the same command goes on from there" in out
    run(tmp_path)
    assert_same(tmp_path, whole)


def test_other_settings_in_the_same_folder_are_refused(whole: Path) -> None:
    done = subprocess.run(command(whole, "learning_rate=0.5"), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "holds a run with learning_rate 0.003, not 0.5" in " ".join(done.stderr.split())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_stops_with_the_last_state_intact(workers: int, whole: Path, tmp_path: Path) -> None:
    process = started(tmp_path)
    process.kill()
    process.communicate()
    before = sorted(tmp_path.glob("state/step-*"))
    last = before[-1]
    limited = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)); "
        "sys.argv = sys.argv[1:]; runpy.run_module('sovit', run_name='__main__')"
    )
    words = command(tmp_path, f"workers={workers}")
    done = subprocess.run(
        [sys.executable, "-c", limited, "sovit", *words[3:]], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    said = "".join(done.stderr.split())
    assert f"thestateatstep{int(last.name[-9:]) + 10}couldnotbesaved" in said
    assert f"thelastoneisintact:{last}" in said
    assert sorted((tmp_path / "state").iterdir()) == before, "nothing half written is left"
    run(tmp_path)
    assert_same(tmp_path, whole)


def test_a_cooldown_branches_off_a_long_run(tmp_path: Path) -> None:
    rsqrt = ("schedule=rsqrt", "timescale=20", "keep_states=9", "save_every=10")
    run(tmp_path / "long", *rsqrt, "steps=40")
    short = (*rsqrt, "steps=30", "cooldown_steps=10")
    run(tmp_path / "whole", *short)
    words = [*command(tmp_path / "branch", *short), "--branch", str(tmp_path / "long" / "state" / "step-000000020")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, wanted = weights(tmp_path / "branch"), weights(tmp_path / "whole")
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    for state, message in (
        (tmp_path, "is no state"),
        (tmp_path / "long" / "state" / "step-000000040", "beyond the 30"),
    ):
        done = subprocess.run(
            [*command(tmp_path / "no", *short), "--branch", str(state)],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert message in " ".join(done.stderr.split())
