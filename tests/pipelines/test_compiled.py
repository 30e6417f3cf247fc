import copy
import inspect
from typing import NamedTuple

import pytest
import yaml
from kfp import compiler, dsl, kubernetes
from lint import lint

from llm_finetune.pipelines.compile import COMPILED, compile_pipeline
from llm_finetune.pipelines.finetune import finetune
from llm_finetune.pipelines.local.state import card_titles
from llm_finetune.pipelines.recipe.wiring import PARAMETERS

TITLES = [
    "Check Recipe", "Load Dataset", "Filter & Clean", "Train/Val Split", "Format for SFT", "Tokenize", "Load Base Model",
    "Apply LoRA", "Fine-Tune LoRA", "Evaluate", "Quality Gate", "Merge & Export", "vLLM Serve",
]  # fmt: skip


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    path = compile_pipeline(tmp_path_factory.mktemp("compiled") / "finetune.yaml")
    return list(yaml.safe_load_all(path.read_text()))


@pytest.fixture(scope="module")
def spec(documents):
    return documents[0]


def executor(spec, task):
    return spec["deploymentSpec"]["executors"][f"exec-{task}"]["container"]


def test_the_committed_yaml_is_what_the_code_compiles_to(tmp_path):
    assert compile_pipeline(tmp_path / "finetune.yaml").read_text() == COMPILED.read_text(), "run `make compile`"


def test_the_compiled_pipeline_has_no_fault(spec):
    assert lint(spec) == []


def test_it_has_all_cards_under_their_titles(spec, tmp_path):
    assert sorted(card_titles(COMPILED).values()) == sorted(TITLES)


def test_it_has_at_most_24_parameters_each_described(spec):
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert len(parameters) <= 24
    assert {name for name, parameter in parameters.items() if not parameter.get("description")} == set()
    assert set(parameters) == {*PARAMETERS, "recipe"}
    assert list(parameters) is not None and set(inspect.signature(finetune.pipeline_func).parameters) == set(parameters)


def test_training_and_evaluation_ask_for_gpus_and_shared_memory(spec, documents):
    for task in ("finetune-lora", "evaluate"):
        accelerator = executor(spec, task)["resources"]["accelerator"]
        assert "gpu_type" in accelerator["resourceType"]
        volumes = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{task}"][
            "emptyDirMounts"
        ]
        assert volumes == [{"medium": "Memory", "mountPath": "/dev/shm", "volumeName": "dshm"}]
    without = [
        name
        for name, e in spec["deploymentSpec"]["executors"].items()
        if "accelerator" not in e["container"]["resources"]
    ]
    assert len(without) == len(TITLES) - 2


def test_every_card_asks_for_processors_and_memory_and_knows_its_version(spec):
    for name, entry in spec["deploymentSpec"]["executors"].items():
        assert entry["container"]["resources"]["resourceCpuRequest"], name
        assert entry["container"]["resources"]["resourceMemoryRequest"], name
        assert entry["container"]["image"].endswith(":0.1.0"), name
    for component in spec["components"].values():
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            assert task["inputs"]["parameters"]["package_version"] == {"runtimeValue": {"constant": "0.1.0"}}, name


def test_deciding_and_deploying_are_never_taken_from_a_cache(spec):
    tasks = {
        name: task
        for c in (spec["root"], *spec["components"].values())
        for name, task in c.get("dag", {}).get("tasks", {}).items()
    }
    cached = {name: bool(task.get("cachingOptions", {}).get("enableCache")) for name, task in tasks.items()}
    assert [name for name, on in cached.items() if not on and not name.startswith("condition")] == [
        "quality-gate",
        "vllm-serve",
    ]


def test_deployment_is_behind_the_gate(spec):
    condition = next(task for name, task in spec["root"]["dag"]["tasks"].items() if name.startswith("condition"))
    assert "== true" in condition["triggerPolicy"]["condition"]
    inside = spec["components"][condition["componentRef"]["name"]]["dag"]["tasks"]
    assert set(inside) == {"merge-export", "vllm-serve"}


# A planted case of each fault.


@dsl.component(base_image="python", install_kfp_package=False)
def work(text: str = "") -> str:
    return text


@dsl.component(base_image="python", install_kfp_package=False)
def decide() -> NamedTuple("Outputs", [("passed", bool)]):
    return (True,)


def compiled(pipeline, tmp_path):
    compiler.Compiler().compile(pipeline, str(tmp_path / "p.yaml"))
    return next(yaml.safe_load_all((tmp_path / "p.yaml").read_text()))


def test_lint_finds_an_input_that_is_not_declared(tmp_path):
    @dsl.pipeline
    def planted(gpu_count: str = "1", open: bool = True):
        with dsl.If(open == True):  # noqa: E712
            work().set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(gpu_count)

    assert any(
        "gpu_count" in fault and ("does not declare" in fault or "not given" in fault)
        for fault in lint(compiled(planted, tmp_path))
    )


def test_lint_finds_a_gate_on_a_named_output(tmp_path):
    @dsl.pipeline
    def planted():
        with dsl.If(decide().outputs["passed"] == True):  # noqa: E712
            work()

    assert any("named output passed" in fault for fault in lint(compiled(planted, tmp_path)))


def test_lint_finds_an_argument_that_is_too_long(spec):
    planted = copy.deepcopy(spec)
    executor(planted, "evaluate")["command"].append("x" * 100_001)
    assert lint(planted) == ["exec-evaluate has an argument of 100001 bytes"]


def test_lint_finds_an_unresolved_placeholder(tmp_path):
    @dsl.pipeline
    def planted(name: str = "a"):
        work().set_env_variable("NAME", f"run-{name}")

    assert any(fault.startswith("unresolved {{channel:") for fault in lint(compiled(planted, tmp_path)))


def test_lint_finds_a_gpu_count_that_is_a_number(tmp_path):
    @dsl.pipeline
    def planted(gpu_count: int = 1):
        task = work().set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(gpu_count)
        kubernetes.empty_dir_mount(task, "dshm", "/dev/shm")

    assert any("is NUMBER_INTEGER, not text" in fault for fault in lint(compiled(planted, tmp_path)))
