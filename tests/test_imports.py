"""The walls of the house: imports point one way, and the core's torch-free modules stay so."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("sovit", "train", "export", "serving", "benchmarks")
MAY_IMPORT = {
    "sovit": {"sovit"},
    "train": {"train", "sovit"},
    "export": {"export", "sovit"},
    "serving": {"serving", "sovit"},
    "benchmarks": {"benchmarks", "sovit", "export"},
}
WITH_TORCH = {"sovit/model.py", "sovit/runtime/pytorch.py"}


def imported(path: Path, *, at_import_only: bool = False) -> set[str]:
    """Top-level names of the packages a file imports; `at_import_only` leaves out what runs later or never."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if at_import_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return
        if at_import_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found.add((node.module or "").split(".")[0])
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_nobody_imports_a_neighbour_above(room: str) -> None:
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        assert imported(path) & set(ROOMS) <= MAY_IMPORT[room], path


def test_only_two_modules_of_the_core_import_torch() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "sovit").rglob("*.py")
        if "torch" in imported(path, at_import_only=True)
    }
    assert found == WITH_TORCH


def test_serving_and_the_core_import_without_torch() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for room in ("sovit", "serving")
        for path in sorted((ROOT / room).rglob("*.py"))
        if str(path.relative_to(ROOT)) not in WITH_TORCH and path.name != "__main__.py"
    ]
    assert "serving.service" in modules
    code = "import sys, importlib\nsys.modules['torch'] = None\n" + "".join(
        f"importlib.import_module({module!r})\n" for module in modules
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_torch_load_model_says_what_to_install() -> None:
    code = (
        "import sys\nsys.modules['torch'] = None\nimport sovit\n"
        "try:\n    sovit.load_model('x')\n"
        "except sovit.errors.MissingDependency as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "load_model needs torch: pip install 'sovit[train]'" in done.stdout
