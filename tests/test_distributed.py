"""Two processes under torchrun compute what one does, with DDP and with FSDP2, also when a run changes their number."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.test_resume import ROOT, command, losses, run, weights

# Without EMA's and mixup's short cuts: all that draws numbers is on.
SETTINGS = ("steps=20", "warmup_steps=2", "log_every=1", "save_every=8", "cutmix=0.5", "erase=0.25")


def together(out: Path, *settings: str) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    words = [*torchrun, *command(out, *SETTINGS, *settings)[2:]]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    run(out, *SETTINGS)
    return out


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_have_the_losses_of_one(parallel: str, alone: Path, tmp_path: Path) -> None:
    together(tmp_path, f"parallel={parallel}")
    found, wanted = losses(tmp_path), losses(alone)
    assert found.keys() == wanted.keys() == set(range(1, 21))
    assert max(abs(found[step] - wanted[step]) / wanted[step] for step in wanted) < 1e-6
    for name, tensor in weights(alone).items():
        torch.testing.assert_close(weights(tmp_path)[name], tensor, atol=2e-4, rtol=1e-3)


def test_from_one_to_two_to_one_process(alone: Path, tmp_path: Path) -> None:
    states = sorted((alone / "state").glob("step-*"))
    assert [int(path.name[-9:]) for path in states] == [16, 20]
    first = ("steps=20", "keep_states=9")
    run(tmp_path, *SETTINGS, *first)
    for kept in ("step-000000020", "step-000000016"):
        remove(tmp_path / "state" / kept)
    together(tmp_path, "parallel=fsdp", "keep_states=9")
    remove(tmp_path / "state" / "step-000000020")
    run(tmp_path, *SETTINGS, "keep_states=9")
    found, wanted = losses(tmp_path), losses(alone)
    assert found.keys() == wanted.keys()
    assert max(abs(found[step] - wanted[step]) / wanted[step] for step in wanted) < 1e-6


def remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
