"""The Report card: how a run ended and why, from the backend's word and from what its pods tell.

`recorded/report-after-*.json` are what KFP 2.17's driver handed to the card; its word for the other cards' end is that of
the metadata store, and its error is empty.
"""

import json
from pathlib import Path

import pytest
from cluster.fake_api.server import FakeCluster
from cluster.fake_api.store import key_of
from kfp import dsl
from kfp.dsl import executor
from kubernetes import config

from llm_finetune.components.run.report import pods, step
from llm_finetune.components.run.report.component import report as card
from llm_finetune.components.serving.vllm_serve.local.server import OWNER_VARIABLE
from llm_finetune.components.shared.card_logs import read_outcome

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
CLOSED = (
    'gate closed\nllm-finetune-outcome: {"by": "quality_gate", "open": false, "reason": "not deployed, because x"}\n'
)
OPEN = 'gate open\nllm-finetune-outcome: {"by": "quality_gate", "open": true, "reason": "all 1 rules hold"}\n'
SERVED = (
    'llm-finetune-outcome: {"by": "vllm_serve", "target": "kserve", "deployment_name": "llm", '
    '"base_url": "http://llm-predictor.team.svc.cluster.local/v1", "namespace": "team"}\n'
)
FAILED = """\
I1127 20:01:01.000000      12 launcher_v2.go:186] starting
step 3
error: the loss is not finite
  lower learning_rate
E1127 20:01:02.123456      12 launcher_v2.go:461] Component failed to execute successfully: exit status 1
I1127 20:01:03.000000      12 launcher_v2.go:205] publish success.
F1127 20:01:03.500000      12 main.go:60] failed to execute component: exit status 1
time="2026-11-27T20:01:04.000Z" level=info msg="sub-process exited" argo=true error="<nil>"
Error: exit status 1
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    api = FakeCluster()
    path = str(api.kubeconfig(tmp_path / "kubeconfig"))
    monkeypatch.setattr(config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    yield api
    api.stop()


def pod(api, function, phase, log="", minute=0, run=RUN, driver="", status=None, **ended):
    """Puts a pod into the cluster: of a card, or of a card's driver, which has no function but a place in the graph."""
    name = f"{run}-{function or driver or 'root-driver'}-{minute}".replace("_", "-")
    arguments = [*COMMAND, function] if function else ["--type", "CONTAINER"]
    place = {"workflows.argoproj.io/node-name": f"wf.root.exit-handler-1.{driver}-driver"} if driver else {}
    made = {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "team", "labels": {"pipeline/runid": run}, "annotations": place},
        "spec": {"containers": [{"name": "wait"}, {"name": "main", "command": ["launch"], "args": arguments}]},
    }  # fmt: skip
    api.store.put(made)
    state = {"exitCode": int(phase == "Failed"), "reason": "Error" if phase == "Failed" else "Completed"}
    main = container("main", terminated=state | {"finishedAt": f"2026-01-01T10:{minute:02}:00Z"} | ended)
    api.store.status(key_of(made), {"phase": phase, "containerStatuses": [main]} | (status or {}))
    if log:
        api.logs[(name, "main", False)] = log


def container(name, **state):
    return {"name": name, "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}


def ending(tmp_path, state="FAILED", message=""):
    found = step.report(state, message, RUN, tmp_path / "report.md")
    return found, (tmp_path / "report.md").read_text()


def executed(tmp_path, name):
    """Runs the card as KFP's launcher does, on an input that was recorded; returns its metadata and its page."""
    given = json.loads((Path(__file__).parent / "recorded" / f"report-after-{name}.json").read_text())
    page, out = tmp_path / "end_report.md", tmp_path / "out.json"
    given["inputs"]["parameterValues"] |= {"run_id": RUN, "package_version": ""}
    given["outputs"]["artifacts"]["end_report"]["artifacts"][0]["uri"] = str(page)
    given["outputs"]["outputFile"] = str(out)
    executor.Executor(given, card).execute()
    return json.loads(out.read_text())["artifacts"]["end_report"]["artifacts"][0]["metadata"], page.read_text()


def test_after_success_the_deployment_is_named(cluster, tmp_path, capsys):
    pod(cluster, "quality_gate", "Succeeded", OPEN, 1)
    pod(cluster, "vllm_serve", "Succeeded", SERVED, 2)
    facts, page = executed(tmp_path, "success")
    sentence = "llm is deployed in namespace team: http://llm-predictor.team.svc.cluster.local/v1"
    assert page == f"# Run succeeded\n\nL{sentence[1:]}\n"
    wanted = {"state": "succeeded", "card": "", "reason": sentence, "gate": "open", "deployment": "llm"}
    assert wanted.items() <= facts.items()
    said = capsys.readouterr().out
    assert f"run succeeded: {sentence}" in said
    assert read_outcome(said, "report")["base_url"] == "http://llm-predictor.team.svc.cluster.local/v1"


def test_after_a_closed_gate_its_recorded_verdict_is_told(cluster, tmp_path):
    pod(cluster, "quality_gate", "Succeeded", CLOSED)
    facts, page = executed(tmp_path, "closed-gate")  # the backend's word is RUNNING
    assert page == "# Run succeeded\n\nThe gate stayed closed: not deployed, because x\n"
    assert {"state": "succeeded", "card": "quality_gate", "gate": "closed"}.items() <= facts.items()


def test_after_a_failure_the_card_is_quoted_without_the_launchers_lines(cluster, tmp_path):
    pod(cluster, "load_dataset", "Succeeded", "rows\n", 1)
    pod(cluster, "finetune_lora", "Failed", FAILED, 2)
    facts, page = executed(tmp_path, "failure")
    assert facts["reason"] == "the loss is not finite\nlower learning_rate"
    assert (facts["state"], facts["card"]) == ("failed", "finetune_lora")
    assert page == (
        "# Run failed\n\nThe card `finetune_lora` failed:\n\n    the loss is not finite\n    lower learning_rate\n"
    )


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("COMPLETE", "succeeded"),
        ("SUCCEEDED", "succeeded"),
        ("FAILED", "failed"),
        ("CANCELED", "cancelled"),
        ("CANCELLED", "cancelled"),
        ("RUNNING", "unknown"),
        ("SKIPPED", "unknown"),
        ("", "unknown"),
        ("SOMETHING_NEW", "unknown"),
    ],
)
def test_every_word_of_the_backend_has_a_meaning(cluster, tmp_path, word, state):
    pod(cluster, "load_dataset", "Succeeded", "rows\n")
    found, page = ending(tmp_path, word)
    assert found.state == state
    assert page.startswith("# Run ended with unknown result" if state == "unknown" else f"# Run {state}")
    if state == "unknown":
        assert (
            f"The backend reports the state {word or '(empty)'}. No pod failed, and the logs contain neither a closed"
            in page
        )


@pytest.mark.parametrize("word", ["RUNNING", "COMPLETE", "SUCCEEDED", "SOMETHING_NEW"])
def test_the_verdict_is_taken_from_the_gate_whatever_the_backend_says(cluster, tmp_path, word):
    pod(cluster, "quality_gate", "Succeeded", "gate open: as a row of data says\n" + CLOSED)
    assert ending(tmp_path, word)[0].gate == "closed"


def test_a_deployment_on_record_is_a_success_though_the_backend_says_running(cluster, tmp_path):
    pod(cluster, "vllm_serve", "Succeeded", SERVED)
    assert ending(tmp_path, "RUNNING")[0].state == "succeeded"


def test_a_first_try_that_failed_does_not_make_the_run_fail(cluster, tmp_path):
    pod(cluster, "load_dataset", "Failed", "error: no network", 0)
    pod(cluster, "load_dataset", "Succeeded", "1000 rows\n", 1)
    pod(cluster, "quality_gate", "Succeeded", CLOSED, 2)
    assert ending(tmp_path, "FAILED")[0].gate == "closed"  # the word stays from the first try
    cluster.store.delete(("v1", "Pod", "team", f"{RUN}-load-dataset-0"))
    assert ending(tmp_path, "FAILED")[0].state == "failed"


def test_written_manifests_are_no_deployment(cluster, tmp_path):
    pod(cluster, "vllm_serve", "Succeeded", SERVED.replace("kserve", "manifest"))
    found, page = ending(tmp_path, "COMPLETE")
    assert found.deployment == ""
    assert "The manifests of llm are on the page of vLLM Serve; nothing was deployed" in page


def test_the_card_that_failed_first_is_named_with_its_own_words(cluster, tmp_path):
    pod(cluster, "load_dataset", "Failed", "error: no network", 0)
    pod(cluster, "load_dataset", "Succeeded", "1000 rows\n", 1)  # the second try
    pod(cluster, "", "Failed", "driver's noise", 2)
    pod(cluster, "evaluate", "Failed", "Traceback (most recent call last):\n  File\nRuntimeError: later|", 5)
    pod(cluster, "finetune_lora", "Failed", "step 3\nerror: the loss is not finite\nlower learning_rate", 4)
    pod(cluster, "filter_clean", "Failed", "error: of another run", 0, run="run-2")
    pod(cluster, "report", "Failed", "error: of an earlier try of this card", 0)
    found, page = ending(tmp_path)
    assert (found.state, found.card) == ("failed", "finetune_lora")
    assert str(found) == "finetune_lora failed: the loss is not finite\nlower learning_rate"
    assert "| evaluate | RuntimeError: later\\| |" in page
    assert "of an" not in page and "no network" not in page and "noise" not in page


@pytest.mark.parametrize("word", ["FAILED", "RUNNING"])
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"reason": "OOMKilled", "log": "step 3\n"}, "out of memory; raise the memory of the card's size"),
        ({"reason": "StartError", "message": "exec: no python3"}, "container main was terminated: StartError: exec: no pyt"),
        ({"log": "step 3\nF1127 20:01:03.500000 12 main.go:60] failed to execute component: signal: killed\n"},
         "out of memory; raise the memory of the card's size"),
        ({"status": {"reason": "Evicted", "message": "The node was low on memory."}}, "Evicted: The node was low on"),
        ({"status": {"reason": "DeadlineExceeded"}}, "DeadlineExceeded: the cluster terminated the pod"),
        ({"status": {"containerStatuses": [container("main", waiting={"reason": "PodInitializing"})],
                     "initContainerStatuses": [container("kfp-launcher", terminated={"exitCode": 1, "reason": "Error"})]}},
         "container kfp-launcher exited with status 1: no message"),
        ({}, "its log cannot be read"),
    ],
)  # fmt: skip
def test_a_card_that_could_not_say_why_is_spoken_for(cluster, tmp_path, how, reason, word):
    pod(cluster, "finetune_lora", "Failed", **how)
    found = ending(tmp_path, word)[0]
    assert (found.state, found.card) == ("failed", "finetune_lora")
    assert reason in found.reason


def test_a_launcher_that_failed_is_told_from_the_card(cluster, tmp_path):
    log = "rows\nerror: told and passed\nF1127 20:01:03.500000 12 main.go:60] failed to execute component: failed to upload\n"
    pod(cluster, "tokenize", "Failed", log)
    said = "tokenize failed: the launcher of Kubeflow Pipelines failed: failed to execute component: failed to upload"
    assert str(ending(tmp_path)[0]) == said


def test_a_driver_that_failed_is_told_with_its_card(cluster, tmp_path):
    log = "I1127 20:01:01.000000 1 main.go:1] hi\nF1127 20:01:02.000000 1 main.go:127] KFP driver: no such input\n"
    pod(cluster, "load_dataset", "Succeeded", "rows\n", 1)
    pod(cluster, "", "Failed", log, 2, driver="format-sft")
    said = "format_sft failed: the driver of Kubeflow Pipelines failed: KFP driver: no such input"
    assert str(ending(tmp_path, "RUNNING")[0]) == said


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({"containerStatuses": [container("main", waiting={"reason": "ErrImagePull", "message": "not found"})]},
         "the card did not start: container main cannot start: ErrImagePull: not found"),
        ({"containerStatuses": [container("main", waiting={"reason": "ContainerCreating"})]},
         "the card did not start: its pod is still pending"),
        ({"containerStatuses": [], "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                                                   "message": "0/3 nodes are available"}]},
         "the card did not start: the pod cannot be scheduled: 0/3 nodes are available"),
    ],
)  # fmt: skip
def test_a_card_whose_pod_never_started_is_named(cluster, tmp_path, status, reason):
    pod(cluster, "finetune_lora", "Pending", status=status)
    found = ending(tmp_path, "RUNNING")[0]
    assert (found.state, found.card, found.reason) == ("failed", "finetune_lora", reason)
    assert ending(tmp_path, "CANCELED")[0].state == "cancelled"


def test_without_the_right_to_logs_the_card_that_failed_is_named_all_the_same(cluster, tmp_path):
    pod(cluster, "evaluate", "Failed", "error: hidden")
    cluster.deny("get", "", "pods/log")
    found, page = ending(tmp_path)
    assert str(found) == "evaluate failed: its log cannot be read"
    assert "could not be read: reading the logs of run run-1 in team was refused (403)" in page


def test_without_the_right_to_pods_the_backends_word_stands_and_the_missing_right_is_named(cluster, tmp_path):
    pod(cluster, "evaluate", "Failed", "error: hidden")
    cluster.deny("list", "", "pods")
    found, page = ending(tmp_path, message="task evaluate failed")
    assert (found.state, found.reason) == ("failed", "task evaluate failed")
    assert "could not be read: reading the pods of run run-1 in team was refused (403)" in page
    found, page = ending(tmp_path, "RUNNING")
    assert found.state == "unknown"
    assert "also after a killed pod" in page


def test_outside_a_cluster_the_backends_word_is_all(tmp_path, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    artifact = dsl.Markdown(uri=str(tmp_path / "end.md"))
    status = dsl.PipelineTaskFinalStatus("SUCCEEDED", "", "exit-handler-1", None, None)
    card.python_func(status=status, end_report=artifact, run_id=RUN)
    assert artifact.metadata["state"] == "succeeded"
    assert "All cards that ran succeeded; see the page of Quality Gate" in (tmp_path / "end.md").read_text()
    assert "the backend reports no reason" in ending(tmp_path, "CANCELLED")[0].reason


def test_a_local_run_in_a_notebook_of_the_cluster_has_no_pods(monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert pods.in_cluster()
    monkeypatch.setenv(OWNER_VARIABLE, "1")
    assert not pods.in_cluster()
