"""`llm-finetune submit` against an API server of Kubeflow Pipelines on this machine, with the real kfp client."""

import os
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from kfp_api import Fault
from submitting import DONE, OPEN, RUNNING, refused, submitted

from llm_finetune.components.shared.card import PACKAGE_VERSION
from llm_finetune.components.shared.errors import UserError
from llm_finetune.pipelines.options import ClusterOptions
from llm_finetune.pipelines.submit import connection


def test_a_first_submission_uploads_runs_and_shows_every_card_that_ends(api, tmp_path):
    (tmp_path / "my.yaml").write_text(
        "parameters: {learning_rate: 1e-4, gpu_count: 2}\nevaluate: {generate_samples: 3}\n"
    )
    api.story = [RUNNING, RUNNING, OPEN]
    status, shown = submitted(api, recipe=tmp_path / "my.yaml", assignments=["val_ratio=2e-1", "num_epochs=2"],
                              service_account="llm-finetune-pipeline", pipeline_root="s3://bucket/root")  # fmt: skip
    assert status == 0
    version = api.store["versions"][0]["display_name"]
    assert re.fullmatch(rf"{re.escape(PACKAGE_VERSION)}-[0-9a-f]{{8}}", version)
    assert f"llm-finetune, version {version} (uploaded)" in shown
    run = api.store["runs"][0]
    assert run["runtime_config"] == {
        "parameters": {"learning_rate": 1e-4, "gpu_count": "2", "val_ratio": 0.2, "num_epochs": 2, "recipe": {"evaluate": {"generate_samples": 3}}},
        "pipeline_root": "s3://bucket/root",
    }  # fmt: skip
    assert run["service_account"] == "llm-finetune-pipeline"
    assert f"\n{api.url}/#/runs/details/{run['run_id']}\n" in shown
    assert re.findall(r"^✓ (.+?)\s+1:05$", shown, re.MULTILINE) == [
        "Check Recipe", "Load Dataset", "Load Base Model", "Fine-Tune LoRA", "Quality Gate", "Merge & Export", "vLLM Serve", "Report",
    ]  # fmt: skip
    assert shown.rstrip().endswith("The run succeeded")


def test_the_same_pipeline_is_uploaded_once_and_a_changed_one_becomes_a_version(api):
    submitted(api, waiting=False)
    _, again = submitted(api, waiting=False)
    assert "(already uploaded)" in again
    submitted(api, waiting=False, options=ClusterOptions(spot=True))
    assert (len(api.store["pipelines"]), len(api.store["versions"]), len(api.store["runs"])) == (1, 2, 3)
    used = [run["pipeline_version_reference"]["pipeline_version_id"] for run in api.store["runs"]]
    assert used == ["version-0", "version-0", "version-1"]


def test_a_pipeline_with_another_display_name_is_found_by_its_name(api):
    api.store["pipelines"] = [{"pipeline_id": "from-git", "name": "llm-finetune", "display_name": "LLM fine-tune"}]
    assert submitted(api)[0] == 0
    assert len(api.store["pipelines"]) == 1
    assert api.store["versions"][0]["pipeline_id"] == "from-git"


def test_a_name_that_is_taken_out_of_sight_is_told(api):
    api.faults = [Fault(409, "POST", "/apis/v2beta1/pipelines")]
    assert "creating the pipeline llm-finetune was refused (409)" in refused(api)


@pytest.mark.parametrize("uploading", [True, False])
def test_without_caches_no_card_of_the_run_takes_an_earlier_result(api, uploading):
    api.story = [OPEN]
    assert submitted(api, uploading=uploading)[0] == 0
    assert submitted(api, uploading=uploading, caching=False)[0] == 0
    kept, anew = api.store["versions"] if uploading else [run["pipeline_spec"] for run in api.store["runs"]]
    assert "enableCache" in str(kept) and "enableCache" not in str(anew)


def test_a_version_of_a_given_name_is_not_overwritten(api):
    submitted(api, version="v1", cron="0 3 * * *")  # leaves no run behind
    said = refused(api, version="v1")
    assert "llm-finetune already has a version v1, and versions are immutable: choose another --version" in said


def test_a_run_may_carry_the_pipeline_itself(api):
    status, shown = submitted(api, uploading=False)
    assert (status, api.store["versions"]) == (0, [])
    assert api.store["runs"][0]["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "llm-finetune"
    assert api.store["runs"][0]["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]
    assert "pipeline  " not in shown


def test_a_recurring_run_has_its_schedule_in_six_fields(api):
    status, shown = submitted(api, cron="30 3 * * 1-5", run_name="weekdays")
    assert status == 0
    made = api.store["recurringruns"][0]
    assert made["trigger"] == {"cron_schedule": {"cron": "0 30 3 * * 1-5"}}
    assert (made["max_concurrency"], made["no_catchup"], made["mode"]) == (1, True, "ENABLE")
    assert made["display_name"].startswith("weekdays-")
    assert f"\n{api.url}/#/recurringrun/details/{made['recurring_run_id']}\n" in shown
    assert "enableCache" not in str(api.store["versions"][0]["pipeline_spec"])  # the data may have changed
    assert "--cron 'every day' has 2 fields" in refused(api, cron="every day")


def test_a_closed_gate_has_an_exit_status_of_its_own(api):
    api.story = [("SUCCEEDED", dict.fromkeys(DONE, "SUCCEEDED") | {"condition-2": "SKIPPED"}, "")]
    status, shown = submitted(api)
    assert status == 3
    assert "The gate stayed closed and nothing was deployed" in shown
    assert shown.rstrip().endswith(f"details:\n{api.url}/#/runs/details/runs-0")


def test_a_failed_run_names_the_card_and_its_reason(api):
    api.story = [
        RUNNING,
        ("FAILED", {"check-recipe": "SUCCEEDED", "load-dataset": "FAILED"}, "no such file: s3://bucket/rows.jsonl"),
    ]  # of a backend that fills in a task's error
    status, shown = submitted(api)
    assert status == 1
    assert re.search(r"^✗ Load Dataset", shown, re.MULTILINE)
    assert "The run failed: Load Dataset failed: no such file: s3://bucket/rows.jsonl" in shown
    api.story = [("CANCELED", {}, "")]
    assert submitted(api)[0] == 1


@pytest.mark.parametrize("kind", ["runs", "pipelines", "pipelines/upload_version", "experiments"])
@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("status", [502, 0])
def test_a_gateway_that_loses_an_answer_makes_nothing_twice(api, kind, done, status):
    api.faults = [Fault(status, "POST", f"/apis/v2beta1/{kind}", done=done), Fault(503, "GET", ".*/runs/.*", times=3)]
    assert submitted(api)[0] == 0
    assert [len(api.store[name]) for name in ("pipelines", "versions", "experiments", "runs")] == [1, 1, 1, 1]


def test_a_gateway_that_stays_broken_is_told(api):
    api.faults = [Fault(502, "GET", ".*", times=99)]
    assert f"{api.url} repeatedly returned 502" in refused(api)


def test_what_the_api_refuses_is_passed_on_in_its_words(api):
    api.forgotten = "lora_r"  # a server that holds another release's pipeline under this version's name
    said = refused(api, assignments=["lora_r=8"])
    assert (
        said
        == "creating the run was refused (400): Failed to create a run: InvalidInputError: unknown parameter lora_r provided"
    )


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["lora_rank=8"], "--set: the pipeline has no parameter 'lora_rank'; did you mean 'lora_r'?"),
        (["num_epochs=many"], "--set: num_epochs = 'many': Input should be a valid integer"),
        (["num_epochs=0"], "recipe.finetune_lora.num_epochs = 0: Input should be greater than or equal to 1"),
        (["lora_r"], "--set 'lora_r' does not have the form name=value"),
    ],
)
def test_an_impossible_plan_never_reaches_the_cluster(api, assignments, message):
    assert message in refused(api, assignments=assignments)
    assert api.requests == []


def test_a_token_file_is_read_anew_for_every_request_and_an_expired_token_is_told(api, tmp_path, monkeypatch):
    token = tmp_path / "token"
    token.write_text("right\n")
    api.token = "right"
    assert submitted(api, token_file=token)[0] == 0
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(token))  # as a PodDefault of Kubeflow mounts it
    assert submitted(api)[0] == 0
    api.token = "newer"
    with pytest.raises(UserError) as error:
        submitted(api, token_file=token)
    assert f"the request to {api.url} is not authenticated (401). {token} was rejected: it may have expired" in str(
        error.value
    )
    assert "right" not in str(error.value)
    with pytest.raises(UserError, match="no such file"):
        submitted(api, token_file=tmp_path / "none")


def test_a_session_cookie_lets_in_and_without_it_the_login_page_is_named(api, monkeypatch):
    api.cookie = "authservice_session=abc"
    said = refused(api)
    assert "is not authenticated (302, redirect to /dex/auth" in said
    assert f"No credentials were sent: pass --token-file, or set {connection.COOKIE}" in said
    monkeypatch.setenv(connection.COOKIE, "authservice_session=abc")
    assert submitted(api)[0] == 0
    monkeypatch.setenv(connection.COOKIE, "authservice_session=old")
    with pytest.raises(UserError, match=f"the cookie in {connection.COOKIE} was rejected"):
        submitted(api)


def test_where_there_are_many_users_the_namespace_is_needed_and_has_to_be_ones_own(api):
    api.multi_user, api.namespaces = True, {"team"}
    assert "is a multi-user installation: pass the namespace of your profile as --namespace" in refused(api)
    said = refused(api, namespace="nowhere")
    assert "was refused (403)" in said
    assert (
        "Either namespace nowhere does not exist, or the account has no permissions there: request the role kubeflow-edit"
        in said
    )
    status, shown = submitted(api, namespace="team", host=f"{api.url}/")
    assert (status, api.store["experiments"][0]["namespace"]) == (0, "team")
    assert f"\n{api.url}/#/runs/details/" in shown


class _WebPage(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self):
        self.send_response(self.status)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<html>Welcome</html>")

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("status", [200, 404])
def test_a_host_that_is_something_else_is_told(api, status):
    server = HTTPServer(("127.0.0.1", 0), type("Page", (_WebPage,), {"status": status}))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        said = refused(api, host=f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
    assert "Kubeflow Pipelines does not answer at http://127.0.0.1" in said
    assert "the URL ends in /pipeline" in said


def test_the_command_prints_lines_for_a_pipe_and_ends_with_the_status(api):
    api.story = [RUNNING, ("SUCCEEDED", dict.fromkeys(DONE, "SUCCEEDED"), "")]
    command = [str(Path(sys.executable).parent / "llm-finetune"), "submit", "--host", api.url, "--poll-seconds", "0.1"]
    closed = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"}, timeout=120)
    assert (closed.returncode, closed.stderr) == (3, "")
    assert "\x1b" not in closed.stdout
