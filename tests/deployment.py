"""What the tests of production share: its files as documents, both Bentos, and the metrics that a service exposes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import promql_parser
import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families

from sovit.artifact import Artifact
from tests.conftest import jpeg
from tests.served import JPEG, running, truncated_jpeg

ROOT: Final = Path(__file__).parents[1]
DEPLOY: Final = ROOT / "deploy"
GUIDE: Final = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
VARIANTS: Final = {"sovit": ("bentofile.yaml", "service"), "sovit-gpu": ("deploy/bentofile.gpu.yaml", "gpu")}
USER: Final = 1034
OF_PROMETHEUS: Final = {"job", "instance"}


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def read_compose() -> dict[str, Any]:
    (document,) = documents(DEPLOY / "compose.yaml")
    return dict(document)


class Bento(NamedTuple):
    name: str
    folder: Path
    dockerfile: list[tuple[str, str]]  # instruction, argument

    def arguments(self, instruction: str) -> list[str]:
        return [argument for found, argument in self.dockerfile if found == instruction]

    def environment(self) -> dict[str, str]:
        """What ENV leaves. Builders do not agree on a name that was an ENV and becomes an ARG: there must be none."""
        known: dict[str, str] = {}
        environment: dict[str, str] = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
        for instruction, argument in self.dockerfile:
            name, _, value = argument.partition("=")
            if instruction == "ARG":
                assert name not in environment, name
                known[name] = value.strip("'")
            if instruction == "ENV":
                for used in re.findall(r"\$\{?(\w+)\}?", value):
                    value = re.sub(rf"\${{?{used}\b}}?", (known | environment)[used], value)
                environment[name] = value
        return environment


def read_dockerfile(text: str) -> list[tuple[str, str]]:
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ").splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in lines if line.strip()]


def build_bentos(home: Path) -> dict[str, Bento]:
    """The Bento of each variant, built in `home`."""
    environment = {**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    found = {}
    for name, (file, _) in VARIANTS.items():
        command = [sys.executable, "-m", "bentoml", "build", "-f", file, "--output", "tag"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        folder = next(path for path in (home / "bentos" / name).iterdir() if path.is_dir())
        text = (folder / "env" / "docker" / "Dockerfile").read_text(encoding="utf-8")
        found[name] = Bento(name, folder, read_dockerfile(text))
    return found


def promtool(*words: str) -> str:
    if shutil.which("promtool") is None:
        pytest.skip("promtool, which comes with Prometheus, is not installed")
    done = subprocess.run(["promtool", *words], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def labels_exposed(artifact: Artifact, folder: Path) -> dict[str, set[str]]:
    """The labels by sample that a service exposes which has been asked for something of every kind."""
    keys = {name: sha256(name.encode()).hexdigest() for name in ("shop", "ops")}
    file = folder / "keys.json"
    limits: dict[str, dict[str, object]] = {"shop": {"requests_per_second": 0.001}, "ops": {"admin": True}}
    file.write_text(json.dumps([{"name": name, "sha256": digest} | limits[name] for name, digest in keys.items()]))
    with running(artifact, keys=str(file)) as client:
        for key in ("ops", "shop", "shop"):  # the last of them comes too soon
            for path, content in (("/classify", jpeg()), ("/embed", truncated_jpeg())):
                client.post(path, content=content, headers={**JPEG, "authorization": f"Bearer {key}"})
        text = client.get("/metrics", headers={"authorization": "Bearer ops"}).text
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def selectors(expression: object) -> Iterator[promql_parser.VectorSelector]:
    """Every selector in a parsed expression."""
    if isinstance(expression, promql_parser.VectorSelector):
        yield expression
    elif isinstance(expression, promql_parser.MatrixSelector):
        yield expression.vector_selector
    elif isinstance(expression, promql_parser.BinaryExpr):
        yield from selectors(expression.lhs)
        yield from selectors(expression.rhs)
    elif isinstance(expression, promql_parser.Call):
        for argument in expression.args:
            yield from selectors(argument)
    elif isinstance(expression, (promql_parser.AggregateExpr, promql_parser.ParenExpr, promql_parser.UnaryExpr)):
        yield from selectors(expression.expr)
    else:
        assert isinstance(expression, (promql_parser.NumberLiteral, promql_parser.StringLiteral)), expression


def groups(expression: object) -> Iterator[str]:
    """Every label that a parsed expression groups by."""
    if isinstance(expression, promql_parser.AggregateExpr):
        yield from expression.modifier.labels if expression.modifier else ()
        yield from groups(expression.expr)
    elif isinstance(expression, promql_parser.BinaryExpr):
        yield from groups(expression.lhs)
        yield from groups(expression.rhs)
    elif isinstance(expression, promql_parser.Call):
        for argument in expression.args:
            yield from groups(argument)
    elif isinstance(expression, promql_parser.ParenExpr):
        yield from groups(expression.expr)


def check_query(query: str, exposed: dict[str, set[str]]) -> None:
    for variable, value in (("$__rate_interval", "5m"), ("$job", "sovit"), ("$instance", ".+")):
        query = query.replace(variable, value)
    parsed = promql_parser.parse(query)
    used = list(selectors(parsed))
    assert used, query
    labels: set[str] = set()
    for selector in used:
        assert selector.name == "up" or selector.name in exposed, f"{selector.name} in {query}"
        labels = OF_PROMETHEUS | exposed.get(selector.name or "", set())
        matched = {matcher.name for matcher in selector.matchers.matchers}
        assert "job" in matched, query
        assert matched <= labels, f"{matched - labels} in {query}"
    assert set(groups(parsed)) <= labels, query
