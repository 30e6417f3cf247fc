"""The fake cluster behaves as the tests of the kserve target require."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3
from cluster.fake_api.server import FakeCluster
from cluster.fake_api.store import Problem

SERVICES = "/apis/serving.kserve.io/v1beta1/namespaces/team/inferenceservices"


def service(name: str = "llm", **predictor: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": "team"},
        "spec": {"predictor": predictor},
    }


@pytest.fixture
def api() -> Iterator[FakeCluster]:
    cluster = FakeCluster()
    yield cluster
    cluster.stop()


def send(api: FakeCluster, method: str, path: str, body: Any = None, kind: str = "application/json") -> tuple[int, Any]:
    headers = {"Content-Type": kind} if body is not None else {}
    data = json.dumps(body).encode() if body is not None else None
    answer = urllib3.request(method, api.url + path, body=data, headers=headers, retries=False)
    return answer.status, answer.json()


def apply(api: FakeCluster, body: dict[str, Any], manager: str, **query: str) -> tuple[int, Any]:
    parameters = "&".join(f"{name}={value}" for name, value in ({"fieldManager": manager} | query).items())
    path = f"{SERVICES}/{body['metadata']['name']}?{parameters}"
    return send(api, "PATCH", path, body, "application/apply-patch+yaml")


def test_apply_conflicts_over_values_and_shares_equal_ones(api: FakeCluster) -> None:
    apply(api, service(minReplicas=1, timeout=5), "a")
    status, answer = apply(api, service(minReplicas=2), "b")
    assert status == 409
    [cause] = answer["details"]["causes"]
    assert cause["field"] == ".spec.predictor.minReplicas" and '"a"' in cause["message"]
    assert apply(api, service(minReplicas=1), "b")[0] == 200
    # Shared: neither manager can change it alone, and it is removed with its last owner.
    assert apply(api, service(minReplicas=3), "a")[0] == 409
    _, answer = apply(api, service(timeout=5), "a")
    assert answer["spec"]["predictor"] == {"minReplicas": 1, "timeout": 5}
    _, answer = apply(api, service(), "b")
    assert answer["spec"]["predictor"] == {"timeout": 5}


def test_forced_apply_takes_the_field(api: FakeCluster) -> None:
    apply(api, service(minReplicas=1), "a")
    _, answer = apply(api, service(minReplicas=2), "b", force="true")
    owners = {entry["manager"]: entry["fieldsV1"] for entry in answer["metadata"]["managedFields"]}
    assert answer["spec"]["predictor"]["minReplicas"] == 2 and "a" not in owners
    assert owners["b"] == {"f:spec": {"f:predictor": {"f:minReplicas": {}}}}


def test_keyed_lists_are_merged_by_their_key(api: FakeCluster) -> None:
    apply(api, service(model={"env": [{"name": "A", "value": "1"}]}), "a")
    _, answer = apply(api, service(model={"env": [{"name": "B", "value": "2"}]}), "b")
    assert [entry["name"] for entry in answer["spec"]["predictor"]["model"]["env"]] == ["A", "B"]
    _, answer = apply(api, service(), "a")
    assert answer["spec"]["predictor"]["model"]["env"] == [{"name": "B", "value": "2"}]


def test_dry_run_changes_nothing(api: FakeCluster) -> None:
    assert apply(api, service(minReplicas=1), "a", dryRun="All")[0] == 200
    assert send(api, "GET", f"{SERVICES}/llm")[0] == 404


def test_stale_version_is_refused(api: FakeCluster) -> None:
    _, first = apply(api, service(minReplicas=1), "a")
    apply(api, service(minReplicas=2), "a")
    assert send(api, "PUT", f"{SERVICES}/llm", first)[0] == 409
    locked = service(minReplicas=3)
    locked["metadata"]["resourceVersion"] = first["metadata"]["resourceVersion"]
    assert apply(api, locked, "a")[0] == 409


def test_status_is_a_subresource(api: FakeCluster) -> None:
    _, made = apply(api, service(minReplicas=1) | {"status": {"url": "x"}}, "a")
    assert "status" not in made and made["metadata"]["generation"] == 1
    _, answer = send(api, "PUT", f"{SERVICES}/llm/status", made | {"status": {"url": "y"}})
    assert answer["status"] == {"url": "y"} and answer["metadata"]["generation"] == 1
    _, answer = apply(api, service(minReplicas=2), "a")
    assert answer["status"] == {"url": "y"} and answer["metadata"]["generation"] == 2


def test_unknown_fields_are_refused(api: FakeCluster) -> None:
    status, answer = apply(api, service(minReplica=1), "a")
    assert status == 422 and "spec.predictor.minReplica is unknown" in answer["message"]
    assert apply(api, service(minReplicas="1"), "a")[0] == 422


def test_watch_tells_changes_and_expires(api: FakeCluster) -> None:
    _, made = apply(api, service(minReplicas=1), "a")
    since = made["metadata"]["resourceVersion"]
    apply(api, service(minReplicas=2), "a")
    path = f"{api.url}{SERVICES}?watch=true&timeoutSeconds=1&resourceVersion={since}"
    [event] = [json.loads(line) for line in urllib3.request("GET", path).data.splitlines()]
    assert (event["type"], event["object"]["spec"]["predictor"]["minReplicas"]) == ("MODIFIED", 2)
    api.store.expire()
    [event] = [json.loads(line) for line in urllib3.request("GET", path).data.splitlines()]
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)


def test_rights_are_reviewed_and_enforced(api: FakeCluster) -> None:
    api.deny("get", "", "pods/log")
    asked = {"verb": "get", "group": "", "resource": "pods", "subresource": "log", "namespace": "team"}
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    for attributes, allowed in ((asked, False), (asked | {"subresource": ""}, True)):
        _, answer = send(api, "POST", path, {"spec": {"resourceAttributes": attributes}})
        assert answer["status"]["allowed"] is allowed
    assert send(api, "GET", "/api/v1/namespaces/team/pods/x/log")[0] == 403


def test_deleting_takes_what_is_owned_and_waits_for_finalizers(api: FakeCluster) -> None:
    owner = api.store.put(service(minReplicas=1))
    reference = {"kind": "InferenceService", "name": "llm", "uid": owner["metadata"]["uid"]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "team"}}
    api.store.put(pod | {"metadata": pod["metadata"] | {"ownerReferences": [reference]}})
    key = ("serving.kserve.io/v1beta1", "InferenceService", "team", "llm")
    api.store.delete(key)
    assert api.store.find("Pod", "p") is None
    held = service("held")
    held["metadata"]["finalizers"] = ["x"]
    api.store.put(held)
    api.store.delete((*key[:3], "held"))
    assert "deletionTimestamp" in api.store.find("InferenceService", "held")["metadata"]
    with pytest.raises(Problem):
        api.store.delete(key)
