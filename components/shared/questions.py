"""A few validation rows as chat requests: from Format for SFT through Evaluate's report to vLLM Serve."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FILE = "questions.json"
"""The file's name beside the formatted rows."""
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Question:
    """A row as a client asks it.

    Attributes:
        messages: The request, which the model's chat template renders as the row's prompt.
        reference: The row's answer.
    """

    messages: Messages
    reference: str

    @property
    def size(self) -> int:
        """Bytes of the request's text."""
        return sum(len(message["content"].encode()) for message in self.messages)


def read(folder: str | Path) -> list[Question]:
    """Reads what Format for SFT has written beside its rows; nothing where there is no such file."""
    path = Path(folder) / FILE
    return of_json(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []


def of_report(report: str | Path) -> list[Question]:
    """Reads the questions in Evaluate's report; none where another program has written it."""
    path = Path(report)
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return of_json(content.get("questions", [])) if isinstance(content, dict) else []


def write(folder: Path, questions: Iterable[Question]) -> None:
    """Writes questions beside a split's rows."""
    text = json.dumps([asdict(question) for question in questions], indent=2, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def of_json(questions: Iterable[dict[str, Any]]) -> list[Question]:
    """Returns questions from their JSON."""
    return [Question(**question) for question in questions]
