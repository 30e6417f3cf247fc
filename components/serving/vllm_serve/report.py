"""Writes the outputs of the card: deployment_info (JSON) and deployment_page (Markdown)."""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from llm_finetune.components.serving.vllm_serve.smoke import chat_request
from llm_finetune.components.shared.files import write_text
from llm_finetune.components.shared.markdown import code, table
from llm_finetune.components.shared.questions import Messages

STATES = {
    "local": "Served on this machine.",
    "kserve": "Served by KServe.",
    "manifest": "Nothing is deployed; the manifests are for a GitOps repository.",
}


class DeploymentInfo(TypedDict, total=False):
    """Content of deployment_info."""

    # All targets
    deployment_name: str
    base_url: str
    model: str
    max_batch_tokens: int
    example_curl: str
    asked: str  # where the test prompts come from
    revision: str
    target: str
    ready_seconds: float
    first_token_seconds: float  # the smallest of all answers
    answers: list[dict[str, Any]]  # fields of smoke.Answer
    # Local and KServe
    server: str
    # Local
    dtype: str
    max_model_len: int
    pid: int
    process_group: int
    process_started: int  # clock ticks since boot
    log: str
    # KServe and manifest
    storage_uri: str
    manifests: str
    # KServe
    namespace: str
    inference_service: str
    traffic: str
    adapters: list[str]
    kserve: str
    deployment_mode: str


def example_curl(base_url: str, model: str, messages: Messages, max_tokens: int) -> str:
    """Returns a chat request as a shell command."""
    body = json.dumps(chat_request(model, messages, max_tokens), ensure_ascii=False)
    return (
        f"curl {shlex.quote(base_url + '/chat/completions')} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    )


def outcome(info: Mapping[str, object]) -> dict[str, object]:
    """Returns the facts that the card records for the Report card."""
    return {name: info[name] for name in ("target", "deployment_name", "base_url", "namespace") if name in info}


def write(info_path: str | Path, page_path: str | Path, info: DeploymentInfo) -> None:
    """Writes both files.

    Args:
        info_path: The JSON file.
        page_path: The Markdown file.
        info: The deployment.
    """
    write_text(info_path, json.dumps(info, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(page_path, page(info))


def page(info: DeploymentInfo) -> str:
    """Returns the Markdown page of a deployment."""
    hidden = {"deployment_name", "example_curl", "answers", "target", "process_started", "manifests"}
    facts = {key: value for key, value in info.items() if key not in hidden and value != ""}
    lines = [f"# {info['deployment_name']}", "", STATES[info["target"]], ""]
    lines += table(("", ""), [(key.replace("_", " "), code(value)) for key, value in facts.items()])
    if info.get("example_curl"):
        lines += ["", "## Example request", "", *_block(info["example_curl"], "bash")]
    for number, answer in enumerate(info.get("answers", []), start=1):
        times = f"first token {answer['first_token_seconds']} s, whole answer {answer['seconds']} s"
        lines += ["", f"## Answer {number}", "", *_block(answer["prompt"]), "", *_block(answer["text"])]
        lines += ["", f"{answer['tokens']} tokens, {times}, finish reason {answer['finish_reason']}"]
    if info.get("manifests"):
        lines += ["", "## Manifests", "", *_block(info["manifests"].rstrip("\n"), "yaml")]
    return "\n".join(lines) + "\n"


def _block(text: str, language: str = "text") -> list[str]:
    """Returns text as a code block, with a fence that is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", text, fence]
