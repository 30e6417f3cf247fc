"""The Roles give what the code asks for, and nothing besides: the card runs under exactly the shipped Role."""

from collections.abc import Iterable, Iterator
from typing import Any

import yaml
from cluster.world import V1, World, fixture_make, fixture_world  # noqa: F401
from manifests.kustomize import MANIFESTS

from llm_finetune.components.run.check_recipe.cluster import ClusterSettings
from llm_finetune.components.serving.vllm_serve.kserve import canary, preflight
from llm_finetune.components.serving.vllm_serve.settings import Settings

Right = tuple[str, str, str]

SESSION = {"store_session_info": {"Params": {"endpoint": "seaweedfs.kubeflow:9000", "disableSSL": "true"}}}
# Read with components/node-reader, or not at all: the card then says that it has not checked them.
ADMINISTRATORS = {("list", "", "nodes")}


def rules_of(file: str) -> Iterator[dict[str, Any]]:
    """Yields the rules of a file's roles, or those that a component's patches add."""
    for manifest in yaml.safe_load_all((MANIFESTS / file).read_text()):
        if manifest["kind"] in ("Role", "ClusterRole"):
            yield from manifest["rules"]
        for patch in manifest.get("patches", []):
            yield from (operation["value"] for operation in yaml.safe_load(patch["patch"]))


def rights_of(file: str) -> set[Right]:
    return {
        (verb, group, resource)
        for rule in rules_of(file)
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def reviewed(rights: Iterable[tuple[str, str, str, str]]) -> set[Right]:
    return {(verb, group, "/".join(filter(None, [resource, sub]))) for verb, group, resource, sub in rights}


class Everything:
    """Stands in for the fake API's denied rights: all but those of a Role, and remembers what was asked for."""

    def __init__(self, granted: set[Right]) -> None:
        self.granted, self.asked = granted, set[Right]()

    def __contains__(self, right: Right) -> bool:
        self.asked.add(right)
        return right not in self.granted


def test_deployer_has_what_the_preflight_asks_for_and_optional_reads() -> None:
    granted = rights_of("base/role-deployer.yaml")
    assert reviewed(preflight.RIGHTS) <= granted
    assert all(verb in ("get", "list") for verb, _, _ in granted - reviewed(preflight.RIGHTS))
    assert rights_of("components/knative/kustomization.yaml") == reviewed(preflight.KNATIVE_RIGHTS)
    group = canary.GATEWAY.partition("/")[0]
    assert rights_of("components/gateway-api/kustomization.yaml") == {("get", group, "httproutes")}
    assert rights_of("components/node-reader/cluster-role.yaml") == ADMINISTRATORS


def test_card_deploys_under_the_role_and_needs_all_of_it(world: World) -> None:
    rights = Everything(rights_of("base/role-deployer.yaml"))
    world.api.denied = rights  # type: ignore[assignment]
    keys = {"AWS_ACCESS_KEY_ID": "eA==", "AWS_SECRET_ACCESS_KEY": "eA=="}
    notes = {"serving.kserve.io/s3-endpoint": "seaweedfs.kubeflow:9000", "serving.kserve.io/s3-usehttps": "0"}
    core = {"apiVersion": "v1", "metadata": {"namespace": "team"}}
    secret = {
        "kind": "Secret",
        "data": keys,
        "metadata": core["metadata"] | {"name": "llm-serving-s3", "annotations": notes},
    }
    account = {"kind": "ServiceAccount", "metadata": core["metadata"] | {"name": "llm-serving"}}
    claim = {"kind": "PersistentVolumeClaim", "metadata": core["metadata"] | {"name": "models"}}
    for manifest in (secret, account | {"secrets": [{"name": "llm-serving-s3"}]}, claim):
        world.api.store.put(core | manifest)
    world.deploy("minio://mlpipeline/v1", SESSION)
    world.deploy("pvc://models/v2", gpu_count="1")
    assert world.uri() == "pvc://models/v2"
    assert rights.granted - rights.asked == set(), "granted, but never used"
    assert rights.asked - rights.granted == ADMINISTRATORS


def test_without_optional_reads_the_card_still_deploys(world: World, capsys: Any) -> None:
    world.api.denied = Everything(reviewed(preflight.RIGHTS))  # type: ignore[assignment]
    world.deploy(V1)
    assert world.serves(V1)
    said = capsys.readouterr().out
    assert "ServingRuntime llm-vllm not checked" in said and "service account and secrets not checked" in said


def test_named_resources_are_those_of_the_defaults() -> None:
    named = {
        rule["resources"][0]: rule["resourceNames"]
        for rule in rules_of("base/role-deployer.yaml")
        if "resourceNames" in rule
    }
    chosen = Settings()
    assert named == {
        "servingruntimes": [chosen.runtime],
        "serviceaccounts": [chosen.service_account],
        "secrets": ["llm-serving-s3"],
    }
    assert Settings.of({"storage_secret": "llm-serving-s3"}).storage_secret in named["secrets"]


def test_a_step_reads_its_store_and_its_run_and_reports_its_end() -> None:
    rules = list(rules_of("components/run-account/role.yaml"))
    named = {rule["resources"][0]: rule["resourceNames"] for rule in rules if "resourceNames" in rule}
    assert named == {"configmaps": ["kfp-launcher"], "secrets": ["mlpipeline-minio-artifact"]}
    rights = rights_of("components/run-account/role.yaml")
    # What the Report card asks for (components/run/report/pods.py).
    assert {("list", "", "pods"), ("get", "", "pods/log")} <= rights
    writing = {right for right in rights if right[0] not in ("get", "list")}
    assert writing == {
        ("create", "argoproj.io", "workflowtaskresults"),
        ("patch", "argoproj.io", "workflowtaskresults"),
    }
    # Secrets of the user's reach a step as variables: the kubelet reads them, no right is needed.
    assert ClusterSettings().hub_token_secret not in str(rules)
