"""The README is true: its commands exist, its output is what comes out, its Python runs."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sovit.artifact import Artifact
from sovit.cli import build_parser
from sovit.process import free_port, serving

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
MEASURED = (ROOT / "docs" / "measured.md").read_text(encoding="utf-8")
_FENCED = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
BLOCKS = _FENCED.findall(README)


@pytest.mark.parametrize("text", [README, GUIDE], ids=["README", "benchmarks"])
def test_every_command_parses(text: str) -> None:
    lines = [line for kind, block in _FENCED.findall(text) if kind == "sh" for line in block.splitlines()]
    commands = [line.removeprefix("$ ").split(" #")[0] for line in lines if re.match(r"(\$ )?sovit ", line)]
    assert len(commands) >= 6
    for command in commands:
        build_parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("text", [README, GUIDE, MEASURED], ids=["README", "benchmarks", "measured"])
def test_every_module_and_file_that_is_named_is_there(text: str) -> None:
    for module in set(re.findall(r"python -m ((?:benchmarks|serving|sovit)[\w.]*)", text)):
        assert importlib.util.find_spec(module.rstrip(".")), module
    for link in set(re.findall(r"\]\(((?!https?:)[^)#]+)\)", text)):
        assert any((folder / link).exists() for folder in (ROOT, ROOT / "docs")), link


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_shown_output_is_the_real_output(capsys: pytest.CaptureFixture[str]) -> None:
    from sovit.cli import main

    block = next(block for _, block in BLOCKS if block.startswith("$ sovit info"))
    command, _, shown = block.partition("\n")
    assert main(shlex.split(command)[2:]) == 0
    assert capsys.readouterr().out == shown


def test_the_python_runs(exported: Artifact, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(exported.folder.parent)
    for name in ("seven", "nine"):
        Image.new("RGB", (20, 20), "gray").save(tmp_path / f"{name}.png")
    code = next(block for kind, block in BLOCKS if kind == "python")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_clients_python_runs(exported: Artifact, tmp_path: Path) -> None:
    """OpenAI's client and ours, as they are shown, against a running service."""
    port = free_port()
    (tmp_path / "photos").mkdir()
    for name in ("seven.png", "nine.png", "cat.jpg", "photos/one.jpg"):
        Image.new("RGB", (20, 20), "gray").save(tmp_path / name)
    blocks = [block for kind, block in BLOCKS if kind == "python" and ":3000" in block]
    assert len(blocks) == 2
    command = ["sovit", "serve", f"digits={exported.folder}", "--port", str(port)]
    with serving(command, f"http://127.0.0.1:{port}", tmp_path / "log"):
        for block in blocks:
            code = block.replace(":3000", f":{port}")
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr


def test_the_table_names_every_command() -> None:
    names = ["info", "convert", "train", "evaluate", "export", "check", "classify", "embed", "serve", "bench", "demo"]
    for name in names:
        assert f"`sovit {name}" in README or f"|{name} " in README
