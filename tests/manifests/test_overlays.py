"""Each overlay as it stands: it builds, keeps to the rules, and says what the code says."""

import re
from pathlib import Path

import pytest
import yaml
from manifests.kustomize import (
    APART,
    FITTING,
    MANIFESTS,
    OVERLAYS,
    Manifest,
    build,
    compose,
    kustomizations,
    named,
    of_kind,
)
from manifests.policies import violations

from llm_finetune.components.run.check_recipe.cluster import ClusterSettings
from llm_finetune.components.run.check_recipe.step import check_recipe
from llm_finetune.components.serving.vllm_serve.kserve import manifests, mesh
from llm_finetune.components.serving.vllm_serve.settings import Settings
from llm_finetune.pipelines.options import read_options
from llm_finetune.pipelines.recipe import read_recipe

EXAMPLE = "served-from-git"
RECIPES = sorted(path for name in ("recipe.yaml", "spot.yaml") for path in MANIFESTS.rglob(name))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_keeps_to_the_rules(overlay: str) -> None:
    assert violations(build(MANIFESTS / "overlays" / overlay)) == []


@pytest.mark.parametrize("folder", APART)
def test_other_roots_build(folder: str) -> None:
    assert violations(build(MANIFESTS / folder)) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_component_at_once_builds(overlay: str, tmp_path: Path) -> None:
    built = compose(tmp_path, f"overlays/{overlay}", FITTING[overlay])
    assert violations(built) == []
    if "spot" in FITTING[overlay]:
        assert set(named(built, "ConfigMap", "llm-finetune-defaults")["data"]) == {"recipe.yaml", "spot.yaml"}


def test_rules_are_not_blind() -> None:
    runtime = manifests.serving_runtime(image="vllm/vllm-openai:latest", namespace="team")
    runtime["spec"]["containers"][0]["securityContext"]["runAsUser"] = 0
    role = {
        "kind": "Role",
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "metadata": {"name": "r", "namespace": "team"},
    }
    role["rules"] = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["*"]}]
    secret = {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "s"}, "stringData": {"key": "value"}}
    job = named(build(MANIFESTS / "overlays/gke"), "Job", "llm-finetune-volumes")
    twin = job | {"metadata": job["metadata"] | {"name": "another"}}
    found = "\n".join(violations([runtime, role, secret, secret, job, twin]))
    assert "Job another: container give is not `restricted`" in found and "Job llm-finetune-volumes" not in found
    for told in (
        "no exact version",
        "not `restricted`",
        "a wildcard",
        "bound to nobody",
        "in Git",
        "without a names",
        "twice",
    ):
        assert told in found
    for floating in ("vllm/vllm-openai", "vllm/vllm-openai:v0", "vllm/vllm-openai:v0.24", "a/b:stable"):
        assert violations([manifests.serving_runtime(image=floating, namespace="team")]) != []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_lies_in_the_overlay_s_namespace(overlay: str) -> None:
    wanted = yaml.safe_load((MANIFESTS / "overlays" / overlay / "kustomization.yaml").read_text())["namespace"]
    built = build(MANIFESTS / "overlays" / overlay)
    subjects = [s for m in built if m["kind"].endswith("RoleBinding") for s in m["subjects"]]
    assert {m["metadata"]["namespace"] for m in built} | {s["namespace"] for s in subjects} == {wanted}
    account = "default-editor" if overlay == "kubeflow-profile" else "llm-finetune-pipeline"
    assert {subject["name"] for subject in subjects} == {account}
    made = {account["metadata"]["name"] for account in of_kind(built, "ServiceAccount")}
    assert made == {"llm-serving"} | ({account} - {"default-editor"})


def test_patches_are_json6902_in_block_style() -> None:
    for file, content in kustomizations():
        assert not {"patchesStrategicMerge", "patchesJson6902", "commonLabels", "vars"} & set(content), file
        for patch in content.get("patches", []):
            assert set(patch) == {"target", "patch"}, f"{file}: a patch is a target and operations"
            operations = yaml.safe_load(patch["patch"])
            assert all({"op", "path"} <= set(operation) for operation in operations), f"{file}: no JSON6902"
            assert not re.search(r"[{}]|\[.", patch["patch"]), (
                f"{file}: one-line flow style breaks kustomize 5.7 and 5.8"
            )


def test_files_are_short_and_say_what_they_are_for() -> None:
    for file in MANIFESTS.rglob("*.yaml"):
        if file.parent.name == "kfp" and file.name != "kustomization.yaml":
            continue  # generated: the pipeline itself
        text = file.read_text()
        assert len(text.splitlines()) <= 250, file
        assert "latest" not in text, file
        if file.name == "kustomization.yaml":
            assert text.startswith("# "), f"{file}: what is it for?"


def test_every_file_is_reached() -> None:
    """A file that no kustomization names would be a promise that nobody keeps."""
    named_in = {file.parent: file.read_text() for file, _ in kustomizations()}
    for file in MANIFESTS.rglob("*"):
        if file.is_dir() or file.name in ("kustomization.yaml", "compile.yaml") or file.parent.name == "config":
            continue
        owner = next(folder for folder in file.parents if folder in named_in)
        assert f"- {file.relative_to(owner)}" in named_in[owner], file


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: str(file.relative_to(MANIFESTS)))
def test_recipes_are_what_the_pipeline_takes(file: Path) -> None:
    plan = read_recipe(file)
    assert plan.recipe
    check_recipe(plan.parameters, plan.recipe)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_recipe_names_what_the_overlay_makes(overlay: str) -> None:
    built = build(MANIFESTS / "overlays" / overlay)
    recipe = yaml.safe_load(named(built, "ConfigMap", "llm-finetune-defaults")["data"]["recipe.yaml"])
    cluster, serve = ClusterSettings.of(recipe.get("cluster", {})), Settings.of(recipe.get("vllm_serve", {}))
    claims = {claim["metadata"]["name"] for claim in of_kind(built, "PersistentVolumeClaim")}
    assert {cluster.model_cache_claim, cluster.checkpoint_claim} == claims
    assert named(built, "ServingRuntime", serve.runtime)
    listed = [entry["name"] for entry in named(built, "ServiceAccount", serve.service_account).get("secrets", [])]
    assert listed == ([serve.storage_secret] if serve.storage_secret else [])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_compile_options_are_what_compile_takes(overlay: str) -> None:
    files = list((MANIFESTS / "overlays" / overlay).rglob("compile.yaml"))
    assert files and all(read_options(file, []) for file in files)


def test_digest_or_mirror_of_the_server_s_image_is_one_line(tmp_path: Path) -> None:
    compose(tmp_path, "overlays/gke", [])
    file = tmp_path / "kustomization.yaml"
    digest = f"sha256:{'0' * 64}"
    pinned = [{"name": "vllm/vllm-openai", "newName": "registry.example/vllm", "digest": digest}]
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"images": pinned}))
    built = build.__wrapped__(tmp_path)
    assert (
        named(built, "ServingRuntime", "llm-vllm")["spec"]["containers"][0]["image"]
        == f"registry.example/vllm@{digest}"
    )
    assert violations(built) == []


def test_example_of_a_served_model_is_the_card_s_own() -> None:
    built = build(MANIFESTS / "serving/plain")
    storage = f"s3://llm-finetune/models/{EXAMPLE}/"
    deployment = manifests.Deployment(Settings(deployment_name=EXAMPLE, namespace="kubeflow"), storage)
    assert list(built) == [manifests.inference_service(deployment)]


def test_autoscaler_asks_for_the_model_that_it_scales() -> None:
    built = build(MANIFESTS / "serving/autoscaled")
    service, scaler = of_kind(built, "InferenceService")[0], of_kind(built, "ScaledObject")[0]
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    assert service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "external"
    assert service["spec"]["predictor"]["maxReplicas"] == scaler["spec"]["maxReplicaCount"]
    assert scaler["spec"]["scaleTargetRef"]["name"] == f"{name}-predictor"
    query = scaler["spec"]["triggers"][0]["metadata"]["query"]
    assert re.findall(r'(\w+)="([^"]+)"', query) == [("namespace", namespace), ("isvc", name)] * 2


def test_mesh_policy_opens_what_the_card_names() -> None:
    """The card prints a policy for one model when a mesh refuses it; the component opens the same paths for all."""
    printed = next(yaml.safe_load_all(mesh.policies("team", "my-llm")))
    shipped = yaml.safe_load((MANIFESTS / "components/istio-authz/authorization-policy.yaml").read_text())
    assert shipped["spec"]["rules"] == printed["spec"]["rules"]
    assert shipped["apiVersion"] == printed["apiVersion"]


def test_a_server_in_a_mesh_reaches_the_mesh(tmp_path: Path) -> None:
    for overlay, components in (("kubeflow-profile", []), ("gke", ["istio-authz"])):
        built = compose(tmp_path / overlay, f"overlays/{overlay}", components)
        policy = named(built, "NetworkPolicy", "llm-finetune-server")["spec"]
        ways = {
            port["port"]: namespaces_of(rule) for rule in policy["egress"] for port in rule["ports"] if "to" in rule
        }
        # A sidecar's certificate and configuration; ambient mode's tunnel, and the probes that it hands on.
        assert ways[15012] == {"istio-system"} and ways[15008] == {"istio-system", "kubeflow"}
        assert {"from": [{"ipBlock": {"cidr": "169.254.7.127/32"}}]} in policy["ingress"]


def namespaces_of(rule: Manifest) -> set[str]:
    """Returns the namespaces that an egress rule names."""
    name = "kubernetes.io/metadata.name"
    selectors = [to["namespaceSelector"] for to in rule["to"] if "namespaceSelector" in to]
    listed = {
        value for s in selectors for e in s.get("matchExpressions", []) if e["key"] == name for value in e["values"]
    }
    return listed | {s["matchLabels"][name] for s in selectors if "matchLabels" in s}


def test_a_quota_counts_pods_that_run() -> None:
    """count/pods counts the ended ones too: some runs later, nothing would start any more."""
    hard = yaml.safe_load((MANIFESTS / "components/quota/resource-quota.yaml").read_text())["spec"]["hard"]
    assert hard["pods"] == "100" and "count/pods" not in hard


def test_policies_select_the_pods_that_the_card_makes(tmp_path: Path) -> None:
    labels = manifests.inference_service(manifests.Deployment(Settings(), "gs://b/c"))["metadata"]["labels"]
    built = compose(tmp_path, "overlays/gke", ["monitoring"])
    selectors = [
        named(built, "NetworkPolicy", "llm-finetune-server")["spec"]["podSelector"],
        named(built, "PodMonitor", "llm-finetune-server")["spec"]["selector"],
    ]
    assert all(selector["matchLabels"] == labels for selector in selectors)
    assert (
        named(built, "PodMonitor", "llm-finetune-server")["spec"]["podMetricsEndpoints"][0]["portNumber"]
        == manifests.PORT
    )


def test_pods_can_resolve_names_but_not_take_the_node_s_identity() -> None:
    for overlay in OVERLAYS:
        for policy in of_kind(build(MANIFESTS / "overlays" / overlay), "NetworkPolicy"):
            rules = policy["spec"]["egress"]
            assert {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]} in rules
            open_blocks = [
                to["ipBlock"] for rule in rules for to in rule.get("to", []) if to.get("ipBlock", {}).get("except")
            ]
            assert [block["except"] for block in open_blocks] == [["169.254.0.0/16"]]


def test_compile_options_that_components_ask_for_exist() -> None:
    files = [folder / "kustomization.yaml" for folder in sorted((MANIFESTS / "components").iterdir())]
    asked = [option for file in files for option in re.findall(r"--option ([\w=-]+)", file.read_text())]
    assert set(asked) == {"queue=llm-finetune", "spot=true", "checkpoints=true"}
    queue = yaml.safe_load((MANIFESTS / "components/kueue/local-queue.yaml").read_text())["metadata"]["name"]
    assert read_options(None, asked).queue == queue
