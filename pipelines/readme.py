"""Generates the parts of the README that follow from the pipeline: flow chart and parameter table."""

from pathlib import Path
from typing import Any

import yaml

from llm_finetune.components.run.check_recipe.wiring import (
    PARAMETERS,
    describe_parameter,
    parameter_field,
    parameter_type,
)
from llm_finetune.components.shared.markdown import Markdown, code, table

README = Path(__file__).resolve().parents[1] / "README.md"


def update(readme: Path, pipeline: Path) -> bool:
    """Rewrites the generated parts of a README, between `<!-- pipeline -->` and `<!-- parameters -->` markers.

    Args:
        readme: README file.
        pipeline: Compiled YAML.

    Returns:
        Whether the file changed.
    """
    spec = next(yaml.safe_load_all(pipeline.read_text(encoding="utf-8")))
    before = readme.read_text(encoding="utf-8")
    after = before
    for name, part in (("pipeline", flow_chart(spec)), ("parameters", parameter_table())):
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        head, _, rest = after.partition(begin)
        _, _, tail = rest.partition(end)
        after = f"{head}{begin}{part}\n{end}{tail}"
    if after != before:
        readme.write_text(after, encoding="utf-8")
    return after != before


def flow_chart(spec: dict[str, Any]) -> str:
    """Returns the pipeline as a Mermaid flow chart: a node per card, an arrow per input artifact.

    Args:
        spec: The compiled PipelineSpec.

    Returns:
        A fenced Mermaid block.
    """
    lines = ["```mermaid", "flowchart LR"]
    lines += _nodes_and_arrows(spec, spec["root"]["dag"], {}, indent="    ")
    return "\n".join([*lines, "```"])


def _nodes_and_arrows(spec: dict[str, Any], dag: dict[str, Any], outside: dict[str, str], indent: str) -> list[str]:
    """Returns the lines of a DAG's nodes and arrows.

    Args:
        spec: The compiled PipelineSpec.
        dag: DAG in the PipelineSpec.
        outside: Producer of each input artifact of the DAG, by input name.
        indent: Indentation of each line.
    """
    lines: list[str] = []
    for name, task in sorted(dag["tasks"].items(), key=lambda item: _depth(dag["tasks"], item[0])):
        component = spec["components"][task["componentRef"]["name"]]
        sources = {
            key: (_producer(value, outside), value.get("taskOutputArtifact", {}).get("outputArtifactKey", ""))
            for key, value in task.get("inputs", {}).get("artifacts", {}).items()
        }
        if "dag" in component:
            gate = _condition_task(task)
            producers = {key: producer for key, (producer, _) in sources.items()}
            inner = _nodes_and_arrows(spec, component["dag"], producers, indent)
            first = next(line.strip().partition("[")[0] for line in inner if "[" in line)
            lines += [*inner, f"{indent}{gate} -- open --> {first}"] if gate else inner
            continue
        node = name.replace("-", "_")
        shape = (
            f'{{"{task["taskInfo"]["name"]}"}}'
            if "Gate" in task["taskInfo"]["name"]
            else f'["{task["taskInfo"]["name"]}"]'
        )
        lines.append(f"{indent}{node}{shape}")
        lines += [f"{indent}{producer} --> {node}" for producer in dict.fromkeys(p for p, _ in sources.values())]
    return lines


def _producer(value: dict[str, Any], outside: dict[str, str]) -> str:
    if "taskOutputArtifact" in value:
        return str(value["taskOutputArtifact"]["producerTask"]).replace("-", "_")
    return outside[value["componentInputArtifact"]]


def _condition_task(task: dict[str, Any]) -> str:
    for value in task.get("inputs", {}).get("parameters", {}).values():
        producer = value.get("taskOutputParameter", {}).get("producerTask", "")
        if producer and "condition" in task.get("triggerPolicy", {}) and "gate" in producer:
            return str(producer).replace("-", "_")
    return ""


def _depth(tasks: dict[str, Any], name: str) -> tuple[int, str]:
    before = [other for other in tasks[name].get("dependentTasks", []) if other in tasks]
    return (1 + max(_depth(tasks, other)[0] for other in before) if before else 0, name)


def parameter_table() -> str:
    """Returns the pipeline's parameters as a Markdown table."""
    rows = []
    for name in PARAMETERS:
        default = str(parameter_field(name).get_default(call_default_factory=True))
        description = Markdown(describe_parameter(name))
        rows.append((code(name), parameter_type(name).__name__, code(default) if default else "empty", description))
    recipe = Markdown('All other settings: a section per card, such as {"finetune_lora": {"warmup_ratio": 0.1}}.')
    rows.append((code("recipe"), "dict", "empty", recipe))
    return "\n".join(table(("parameter", "type", "default", "description"), rows))
