import inspect
import os
import re
import subprocess
import sys

import pytest
import yaml
from lint import graphs, lint

from llm_finetune.components.run.check_recipe.wiring import PARAMETERS
from llm_finetune.components.shared.card import PACKAGE_VERSION
from llm_finetune.pipelines.compile import COMPILED, RESOURCES, compile_pipeline, compile_resources, content_version
from llm_finetune.pipelines.finetune import finetune
from llm_finetune.pipelines.options import ClusterOptions
from llm_finetune.pipelines.run_view.cards import card_titles

TITLES = {
    "check-recipe": "Check Recipe", "pin-sources": "Pin Sources", "load-dataset": "Load Dataset", "filter-clean": "Filter & Clean",
    "train-val-split": "Train/Val Split", "format-sft": "Format for SFT", "load-model": "Load Base Model",
    "tokenize": "Tokenize", "data-report": "Data Report", "apply-lora": "Apply LoRA", "finetune-lora": "Fine-Tune LoRA", "evaluate": "Evaluate",
    "quality-gate": "Quality Gate", "merge-export": "Merge & Export", "vllm-serve": "vLLM Serve", "report": "Report",
}  # fmt: skip
ON_GPU = {"finetune-lora", "evaluate"}
NETWORK = {"load-dataset", "filter-clean", "load-model"}
HUB = NETWORK | {"evaluate", "merge-export", "pin-sources"}
NEVER_CACHED = {"pin-sources", "quality-gate", "vllm-serve", "report"}
SECRET = "what-nobody-may-see"
EVERYTHING = ClusterOptions(
    model_cache=True, checkpoints=True, spot=True, image_pull_secrets=("registry",), queue="team", data_claim="rows",
    environment={"HF_ENDPOINT": "https://hub.example"}, ca_config_map="company",
)  # fmt: skip


class Compiled:
    """A compiled pipeline: its specification, its tasks by name, and what each asks of the cluster."""

    def __init__(self, path):
        self.text = path.read_text()
        self.spec, self.platform = yaml.load_all(self.text, Loader=yaml.CSafeLoader)
        self.tasks = {
            name: task
            for _, graph in graphs(self.spec)
            for name, task in graph["dag"]["tasks"].items()
            if "dag" not in self.spec["components"][task["componentRef"]["name"]]
        }
        self.containers = {
            name: self.spec["deploymentSpec"]["executors"][f"exec-{name}"]["container"] for name in self.tasks
        }
        executors = self.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        self.cluster = {name: executors[f"exec-{name}"] for name in self.tasks}

    def retries(self):
        return {
            name: task["retryPolicy"]["maxRetryCount"] for name, task in self.tasks.items() if "retryPolicy" in task
        }

    def environments(self):
        return {name: {variable["name"]: variable["value"] for variable in container["env"]}
                for name, container in self.containers.items() if container.get("env")}  # fmt: skip

    def volumes(self, kind, key="mountPath"):
        return {name: {volume[key] for volume in self.cluster[name].get(kind, [])} for name in self.tasks}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    with pytest.MonkeyPatch.context() as environment:  # nothing of who compiles may get into the file
        for name in ("HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "KUBEFLOW_SESSION_COOKIE"):
            environment.setenv(name, SECRET)
        return Compiled(compile_pipeline(tmp_path_factory.mktemp("plain") / "finetune.yaml"))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return Compiled(compile_pipeline(tmp_path_factory.mktemp("full") / "finetune.yaml", EVERYTHING))


@pytest.fixture(params=["plain", "full"])
def compiled(request):
    return request.getfixturevalue(request.param)


def test_the_committed_yaml_is_what_the_code_compiles_to(plain):
    assert plain.text == COMPILED.read_text(), "run `make compile`"


def test_the_committed_resources_are_what_the_code_compiles_to(plain, tmp_path):
    written = compile_resources(tmp_path)
    assert {file.name: file.read_text() for file in written} == {
        name: (RESOURCES / name).read_text() for name in ("pipeline.yaml", "pipeline-version.yaml")
    }, "run `make compile`"
    pipeline, version = (yaml.load(file.read_text(), Loader=yaml.CSafeLoader) for file in written)
    assert (pipeline["kind"], pipeline["metadata"]) == ("Pipeline", {"name": "llm-finetune"})
    # `submit` looks for the pipeline by its shown name: under another one it would be made a second time, and refused.
    assert pipeline["spec"]["displayName"] == pipeline["metadata"]["name"]
    spec = version["spec"]
    assert (spec["pipelineName"], spec["displayName"]) == ("llm-finetune", content_version(COMPILED))
    assert version["metadata"]["name"] == f"llm-finetune-{content_version(COMPILED).replace('.', '-')}"
    assert spec["pipelineSpec"] == plain.spec
    assert set(spec["platformSpec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]) == {
        f"exec-{n}" for n in TITLES
    }


def test_the_compiled_pipeline_has_no_fault(compiled):
    assert lint(compiled.spec, compiled.platform) == []


def test_it_has_all_cards_under_their_titles(plain, tmp_path):
    assert {name: task["taskInfo"]["name"] for name, task in plain.tasks.items()} == TITLES
    (tmp_path / "p.yaml").write_text(plain.text)
    assert card_titles(tmp_path / "p.yaml") == TITLES


def test_it_has_at_most_24_parameters_each_described(plain):
    parameters = plain.spec["root"]["inputDefinitions"]["parameters"]
    assert len(parameters) <= 24
    assert {name for name, parameter in parameters.items() if not parameter.get("description")} == set()
    assert set(parameters) == {*PARAMETERS, "recipe"} == set(inspect.signature(finetune.pipeline_func).parameters)


def test_every_card_requests_and_limits_processors_memory_disk_and_time(compiled):
    for name, container in compiled.containers.items():
        resources, cluster = container["resources"], compiled.cluster[name]
        assert re.fullmatch(r"\d+m?", resources["resourceCpuRequest"]), name
        assert re.fullmatch(r"\d+", resources["resourceCpuLimit"]), name
        assert resources["resourceMemoryRequest"] == resources["resourceMemoryLimit"], name
        scratch = next(volume for volume in cluster["emptyDirMounts"] if volume["mountPath"] == "/tmp")
        assert re.fullmatch(r"\d+Gi", scratch["sizeLimit"]), name
        assert 3600 <= int(cluster["activeDeadlineSeconds"]) <= 72 * 3600, name
        assert cluster["imagePullPolicy"] == "IfNotPresent"


def test_every_card_runs_in_the_image_of_its_version_and_knows_it(compiled):
    for name, container in compiled.containers.items():
        assert f":{PACKAGE_VERSION}" in container["image"], name
        constant = compiled.tasks[name]["inputs"]["parameters"]["package_version"]["runtimeValue"]["constant"]
        assert constant == PACKAGE_VERSION, name


def test_gpus_are_asked_for_exactly_where_they_are_needed(compiled):
    asked = {
        name: c["resources"]["accelerator"]
        for name, c in compiled.containers.items()
        if "accelerator" in c["resources"]
    }
    assert set(asked) == ON_GPU
    assert all("gpu_type" in accelerator["resourceType"] for accelerator in asked.values())
    assert "gpu_count" in asked["finetune-lora"]["resourceCount"]
    assert "evaluation_gpus" in asked["evaluate"]["resourceCount"]
    shared = {name for name, paths in compiled.volumes("emptyDirMounts").items() if "/dev/shm" in paths}
    assert (
        shared == {name for name, c in compiled.cluster.items() if "nodeSelector" in c and "tolerations" in c} == ON_GPU
    )


def test_what_a_run_chooses_about_the_cluster_comes_from_the_checked_recipe(full):
    checked = {"producerTask": "check-recipe"}
    for name in ON_GPU:
        cluster = full.cluster[name]
        assert cluster["nodeSelector"]["nodeSelectorJson"]["taskOutputParameter"] == checked | {
            "outputParameterKey": "node_selector"
        }
        assert [t["tolerationJson"]["taskOutputParameter"]["outputParameterKey"] for t in cluster["tolerations"]] == [
            "tolerations"
        ]
    merge = full.cluster["merge-export"]  # behind the gate, so by way of the condition's own inputs
    assert merge["pvcMount"][0]["pvcNameParameter"] == {
        "componentInputParameter": "pipelinechannel--check-recipe-model_cache_claim"
    }
    names = [secret["secretNameParameter"]["componentInputParameter"] for secret in merge["secretAsEnv"]]
    assert names == [f"pipelinechannel--check-recipe-{kind}_secret" for kind in ("hub_token", "object_store")]


def test_secrets_are_named_where_they_are_needed_and_never_contained(compiled):
    given = {
        name: {key["envVar"].split("_")[0] for secret in cluster["secretAsEnv"] for key in secret["keyToEnv"]}
        for name, cluster in compiled.cluster.items()
        if "secretAsEnv" in cluster
    }
    keys = {"JUDGE", "ENDPOINT", "WANDB", "MLFLOW"}
    assert given == {
        "pin-sources": {"HF", "AWS"}, "load-dataset": {"HF", "AWS"}, "filter-clean": {"HF", "AWS"}, "load-model": {"HF"},
        "finetune-lora": {"AWS", *keys}, "evaluate": {"HF", *keys}, "merge-export": {"HF", "AWS"},
    }  # fmt: skip
    assert all(secret["optional"] for cluster in compiled.cluster.values() for secret in cluster.get("secretAsEnv", []))
    assert SECRET not in compiled.text


def test_the_region_gets_the_name_that_s3_s_client_reads(plain):
    [store] = [s for s in plain.cluster["load-dataset"]["secretAsEnv"] if len(s["keyToEnv"]) > 1]
    variables = {key["secretKey"]: key["envVar"] for key in store["keyToEnv"]}
    assert variables["AWS_REGION"] == "AWS_DEFAULT_REGION"
    client = subprocess.run(
        [sys.executable, "-c", "import botocore.session as b; print(b.Session().get_config_variable('region'))"],
        env={**os.environ, "AWS_DEFAULT_REGION": "eu-central-1", "AWS_REGION": "elsewhere"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert client.stdout.strip() == "eu-central-1"


def test_only_what_can_pass_by_itself_is_tried_again(plain, full):
    assert plain.retries() == dict.fromkeys(NETWORK, 2)
    # On spot nodes, only cards whose work can be repeated: training goes on from its checkpoint, evaluation only reads.
    assert full.retries() == dict.fromkeys(NETWORK, 2) | dict.fromkeys(ON_GPU, 5)
    for task in (*plain.tasks.values(), *full.tasks.values()):
        if "retryPolicy" in task:
            assert task["retryPolicy"]["backoffFactor"] > 1
            assert task["retryPolicy"]["backoffMaxDuration"] == "600s"


def test_deciding_deploying_and_reporting_are_never_taken_from_a_cache(compiled):
    cached = {name: bool(task["cachingOptions"].get("enableCache")) for name, task in compiled.tasks.items()}
    assert {name for name, on in cached.items() if not on} == NEVER_CACHED


def test_what_is_read_is_pinned_first(plain):
    for name in ("load-dataset", "filter-clean", "load-model"):
        settings = plain.tasks[name]["inputs"]["parameters"]["settings"]["taskOutputParameter"]
        assert settings == {"producerTask": "pin-sources", "outputParameterKey": name.replace("-", "_")}


def test_gpu_cards_can_wait_in_a_queue(plain, full):
    labels = {
        name: cluster["podMetadata"]["labels"] for name, cluster in full.cluster.items() if "podMetadata" in cluster
    }
    assert labels == {name: {"kueue.x-k8s.io/queue-name": "team"} for name in ON_GPU}
    assert not any("podMetadata" in cluster for cluster in plain.cluster.values())


def test_caching_can_be_compiled_out(tmp_path):
    without = Compiled(compile_pipeline(tmp_path / "finetune.yaml", ClusterOptions(caching=False)))
    assert not any(task["cachingOptions"].get("enableCache") for task in without.tasks.values())


def test_deployment_is_behind_the_gate_and_the_report_behind_everything(plain):
    around = plain.spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    condition = next(task for task in around.values() if "triggerPolicy" in task)
    assert "== true" in condition["triggerPolicy"]["condition"]
    assert set(plain.spec["components"][condition["componentRef"]["name"]]["dag"]["tasks"]) == {
        "merge-export",
        "vllm-serve",
    }
    assert set(plain.spec["root"]["dag"]["tasks"]) == {"exit-handler-1", "report"}
    report = plain.tasks["report"]
    assert report["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert report["inputs"]["parameters"]["status"] == {"taskFinalStatus": {"producerTask": "exit-handler-1"}}


def test_without_options_no_volume_has_to_exist_and_weights_travel_as_a_copy(plain):
    assert not any(plain.volumes("pvcMount").values())
    assert "store" not in plain.tasks["load-model"]["inputs"]["parameters"]


def test_with_volumes_weights_are_passed_by_reference_and_checkpoints_outlive_the_pod(full):
    mounted = {name: paths for name, paths in full.volumes("pvcMount").items() if paths}
    cache, checkpoints, data = "/mnt/model-cache", "/mnt/checkpoints", "/mnt/data"
    assert mounted == {
        "pin-sources": {data}, "load-dataset": {data}, "filter-clean": {data},
        "load-model": {cache}, "finetune-lora": {cache, checkpoints}, "evaluate": {cache}, "merge-export": {cache},
    }  # fmt: skip
    constants = {name: value["runtimeValue"]["constant"] for name, value in full.tasks["load-model"]["inputs"]["parameters"].items()
                 if "runtimeValue" in value}  # fmt: skip
    assert constants == {"store": "reference", "cache_dir": f"{cache}/hub", "package_version": PACKAGE_VERSION}
    root = full.tasks["check-recipe"]["inputs"]["parameters"]["checkpoint_root"]
    assert root == {"runtimeValue": {"constant": checkpoints}}


def test_only_the_cards_that_load_or_publish_reach_the_hub(plain, full):
    environments = plain.environments()
    assert environments == {name: {"HF_HUB_OFFLINE": "0"} for name in HUB}
    assert {name for name, variables in full.environments().items() if "HF_HUB_OFFLINE" in variables} == HUB
    page = " ".join((COMPILED.parents[2] / "docs" / "images.md").read_text().split())
    assert set(re.search(r"access the Hub \(([^)]+)\)", page)[1].split(", ")) == {TITLES[name] for name in HUB}


def test_what_the_way_out_asks_for_is_given_to_the_cards_that_go_out_and_to_no_other(full):
    authorities = "/etc/llm-finetune/authorities"
    expected = dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"), f"{authorities}/ca.crt")
    expected["HF_ENDPOINT"] = "https://hub.example"
    given = {
        name: variables for name, variables in full.environments().items() if expected.items() <= variables.items()
    }
    assert set(given) == HUB | {"finetune-lora"}
    mounted = {
        name: cluster["configMapAsVolume"] for name, cluster in full.cluster.items() if "configMapAsVolume" in cluster
    }
    assert set(mounted) == set(given)  # once each, however many reasons a card has to go out
    assert [[v["mountPath"] for v in volumes] for volumes in mounted.values()] == [[authorities]] * len(given)
