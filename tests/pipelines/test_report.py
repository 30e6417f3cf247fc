"""The Report card: how a run ended and why, from the backend's word and from what the pods have printed."""

import pytest
from cluster.fake_api.server import FakeCluster
from cluster.fake_api.store import key_of
from kfp import dsl
from kubernetes import config

from llm_finetune.components.serving.vllm_serve.local import OWNER_VARIABLE
from llm_finetune.pipelines.report import step
from llm_finetune.pipelines.report.component import report as card

RUN = "run-1"
COMMAND = [
    "sh",
    "-ec",
    "program_path=$(mktemp -d)",
    "def source(): ...",
    "--executor_input",
    "{}",
    "--function_to_execute",
]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    api = FakeCluster()
    path = str(api.kubeconfig(tmp_path / "kubeconfig"))
    monkeypatch.setattr(config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    yield api
    api.stop()


def pod(api, function, phase, log="", minute=0, run=RUN, reason="", ended="Completed"):
    name = f"{run}-{function or 'driver'}-{minute}"
    arguments = [*COMMAND, function] if function else ["--type", "CONTAINER"]
    made = {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "team", "labels": {"pipeline/runid": run}},
        "spec": {"containers": [{"name": "wait"}, {"name": "main", "command": ["launch"], "args": arguments}]},
    }  # fmt: skip
    api.store.put(made)
    state = {
        "terminated": {
            "exitCode": int(phase == "Failed"),
            "reason": ended,
            "finishedAt": f"2026-01-01T10:{minute:02}:00Z",
        }
    }
    main = {"name": "main", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}
    api.store.status(
        key_of(made),
        {
            "phase": phase,
            "containerStatuses": [main],
            **({"reason": reason, "message": "The node was low on memory."} if reason else {}),
        },
    )
    if log:
        api.logs[(name, "main", False)] = log


def ending(tmp_path, state="FAILED", message=""):
    found = step.report(state, message, RUN, tmp_path / "report.md")
    return found, (tmp_path / "report.md").read_text()


def test_the_card_that_failed_first_is_named_with_its_own_words(cluster, tmp_path):
    pod(cluster, "load_dataset", "Failed", "error: no network", 0)
    pod(cluster, "load_dataset", "Succeeded", "1000 rows\n", 1)  # the second try
    pod(cluster, "", "Failed", "driver's noise", 2)
    pod(cluster, "evaluate", "Failed", "Traceback\nRuntimeError: later", 5)
    pod(cluster, "finetune_lora", "Failed", "step 3\nerror: the loss is not finite\nlower learning_rate", 4)
    pod(cluster, "filter_clean", "Failed", "error: of another run", 0, run="run-2")
    found, page = ending(tmp_path)
    assert (found.state, found.card) == ("failed", "finetune_lora")
    assert found.reason == "finetune_lora failed: the loss is not finite\nlower learning_rate"
    assert page.startswith("# Run failed\n\nFinetune_lora failed: the loss is not finite")
    assert "| evaluate | RuntimeError: later |" in page
    assert "another run" not in page
    assert "no network" not in page


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"ended": "OOMKilled", "log": "step 3\n"}, "killed for memory; give the card's size more"),
        ({"reason": "Evicted"}, "Evicted: The node was low on memory."),
        ({}, "its log is gone, as is its pod"),
    ],
)
def test_a_card_that_could_not_say_why_is_spoken_for(cluster, tmp_path, how, reason):
    pod(cluster, "finetune_lora", "Failed", **how)
    assert reason in ending(tmp_path)[0].reason


def test_a_closed_gate_is_told_as_such(cluster, tmp_path):
    pod(cluster, "quality_gate", "Succeeded", "gate closed: not deployed, because loss_delta < 0 does not hold\n")
    found, page = ending(tmp_path, "SUCCEEDED")
    assert found == step.Ending(
        "succeeded", "quality_gate", "the gate stayed closed, not deployed, because loss_delta < 0 does not hold"
    )
    assert page.startswith("# Run succeeded\n\nThe gate stayed closed")


def test_without_rights_the_backends_word_stands_and_the_missing_right_is_named(cluster, tmp_path):
    pod(cluster, "evaluate", "Failed", "error: hidden")
    cluster.deny("get", "", "pods/log")
    found, page = ending(tmp_path, message="task evaluate failed")
    assert found.reason == "task evaluate failed"
    assert "could not be read: reading the pods of run run-1 in team was refused (403)" in page


def test_a_local_run_in_a_notebook_of_the_cluster_has_no_pods(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv(OWNER_VARIABLE, "1")
    pod(cluster, "evaluate", "Failed", "error: of another run of that name")
    assert ending(tmp_path, message="task evaluate failed")[0].reason == "task evaluate failed"
    assert cluster.requests == []


def test_outside_a_cluster_the_backends_word_is_all(tmp_path):
    artifact = dsl.Markdown(uri=str(tmp_path / "end.md"))
    status = dsl.PipelineTaskFinalStatus("SUCCEEDED", "", "exit-handler-1", None, None)
    card.python_func(status=status, end_report=artifact, run_id=RUN)
    assert artifact.metadata["state"] == "succeeded"
    assert "Every card that was to run did" in (tmp_path / "end.md").read_text()
    assert "the backend gives no reason" in ending(tmp_path, "CANCELLED")[0].reason
