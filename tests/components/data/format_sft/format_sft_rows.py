"""Rows and requests for Format for SFT, runs of the card on them, and its chat template as servers render it."""

from pathlib import Path

import jinja2
import jinja2.ext
import jinja2.sandbox
import pyarrow as pa
import pytest
from hypothesis import strategies as st

from llm_finetune.components.data.format_sft import step
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError

EOS = "<|eos|>"
ROWS = [
    {"instruction": "Add", "input": "1 and 2", "output": "3"},
    {"instruction": "Say {hi} \\n", "input": "", "output": '{"a": "{{ x }}"}'},
]


def write(path: Path, rows: list[dict], schema: pa.Schema | None = None) -> Path:
    table = pa.Table.from_pylist(rows, schema)
    with tables.ShardWriter(path, table.schema) as writer:
        writer.write(table)
    return path


def formatted(tmp_path: Path, rows: list[dict], **chosen) -> tuple[step.Facts, list[dict]]:
    dataset = write(tmp_path / "rows", rows)
    facts, same = step.format_sft(
        dataset, dataset, tmp_path / "train", tmp_path / "val", tmp_path / "page.html", step.Settings.of(chosen)
    )
    assert facts == same
    return facts, tables.head(tmp_path / "train", len(rows)).to_pylist()


def refused(tmp_path: Path, rows: list[dict], **chosen) -> str:
    with pytest.raises(UserError) as caught:
        formatted(tmp_path, rows, **chosen)
    assert not (tmp_path / "train").exists()
    return str(caught.value)


def rendered(source: str, messages: list[dict], **more) -> str:
    """Renders as transformers does (apply_chat_template)."""

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.globals["raise_exception"] = raise_exception
    values = {"messages": messages, "add_generation_prompt": True, "eos_token": EOS, "tools": None, "documents": None}
    return environment.from_string(source).render(**(values | more))


def request(instruction: str, input: str | None) -> list[dict]:
    if input is None:
        return [{"role": "user", "content": instruction}]
    return [{"role": "system", "content": instruction}, {"role": "user", "content": input}]


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    [
        "",
        " ",
        "\n",
        "\r\n",
        "{{ x }}",
        "{% raw %}",
        "{# c #}",
        "'",
        '"',
        "\\n",
        "\\",
        "}}",
        "%}",
        "\u2028",
        "\x1f",
        "</s>",
        "é'\\",
    ]
)


def said(*turns: tuple[str, str | None]) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}
