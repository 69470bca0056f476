"""The packaging decision of docs/adr/0001, proved: the walls between the rooms, the wheel, the extras, the Bento."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from sovit.artifact import Artifact
from sovit.client import Client
from sovit.process import free_port, serving
from tests.conftest import jpeg

ROOT = Path(__file__).parents[1]
ROOMS = ("sovit", "train", "export", "serving", "benchmarks")
MAY_IMPORT = {
    "sovit": {"sovit"},
    "train": {"train", "sovit"},
    "export": {"export", "sovit"},
    "serving": {"serving", "sovit"},
    "benchmarks": {"benchmarks", "sovit", "export"},
}
# Inside the service: each may import those before it.
SERVING = (
    "config", "observing", "entry", "inference", "wire", "worker", "process", "road", "endpoint", "routes", "faces",
    "app", "command", "service",
)  # fmt: skip
# Of the benchmarks: rooms, after what all of them use.
BENCHMARKS = (
    "intervals", "words", "conditions", "process", "opening", "latency", "load", "arguments", "scenarios", "cost",
    "peers", "readme", "studies",
)  # fmt: skip
WITH_TORCH = {"sovit/model.py", "sovit/position.py", "sovit/runtime/pytorch.py"}
CONVERT = "sovit/convert/"  # may import torch as well


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


@pytest.mark.parametrize(
    ("room", "order", "others"), [("serving", SERVING, {"page"}), ("benchmarks", BENCHMARKS, {"results"})]
)
def test_what_is_in_a_room_has_an_order(room: str, order: tuple[str, ...], others: set[str]) -> None:
    here = ROOT / room
    found = {path.stem if path.is_file() else path.name for path in here.iterdir() if path.suffix in (".py", "")}
    assert found - {"__init__", "__pycache__", *others} == set(order)
    for path in here.rglob("*.py"):
        place = path.relative_to(here).parts[0].removesuffix(".py")
        for name in re.findall(rf"^\s*(?:from|import) {room}\.(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert order.index(name) <= order.index(place), f"{path} imports {name}"


def test_only_the_model_and_the_import_of_weights_need_torch() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "sovit").rglob("*.py")
        if "torch" in imported(path, at_import_only=True)
    }
    assert {path for path in found if not path.startswith(CONVERT)} == WITH_TORCH


def test_serving_and_the_core_import_without_torch() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for room in ("sovit", "serving")
        for path in sorted((ROOT / room).rglob("*.py"))
        if not str(path.relative_to(ROOT)).startswith((CONVERT, *WITH_TORCH)) and path.name != "__main__.py"
    ]
    assert "serving.service" in modules
    code = "import sys, importlib\nsys.modules['torch'] = None\n" + "".join(
        f"importlib.import_module({module!r})\n" for module in modules
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_artifact_is_checked_and_tuned_without_torch_and_checkout(exported: Artifact, tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules.update(dict.fromkeys(['torch', 'onnx', 'export', 'train', 'serving', 'benchmarks']))\n"
        "from sovit.cli import main\nsys.exit(main(sys.argv[1:]))"
    )

    def sovit(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *words]
        (tmp_path / "home").mkdir(exist_ok=True)
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path / "home")}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    for runtime in ("onnxruntime", "openvino"):
        assert f"{runtime} fp32" in sovit("check", str(exported.folder), "--runtime", runtime).stdout
    assert sovit("tune", str(exported.folder), "--max-batch", "1", "--rounds", "1").returncode == 0
    assert len(list((tmp_path / "cache" / "sovit" / "profiles").iterdir())) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["sovit"], "no engine keeps a diary there"
    assert not list((tmp_path / "home").iterdir()), "and none reports to anybody who it runs for"
    refused = sovit("compile", str(exported.folder))
    assert refused.returncode == 2
    assert "TensorRT is not installed: pip install 'sovit[gpu]'" in refused.stderr


def test_without_torch_load_model_says_what_to_install() -> None:
    code = (
        "import sys\nsys.modules['torch'] = None\nimport sovit\n"
        "try:\n    sovit.load_model('x')\n"
        "except sovit.errors.MissingDependency as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "load_model needs torch: pip install 'sovit[convert]'" in done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)],
        check=True,
        capture_output=True,
    )
    return next(out.glob("*.whl"))


def test_the_wheel_holds_sovit_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {
        "sovit",
        next(n for n in names if ".dist-info" in n).split("/")[0],
    }
    assert "sovit/py.typed" in names
    assert "sovit/runtime/ort.py" in names


def test_the_installed_wheel_works_and_says_where_the_rest_is(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")

    def sovit(*words: str) -> subprocess.CompletedProcess[str]:
        # The environment's own editable install is on the path by a .pth file: the unpacked wheel goes before it.
        return subprocess.run(
            [sys.executable, "-m", "sovit", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
            capture_output=True,
            text=True,
            check=False,
        )

    assert "220.4 GFLOPs" in sovit("info", "So400m/14").stdout
    for words in (["train", "digits", "--data", "digits", "--out", "x"], ["serve", "x"], ["bench", "latency", "x"]):
        done = sovit(*words)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "needs sovit's checkout" in done.stderr


def test_the_rooms_resolve_inside_the_checkout(tmp_path: Path) -> None:
    # From another folder, so that only the editable install can be what finds them.
    code = "".join(f"import {room}; print({room}.__file__)\n" for room in ROOMS)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    for line in done.stdout.split():
        assert Path(line).is_relative_to(ROOT)


def test_the_two_onnx_runtimes_are_exclusive_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    having = {name for name, packages in extras.items() if any("onnxruntime" in package for package in packages)}
    assert having == {"cpu", "gpu"}
    assert not any("onnxruntime" in package or package.startswith("torch") for package in project["dependencies"])
    assert not any("torch" in package for package in extras["serving"])


def locked(name: str) -> dict[str, str]:
    """Version by package of a file with hashes. Every package must have some."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all("--hash=sha256:" in line for line in lines)
    return dict(line.split(" ", 1)[0].split("==") for line in lines)


def normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def test_what_is_installed_is_pinned_with_hashes() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {normal(name): version for name, version in pins.items()}
    service, dev, audit = (locked(name) for name in ("service", "dev", "audit"))
    assert {"bentoml", "onnxruntime", "openvino", "pillow", "simplejpeg", "starlette", "uvicorn"} <= service.keys()
    assert not {"torch", "pytest", "onnx"} & service.keys()
    assert service.items() <= dev.items()
    assert "pip-audit" in audit
    for name, version in (service | dev).items():
        assert pins[normal(name)] == version, "make lock"
    # Anything a user of the service needs is in its file, with a version that fits.
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = wanted["optional-dependencies"]
    for line in [*wanted["dependencies"], *extras["serving"], *extras["cpu"]]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(service[normal(requirement.name)])


def test_a_built_bento_serves_away_from_the_checkout(exported: Artifact, tmp_path: Path) -> None:
    home = {"BENTOML_HOME": str(tmp_path / "home"), "BENTOML_DO_NOT_TRACK": "True"}
    bentoml = [sys.executable, "-m", "bentoml"]
    subprocess.run(
        [*bentoml, "build", "--output", "tag"], cwd=ROOT, env={**os.environ, **home}, check=True, capture_output=True
    )
    bento = next((tmp_path / "home" / "bentos" / "sovit").glob("*/"))
    requirements = (bento / "env" / "python" / "requirements.txt").read_text(encoding="utf-8")
    assert requirements.count("--hash=sha256:") > 500
    packed = {path.relative_to(bento / "src").parts[0] for path in (bento / "src").rglob("*.py")}
    assert packed == {"sovit", "serving"}
    (tmp_path / "away").mkdir()
    source = shutil.copytree(bento / "src", tmp_path / "away" / "src")
    (tmp_path / "config.json").write_text(f'{{"artifacts": {{"tiny": "{exported.folder}"}}}}')
    # torch is hidden, and every module must come from the bundle although the checkout is installed here.
    (source / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n")
    probe = "import sovit, serving.service; print(sovit.__file__, serving.service.__file__)"
    env = {**home, "PYTHONPATH": str(source), "SOVIT_SERVE_CONFIG": str(tmp_path / "config.json")}
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=source, env={**os.environ, **env}, capture_output=True, text=True, check=True
    )
    assert all(Path(line).is_relative_to(source) for line in done.stdout.split())
    port = free_port()
    command = ["bentoml", "serve", "serving.service:SoViTService", "--working-dir", str(source)]
    url = f"http://127.0.0.1:{port}"
    with (
        serving([*command, "--host", "127.0.0.1", "--port", str(port)], url, tmp_path / "log", env=env, folder=source),
        Client(url) as client,
    ):
        assert client.embed([jpeg()]).shape == (1, 32)
