"""What watches the service: Prometheus, its alerts, and the board of Grafana."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

import serving.app
from sovit.artifact import Artifact
from tests.deployment import DEPLOY, GUIDE, check_query, documents, labels_exposed, promtool, read_compose


def rules() -> list[dict[str, Any]]:
    (document,) = documents(DEPLOY / "prometheus" / "alerts.yml")
    return [rule for group in document["groups"] for rule in group["rules"]]


def board() -> dict[str, Any]:
    return dict(json.loads((DEPLOY / "grafana" / "sovit.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return read_compose()


@pytest.fixture(scope="module")
def exposed(exported: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    return labels_exposed(exported, tmp_path_factory.mktemp("keys"))


def test_prometheus_takes_its_files() -> None:
    assert "4 rules found" in promtool("check", "config", "prometheus.yml")
    assert "4 rules found" in promtool("check", "rules", "alerts.yml")


def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", "alerts_test.yml")
    (document,) = documents(DEPLOY / "prometheus" / "alerts_test.yml")
    cases = [case for test in document["tests"] for case in test["alert_rule_test"]]
    for fires in (True, False):
        assert {case["alertname"] for case in cases if bool(case["exp_alerts"]) is fires} == {
            rule["alert"] for rule in rules()
        }


def test_every_alert_says_what_to_do() -> None:
    assert len(rules()) == 4
    chapter = GUIDE.split("## Runbook")[1]
    anchors = {f"docs/operating.md#{title.lower()}" for title in re.findall(r"^### (\w+)$", chapter, re.MULTILINE)}
    for rule in rules():
        assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}
        assert rule["annotations"]["runbook"] == f"docs/operating.md#{rule['alert'].lower()}"
    assert {rule["annotations"]["runbook"] for rule in rules()} == anchors


def test_the_alerts_ask_for_what_the_service_counts(exposed: dict[str, set[str]]) -> None:
    for rule in rules():
        check_query(rule["expr"], exposed)


def test_the_alerts_know_what_is_asked_for_from_what_is_told() -> None:
    (routes,) = {match for rule in rules() for match in re.findall(r'route=~"([^"]+)"', rule["expr"])}
    asked = {path for path, methods in serving.app.app.paths.items() if "POST" in methods}
    assert {path for path in serving.app.app.paths if re.fullmatch(routes, path)} == asked
    assert routes in json.dumps(board()).replace("\\", ""), "the board means the same"


def test_the_board_asks_for_what_the_service_counts(exposed: dict[str, set[str]]) -> None:
    panels = [panel for panel in board()["panels"] if panel["type"] != "row"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    for query in asked:
        check_query(query, exposed)
        assert 'instance=~"$instance"' in query, "several instances"
    # The other way round: everything that the service counts is on the board.
    counted = {re.sub("_(bucket|sum|count|created)$", "", name) for name in exposed if name.startswith("sovit_")}
    assert all(any(name in query for query in asked) for name in counted)


def test_the_board_is_whole() -> None:
    found = board()
    variables = {variable["name"]: variable["type"] for variable in found["templating"]["list"]}
    assert variables == {"datasource": "datasource", "job": "query", "instance": "query"}
    assert len({panel["id"] for panel in found["panels"]}) == len(found["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in found["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    titles = [panel["title"] for panel in found["panels"] if panel["type"] == "row"]
    assert titles == [
        "Now",
        "Traffic",
        "Latency",
        "Stages",
        "Queue and batches",
        "Refusals and images",
        "Process",
        "Models",
    ]


def test_grafana_finds_its_source_and_its_board(compose: dict[str, Any]) -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = documents(provisioning / "datasources" / "prometheus.yml")[0]["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = documents(provisioning / "dashboards" / "sovit.yml")[0]["providers"]
    mounts = {volume.split(":")[1]: volume.split(":")[0] for volume in compose["services"]["grafana"]["volumes"]}
    assert mounts["/etc/grafana/provisioning"] == "./grafana/provisioning"
    assert mounts[f"{provider['options']['path']}/sovit.json"] == "./grafana/sovit.json"
