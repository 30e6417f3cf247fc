"""`llm-finetune submit` follows a run through outages of the API, of its gateway, and expired tokens."""

import re

import pytest
from kfp_api import Fault
from submitting import OPEN, RUNNING, submitted

from llm_finetune.pipelines.submit import watch

LOOK = ".*/runs/.*"


def test_waiting_ends_after_its_time_and_the_run_goes_on(api):
    api.story = [RUNNING]
    status, shown = submitted(api, timeout_hours=0)
    assert status == 4
    assert "the run runs-0 has not finished after 0 hours; it continues" in shown
    assert shown.count(f"\n{api.url}/#/runs/details/runs-0\n") == 2  # when it begins and at its end, alone on the line


@pytest.mark.parametrize("status", [502, 500, 0])
def test_an_outage_is_waited_for_and_told_once(api, status):
    api.story = [RUNNING, OPEN]
    api.faults = [Fault(status, "GET", LOOK, times=9)]
    ended, shown = submitted(api)
    assert ended == 0
    assert shown.count("The run runs-0 continues; retrying") == 1
    assert shown.rstrip().endswith("The run succeeded")


def test_an_outage_without_end_ends_the_following(api):
    api.faults = [Fault(502, "GET", LOOK, times=9999)]
    status, shown = submitted(api, timeout_hours=0.3 / 3600)
    assert status == 4
    assert f"{api.url} repeatedly returned 502" in shown
    assert "The run runs-0 is no longer followed; it continues" in shown
    assert "failed" not in shown


def test_a_token_that_expires_while_waiting_may_be_renewed_in_its_file(api, tmp_path):
    token = tmp_path / "token"
    token.write_text("right")
    api.token = "right"
    api.story = [RUNNING, OPEN]
    api.faults = [Fault(401, "GET", LOOK, times=2)]
    status, shown = submitted(api, token_file=token)
    assert status == 0
    assert re.search(r"is not authenticated \(401\).* The run runs-0 continues; retrying", shown)


def test_a_token_that_stays_expired_ends_the_following(api, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "UNAUTHORIZED_SECONDS", 0.1)
    (tmp_path / "token").write_text("right")
    api.token = "right"
    api.faults = [Fault(401, "GET", LOOK, times=9999)]
    status, shown = submitted(api, token_file=tmp_path / "token")
    assert status == 4
    assert "was rejected: it may have expired" in shown
    assert "The run runs-0 is no longer followed; it continues" in shown
    assert len(api.store["runs"]) == 1


def test_a_token_file_that_is_taken_away_while_waiting_is_no_traceback(api, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "UNAUTHORIZED_SECONDS", 0.0)
    token = tmp_path / "token"
    token.write_text("right")
    api.story = [RUNNING]
    look = api._look_at
    monkeypatch.setattr(api, "_look_at", lambda run: (token.unlink(), look(run))[1])
    status, shown = submitted(api, token_file=token)
    assert status == 4
    assert f"{token}: No such file or directory. The run runs-0 is no longer followed" in shown


def test_a_run_that_was_deleted_is_not_looked_for(api):
    api.faults = [Fault(404, "GET", LOOK)]
    status, shown = submitted(api)
    assert status == 4
    assert "reading the run was refused (404)" in shown
