"""Each fault that the lint of compiled pipelines looks for, planted."""

from typing import NamedTuple

import yaml
from kfp import compiler, dsl, kubernetes
from lint import lint


@dsl.component(base_image="python", install_kfp_package=False)
def work(text: str = "") -> str:
    return text


@dsl.component(base_image="python", install_kfp_package=False)
def decide() -> NamedTuple("Outputs", [("passed", bool)]):
    return (True,)


@dsl.component(base_image="python", install_kfp_package=False)
def make(made: dsl.Output[dsl.Dataset], number: int = 0): ...


@dsl.component(base_image="python", install_kfp_package=False)
def gather(all: dsl.Input[list[dsl.Dataset]], one: dsl.Output[dsl.Dataset], number: int = 0): ...


@dsl.component(base_image="python", install_kfp_package=False)
def take(one: dsl.Input[dsl.Dataset], number: int = 0): ...


@dsl.component(base_image="python", install_kfp_package=False)
def read(model_name: str = "", eval_sets: str = "") -> str:
    return model_name


def documents(pipeline, tmp_path):
    compiler.Compiler().compile(pipeline, str(tmp_path / "p.yaml"))
    return list(yaml.safe_load_all((tmp_path / "p.yaml").read_text()))


def compiled(pipeline, tmp_path):
    return documents(pipeline, tmp_path)[0]


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


def test_lint_finds_an_argument_that_is_too_long(tmp_path):
    @dsl.pipeline
    def planted():
        work()

    spec = compiled(planted, tmp_path)
    spec["deploymentSpec"]["executors"]["exec-work"]["container"]["command"].append("x" * 100_001)
    assert lint(spec) == ["exec-work has an argument of 100001 bytes"]


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


def test_lint_finds_a_list_of_artifacts_that_a_loop_or_a_nested_pipeline_takes(tmp_path):
    @dsl.pipeline
    def nested(all: dsl.Input[list[dsl.Dataset]]):
        gather(all=all)
        with dsl.ParallelFor([1, 2], name="inner") as number:
            gather(all=all, number=number)

    @dsl.pipeline
    def planted():
        with dsl.ParallelFor([1, 2], name="outer") as number:
            made = make(number=number).outputs["made"]
        whole = gather(all=dsl.Collected(made))
        with dsl.ParallelFor([1, 2], name="later") as number:
            take(one=whole.outputs["one"], number=number)
        nested(all=dsl.Collected(made))

    assert sorted(fault.partition("; ")[0] for fault in lint(compiled(planted, tmp_path))) == [
        "comp-for-loop-2-2/gather-2 takes the list all from an input of comp-for-loop-2-2",
        "comp-nested/gather takes the list all from an input of comp-nested",
    ]


def test_lint_finds_sources_that_a_card_can_not_reach(tmp_path):
    @dsl.pipeline
    def planted(secret: str = "keys"):
        read().set_display_name("offline")
        kubernetes.use_secret_as_env(read().set_env_variable("HF_HUB_OFFLINE", "0"), secret, {"token": "HF_TOKEN"})

    assert lint(*documents(planted, tmp_path)) == [
        "root/read takes eval_sets, but has no way to the Hub",
        "root/read takes eval_sets, but has no keys of an object store",
        "root/read-2 takes eval_sets, but has no keys of an object store",
    ]


def test_lint_finds_a_secret_named_by_an_input_that_is_not_declared(tmp_path):
    @dsl.pipeline
    def planted(secret: str = "keys"):
        kubernetes.use_secret_as_env(work(), secret, {"token": "HF_TOKEN"})

    spec, platform = documents(planted, tmp_path)
    assert lint(spec, platform) == []
    del spec["root"]["inputDefinitions"]
    assert "root/work is placed by secret, which root does not declare" in lint(spec, platform)
