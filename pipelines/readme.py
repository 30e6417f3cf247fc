"""Parts of the README that are drawn from the pipeline itself: its picture and its parameters."""

import re
from pathlib import Path
from typing import Any

import yaml

from llm_finetune.components.run.check_recipe.wiring import PARAMETERS
from llm_finetune.components.shared.markdown import Markdown, code, table

README = Path(__file__).resolve().parents[1] / "README.md"


def update(readme: Path, pipeline: Path) -> bool:
    """Rewrites the drawn parts of a README between their markers, `<!-- pipeline -->` and `<!-- parameters -->`.

    Args:
        readme: The README.
        pipeline: Compiled YAML.

    Returns:
        Whether anything changed.
    """
    spec = next(yaml.safe_load_all(pipeline.read_text(encoding="utf-8")))
    before = readme.read_text(encoding="utf-8")
    after = before
    for name, part in (("pipeline", picture(spec)), ("parameters", parameter_table(spec))):
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        after = re.sub(pattern, rf"\1{_literal(part)}\n\2", after, flags=re.DOTALL)
    if after != before:
        readme.write_text(after, encoding="utf-8")
    return after != before


def _literal(text: str) -> str:
    return text.replace("\\", r"\\")


def picture(spec: dict[str, Any]) -> str:
    """Returns the pipeline as a Mermaid flow chart: a node per card, an arrow per artifact that travels.

    Args:
        spec: The compiled PipelineSpec.

    Returns:
        A fenced Mermaid block.
    """
    lines = ["```mermaid", "flowchart LR"]
    lines += _graph(spec, spec["root"]["dag"], {}, indent="    ")
    return "\n".join([*lines, "```"])


def _graph(spec: dict[str, Any], dag: dict[str, Any], outside: dict[str, str], indent: str) -> list[str]:
    """Lists a graph's nodes and arrows.

    Args:
        spec: The compiled PipelineSpec.
        dag: The graph to list.
        outside: Producer of each artifact that comes from the graph around this one, by input name.
        indent: Spaces before each line.
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
            inner = _graph(spec, component["dag"], {key: producer for key, (producer, _) in sources.items()}, indent)
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


def parameter_table(spec: dict[str, Any]) -> str:
    """Returns the pipeline's parameters as a Markdown table.

    Args:
        spec: The compiled PipelineSpec.

    Returns:
        The table.
    """
    kinds = {"STRING": "text", "NUMBER_INTEGER": "integer", "NUMBER_DOUBLE": "number", "BOOLEAN": "yes/no",
             "STRUCT": "mapping", "LIST": "list"}  # fmt: skip
    rows = []
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    for name in (*PARAMETERS, "recipe"):  # the order in which people think of them; KFP's own is alphabetical
        parameter = parameters[name]
        default = parameter.get("defaultValue", "")
        if parameter["parameterType"] == "NUMBER_INTEGER":
            default = int(default)
        shown = code(str(default).replace("\n", "\\n")) if default not in ("", {}) else "empty"
        description = Markdown(parameter.get("description", ""))
        rows.append((code(name), kinds[parameter["parameterType"]], shown, description))
    return "\n".join(table(("parameter", "kind", "default", "what it is"), rows))
