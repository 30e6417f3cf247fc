"""Dashboards, alerts and autoscaler ask for metrics that exist, of the pods that the suite makes."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests.kustomize import MANIFESTS

MONITORING = MANIFESTS / "components/monitoring"
# Of the exporters that every GPU cluster runs: DCGM exporter, cAdvisor, kubelet, kube-state-metrics.
OTHERS = r"DCGM_FI_|container_|kubelet_volume_stats_|kube_pod_|up\b"
# How the client library of Prometheus spells what a metric of a kind gives.
SPELLINGS = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}


def expressions() -> dict[str, str]:
    """Every query of dashboards, alerts and autoscaler, by where it stands."""
    found = {}
    for file in MONITORING.glob("dashboards/*.json"):
        for panel in json.loads(file.read_text())["panels"]:
            found |= {f"{file.stem}: {panel['title']} {t['refId']}": t["expr"] for t in panel["targets"]}
    for file in MONITORING.glob("rules-*.yaml"):
        rules = [rule for group in yaml.safe_load(file.read_text())["spec"]["groups"] for rule in group["rules"]]
        found |= {f"{file.stem}: {rule['alert']}": rule["expr"] for rule in rules}
    scaler = yaml.safe_load((MANIFESTS / "components/keda/scaled-object.yaml").read_text())
    return found | {"keda": scaler["spec"]["triggers"][0]["metadata"]["query"]}


def vllm_metrics() -> set[str]:
    """Reads the names from the installed vLLM's source; importing it would take half a minute."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    text = (Path(spec.submodule_search_locations[0]) / "v1/metrics/loggers.py").read_text()
    defined = re.findall(r'self\._(gauge|counter|histogram)_cls\(\s*name="(vllm:\w+)"', text)
    return {name + ending for kind, name in defined for ending in SPELLINGS[kind]}


def test_vllm_s_metrics_are_those_that_it_has() -> None:
    known = vllm_metrics()
    assert "vllm:num_requests_waiting" in known and len(known) > 40
    for where, expression in expressions().items():
        for name in re.findall(r"vllm:\w+", expression):
            assert name in known, where


def test_every_other_metric_is_an_exporter_s() -> None:
    for where, expression in expressions().items():
        bare = re.sub(r'"[^"]*"|\[[^]]*\]', "", expression)
        names = re.findall(r"\b([a-zA-Z_:]\w*(?::\w+)?)\s*\{", bare)
        assert all(name.startswith("vllm:") or re.match(OTHERS, name) for name in names), where


def test_models_are_told_apart_by_the_label_that_the_monitor_gives() -> None:
    monitor = yaml.safe_load((MONITORING / "pod-monitor.yaml").read_text())
    given = monitor["spec"]["podMetricsEndpoints"][0]["relabelings"][0]["targetLabel"]
    for where, expression in expressions().items():
        if "vllm:" in expression and "sum by (le)" not in expression:
            assert re.search(rf"\b{given}\b", expression), where


@pytest.mark.parametrize("name", ["vllm", "training"])
def test_dashboards_can_be_read(name: str) -> None:
    board = json.loads((MONITORING / f"dashboards/{name}.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, f"{panel['title']} lies on another panel"
        assert panel["title"] and panel["fieldConfig"]["defaults"]["unit"] and panel["targets"]
        taken |= cells
    declared = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(board))) - {"__rate_interval"}
    assert used <= declared
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_training_is_looked_up_by_the_name_of_its_pods() -> None:
    pattern: Any = re.compile("llm-finetune-.*-system-container-impl-.*")
    text = (MONITORING / "rules-training.yaml").read_text()
    used = set(re.findall(r'pod=~"([^"]+)"', text))
    assert used == {pattern.pattern}
    assert pattern.fullmatch("llm-finetune-x7k2p-system-container-impl-2877519287")
    assert pattern.fullmatch("llm-finetune-x7k2p-retry-system-container-impl-2877519287")
    assert not pattern.fullmatch("llm-finetune-v1-predictor-6d5f8-abcde")
