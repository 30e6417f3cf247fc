"""Sample questions: validation rows as chat requests, from Format for SFT through Evaluate to vLLM Serve."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FILE = "questions.json"
"""File name, next to the formatted rows."""
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Question:
    """A row as a chat request.

    Attributes:
        messages: The request, which the chat template renders as the row's prompt.
        reference: The row's answer.
    """

    messages: Messages
    reference: str

    @property
    def size(self) -> int:
        """Size of the request's text in bytes."""
        return sum(len(message["content"].encode()) for message in self.messages)


def read(folder: str | Path) -> list[Question]:
    """Reads the questions that Format for SFT wrote; an empty list if there is no such file."""
    path = Path(folder) / FILE
    return from_json(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []


def from_report(report: str | Path) -> list[Question]:
    """Reads the questions in Evaluate's report; an empty list for reports of other programs."""
    path = Path(report)
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return from_json(content.get("questions", [])) if isinstance(content, dict) else []


def write(folder: Path, questions: Iterable[Question]) -> None:
    """Writes questions next to the rows of a split."""
    text = json.dumps([asdict(question) for question in questions], indent=2, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def from_json(questions: Iterable[dict[str, Any]]) -> list[Question]:
    """Returns questions from their JSON."""
    return [Question(**question) for question in questions]
