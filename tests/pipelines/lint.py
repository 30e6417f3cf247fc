"""Faults that KFP's compiler lets through and that only show, or hide, when the pipeline runs.

Each function returns a line per fault of a compiled PipelineSpec, or of what its cards ask of the cluster.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

MOST_ARGUMENT_BYTES = 100_000
"""Linux takes 128 KiB per argument; KFP passes a step's source and all its inputs as one each."""
PLACEHOLDER = re.compile(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}")
OPENED = {"hf_dataset", "eval_sets", "files"}
"""Inputs of cards that open datasets, wherever they lie; hf:// is an address of files, too."""


def lint(spec: dict[str, Any], platform: dict[str, Any] | None = None) -> list[str]:
    """Returns all faults.

    Args:
        spec: The compiled PipelineSpec.
        platform: The document after it, with what every card asks of the cluster; None where there is none.
    """
    checks = (
        undeclared_inputs,
        gates_on_named_outputs,
        long_arguments,
        unresolved_placeholders,
        numeric_gpu_counts,
        lists_from_graphs,
    )
    kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"] if platform else {}
    of_both = (undeclared_cluster_inputs, sources_out_of_reach)
    return [
        *(fault for check in checks for fault in check(spec)),
        *(fault for check in of_both for fault in check(spec, kubernetes)),
    ]


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


def lists_from_graphs(spec: dict[str, Any]) -> list[str]:
    """A card takes a list of artifacts from an input of the graph around it: it gets one element, without an error.

    The graph is a loop, a condition or a nested pipeline. Of such an input the backend keeps the last artifact alone
    (backend/src/v2/metadata/client.go of KFP 2.17, GetInputArtifactsByExecutionID: `inputs[name] = …`). A list that a
    task of the same graph has collected is whole (backend/src/v2/driver/resolve.go, CollectInputs).
    """
    faults = []
    for name, _, task_name, task in _cards(spec):
        declared = spec["components"][task["componentRef"]["name"]].get("inputDefinitions", {}).get("artifacts", {})
        for artifact, source in task.get("inputs", {}).get("artifacts", {}).items():
            if "componentInputArtifact" in source and declared[artifact].get("isArtifactList"):
                faults.append(
                    f"{name}/{task_name} takes the list {artifact} from an input of {name}; it gets one element"
                )
    return faults


def _cards(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str, dict[str, Any]]]:
    """Yields every card as the graph around it, that graph's component, its own name and its task."""
    for name, component in graphs(spec):
        for task_name, task in component["dag"]["tasks"].items():
            if "executorLabel" in spec["components"][task["componentRef"]["name"]]:
                yield name, component, task_name, task


def undeclared_cluster_inputs(spec: dict[str, Any], kubernetes: dict[str, Any]) -> list[str]:
    """A card's secret or volume is named by an input that the graph around it does not have."""
    faults = []
    for name, graph, task_name, task in _cards(spec):
        declared = graph.get("inputDefinitions", {}).get("parameters", {})
        asked = kubernetes.get(spec["components"][task["componentRef"]["name"]]["executorLabel"], {})
        for parameter in sorted(set(re.findall(r'"componentInputParameter": "([^"]+)"', json.dumps(asked)))):
            if parameter not in declared:
                faults.append(f"{name}/{task_name} is placed by {parameter}, which {name} does not declare")
    return faults


def sources_out_of_reach(spec: dict[str, Any], kubernetes: dict[str, Any]) -> list[str]:
    """A card opens datasets or a model by name without a way to the Hub, or datasets without keys of a store."""
    faults = []
    for name, _, task_name, task in _cards(spec):
        if task_name == "check-recipe":
            continue  # checks the names, opens nothing
        component = spec["components"][task["componentRef"]["name"]]
        known = set(component.get("inputDefinitions", {}).get("parameters", {}))
        environment = spec["deploymentSpec"]["executors"][component["executorLabel"]]["container"].get("env", [])
        asked = kubernetes.get(component["executorLabel"], {}).get("secretAsEnv", [])
        secrets = {key["envVar"] for secret in asked for key in secret["keyToEnv"]}
        datasets = ", ".join(sorted(known & OPENED))
        inputs = task.get("inputs", {})
        named = "model_name" in inputs.get("parameters", {}) and "model_config" not in inputs.get("artifacts", {})
        online = {"name": "HF_HUB_OFFLINE", "value": "0"} in environment and "HF_TOKEN" in secrets
        if (datasets or named) and not online:
            faults.append(f"{name}/{task_name} takes {datasets or 'model_name'}, but has no way to the Hub")
        if datasets and "AWS_ACCESS_KEY_ID" not in secrets:
            faults.append(f"{name}/{task_name} takes {datasets}, but has no keys of an object store")
    return faults
