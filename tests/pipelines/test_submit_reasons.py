"""`llm-finetune submit` says why a run ended as it did: in the words of its cards, since the API holds no reasons."""

import json

import pytest
from submitting import DONE, OPEN, submitted

FAILED = ("FAILED", {"check-recipe": "SUCCEEDED", "load-dataset": "FAILED", "report": "SUCCEEDED"}, "")
CLOSED = ("SUCCEEDED", dict.fromkeys([*DONE, "report"], "SUCCEEDED") | {"condition-2": "SKIPPED"}, "")
LOG = """\
I1127 20:01:01.000000      12 launcher_v2.go:186] starting
error: no such file: s3://bucket/rows.jsonl
look at jsonl_path
F1127 20:01:03.500000      12 main.go:60] failed to execute component: exit status 1
"""


def reported(state, card, reason, **more):
    facts = {"by": "report", "state": state, "card": card, "reason": reason} | more
    return f"run {state}\nllm-finetune-outcome: {json.dumps(facts)}\nI1127 20:01:03.500000 12 launcher_v2.go:205] ok\n"


@pytest.fixture(params=["api", "dashboard", "older pod names"])
def any_api(api, request):
    api.dashboard = request.param == "dashboard"
    api.pod_names = "v1" if request.param == "older pod names" else "v2"
    return api


def test_the_card_that_failed_is_quoted(any_api):
    any_api.story, any_api.logs = [FAILED], {"load-dataset": LOG}
    status, shown = submitted(any_api)
    assert status == 1
    assert "The run failed: Load Dataset failed: no such file: s3://bucket/rows.jsonl\nlook at jsonl_path\n" in shown
    assert shown.rstrip().endswith(f"details:\n{any_api.url}/#/runs/details/runs-0")
    assert "launcher" not in shown and "exit status" not in shown


def test_what_the_report_card_found_out_is_told_first(any_api):
    report = reported("failed", "load_dataset", "it was never started: no node takes it")
    any_api.story, any_api.logs = [FAILED], {"report": report, "load-dataset": LOG}
    assert "The run failed: Load Dataset failed: it was never started: no node takes it\n" in submitted(any_api)[1]


def test_where_the_report_card_could_not_read_logs_the_card_that_failed_is_asked(api):
    api.story = [FAILED]
    api.logs = {"report": reported("failed", "", "the backend gives no reason"), "load-dataset": LOG}
    assert "Load Dataset failed: no such file: s3://bucket/rows.jsonl" in submitted(api)[1]


def test_without_logs_the_card_and_the_place_to_look_are_named(any_api):
    any_api.story = [FAILED]
    shown = submitted(any_api)[1]
    said = f"Load Dataset failed ({any_api.url} returned no log; see the card Report of the run)\n"
    assert f"The run failed: {said}details:\n{any_api.url}/#/runs/details/runs-0" in shown


def test_a_closed_gate_is_told_with_its_reason(any_api):
    report = reported("succeeded", "quality_gate", "the gate stayed closed: not deployed, because x", gate="closed")
    any_api.story, any_api.logs = [CLOSED], {"report": report}
    status, shown = submitted(any_api)
    assert status == 3
    assert f"The gate stayed closed: not deployed, because x\ndetails:\n{any_api.url}/#" in shown


def test_a_deployment_is_told_with_its_place(any_api):
    reason = "llm is deployed in namespace team: http://llm-predictor.team.svc.cluster.local/v1"
    any_api.story, any_api.logs = [OPEN], {"report": reported("succeeded", "", reason, gate="open")}
    status, shown = submitted(any_api)
    assert status == 0
    assert shown.rstrip().endswith(f"The run succeeded\nL{reason[1:]}")


def test_among_many_users_the_log_is_asked_for_in_the_namespace(api):
    api.multi_user, api.namespaces, api.dashboard = True, {"team"}, True
    api.story, api.logs = [FAILED], {"load-dataset": LOG}
    assert "Load Dataset failed: no such file" in submitted(api, namespace="team")[1]
