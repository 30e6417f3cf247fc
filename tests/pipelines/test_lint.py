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
