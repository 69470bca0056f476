"""The operating guide: it names every setting, every metric and only files that there are."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from pathlib import Path

import pytest

from serving.config import ServeConfig
from sovit.artifact import Artifact
from sovit.cli import build_parser
from sovit.decode import DecodeOptions
from tests.deployment import GUIDE, ROOT, labels_exposed, promtool


@pytest.fixture(scope="module")
def exposed(exported: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    return labels_exposed(exported, tmp_path_factory.mktemp("keys"))


def rows(title: str) -> list[list[str]]:
    """The cells of the first table of a chapter, without its head."""
    chapter = GUIDE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    table = [line for line in chapter.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def serve_flags() -> set[str]:
    (commands,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    parser = commands.choices["serve"]
    return {option for action in parser._actions for option in action.option_strings} - {"-h", "--help"}


def test_the_guide_names_every_setting_and_its_default() -> None:
    wanted: dict[str, object] = {}
    for prefix, kind in (("", ServeConfig), ("decode.", DecodeOptions)):
        for setting in dataclasses.fields(kind):
            if setting.name != "decode":
                wanted[prefix + setting.name] = setting.default
    found = {row[0].strip("`"): row for row in rows("Settings")}
    assert found.keys() == wanted.keys()
    for name, default in wanted.items():
        _, flags, told, meaning, when = found[name]
        assert told == ("" if default is dataclasses.MISSING else f"`{json.dumps(default)}`"), name
        assert meaning
        assert when
        own = name.removeprefix("decode.").replace("_", "-")
        assert (
            flags == "`ARTIFACT`, `NAME=ARTIFACT`" if name == "artifacts" else flags in (f"`--{own}`", f"`--no-{own}`")
        )
    named = {row[1].strip("`") for row in rows("Settings")[1:]}
    assert named | {"--host", "--port"} == serve_flags()


def test_the_guide_names_every_metric(exposed: dict[str, set[str]]) -> None:
    found: dict[str, set[str]] = {}
    for names, labels, _ in rows("Metrics"):
        for name in re.findall(r"`([^`]+)`", names):
            found[name] = set(re.findall(r"`([^`]+)`", labels))
    for name, told in found.items():
        samples = [exposed[sample] for sample in (name, f"{name}_bucket") if sample in exposed]
        assert samples, name
        assert samples[0] - {"le"} == told, name
    counted = {re.sub("_(bucket|sum|count|created)$", "", name) for name in exposed if name.startswith("sovit_")}
    assert {name.removesuffix("_total") for name in counted} == {
        name.removesuffix("_total") for name in found if name.startswith("sovit_")
    }


def test_the_guides_files_are_there() -> None:
    for path in re.findall(r"deploy/[\w./-]+\w", GUIDE):
        assert (ROOT / path).exists(), path


def test_prometheus_takes_what_the_guide_tells_it(tmp_path: Path) -> None:
    (job,) = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    # Debian's promtool is built without Kubernetes.
    known = job.replace("kubernetes_sd_configs: [{role: pod}]", "static_configs: [{targets: [pod]}]")
    assert known != job
    (tmp_path / "prometheus.yml").write_text(f"scrape_configs:\n{known}")
    promtool("check", "config", str(tmp_path / "prometheus.yml"))
