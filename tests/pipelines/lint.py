"""Faults that KFP's compiler lets through and that only show, or hide, when the pipeline runs.

Each function returns a line per fault of a compiled PipelineSpec.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

MOST_ARGUMENT_BYTES = 100_000
"""Linux takes 128 KiB per argument; KFP passes a step's source and all its inputs as one each."""
PLACEHOLDER = re.compile(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}")


def lint(spec: dict[str, Any]) -> list[str]:
    """Returns all faults."""
    checks = (undeclared_inputs, gates_on_named_outputs, long_arguments, unresolved_placeholders, numeric_gpu_counts)
    return [fault for check in checks for fault in check(spec)]


def graphs(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields every graph of a pipeline, the root first, as name and component."""
    yield "root", spec["root"]
    yield from ((name, component) for name, component in spec["components"].items() if "dag" in component)


def undeclared_inputs(spec: dict[str, Any]) -> list[str]:
    """A task reads an input that the graph around it does not have, or its executor one that the task does not have."""
    faults = []
    for name, component in graphs(spec):
        declared = {**component.get("inputDefinitions", {}).get("parameters", {}),
                    **component.get("inputDefinitions", {}).get("artifacts", {})}  # fmt: skip
        for task_name, task in component["dag"]["tasks"].items():
            inputs = task.get("inputs", {})
            for kind, key in (("parameters", "componentInputParameter"), ("artifacts", "componentInputArtifact")):
                for value in inputs.get(kind, {}).values():
                    if key in value and value[key] not in declared:
                        faults.append(f"{name}/{task_name} reads {value[key]}, which {name} does not declare")
            executor = spec["components"][task["componentRef"]["name"]].get("executorLabel")
            if executor:
                container = spec["deploymentSpec"]["executors"][executor].get("container", {})
                for parameter in set(PLACEHOLDER.findall(json.dumps(container.get("resources", {})))):
                    if parameter not in inputs.get("parameters", {}):
                        faults.append(f"{name}/{task_name} asks for resources by {parameter}, which it is not given")
    return faults


def gates_on_named_outputs(spec: dict[str, Any]) -> list[str]:
    """A condition reads a named output of a task of the same graph: locally that is always false, without an error."""
    faults = []
    for name, component in graphs(spec):
        for task_name, task in component["dag"]["tasks"].items():
            condition = task.get("triggerPolicy", {}).get("condition", "")
            for parameter, value in task.get("inputs", {}).get("parameters", {}).items():
                output = value.get("taskOutputParameter", {}).get("outputParameterKey", "Output")
                if f"'{parameter}'" in condition and output != "Output":
                    faults.append(f"{name}/{task_name} is decided by the named output {output}; return one plain value")
    return faults


def long_arguments(spec: dict[str, Any]) -> list[str]:
    """An argument of a step is too long to be started."""
    faults = []
    for name, executor in spec["deploymentSpec"]["executors"].items():
        container = executor.get("container", {})
        for argument in (*container.get("command", []), *container.get("args", [])):
            if len(argument.encode()) > MOST_ARGUMENT_BYTES:
                faults.append(f"{name} has an argument of {len(argument.encode())} bytes")
    return faults


def unresolved_placeholders(spec: dict[str, Any]) -> list[str]:
    """The compiler's own placeholder is left in the text, as by an f-string around a parameter."""
    return [f"unresolved {text}" for text in set(re.findall(r"\{\{channel:[^}]*\}\}", json.dumps(spec)))]


def numeric_gpu_counts(spec: dict[str, Any]) -> list[str]:
    """A GPU count is a number: the backend reads only text, and starts the pod without any GPU."""
    faults = []
    for name, component in graphs(spec):
        kinds = {key: value["parameterType"] for key, value in
                 component.get("inputDefinitions", {}).get("parameters", {}).items()}  # fmt: skip
        for task_name, task in component["dag"]["tasks"].items():
            executor = spec["components"][task["componentRef"]["name"]].get("executorLabel", "")
            container = spec["deploymentSpec"]["executors"].get(executor, {}).get("container", {})
            count = container.get("resources", {}).get("accelerator", {}).get("resourceCount", "")
            for parameter in PLACEHOLDER.findall(str(count)):
                source = task["inputs"]["parameters"].get(parameter, {}).get("componentInputParameter", "")
                if kinds.get(source, "STRING") != "STRING":
                    faults.append(f"{name}/{task_name}: the GPU count {source} is {kinds[source]}, not text")
    return faults
