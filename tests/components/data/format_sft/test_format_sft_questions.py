"""Format for SFT: the rows that the served model is asked first."""

import json
from pathlib import Path

import pytest
from format_sft_rows import ROWS, formatted, rendered, said

from llm_finetune.components.data.format_sft.plain_text import opening_text
from llm_finetune.components.shared.questions import Question, read


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"drop_empty_sections": True},
        {"template": "{instruction}\\n\\n{input}\\n\\n{output}"},
        {"template": "Q: {instruction}\\nA: {output}"},
        {"template": "{input} => {output}"},
    ],
)
def test_the_request_is_rendered_as_the_prompt_of_its_row(tmp_path: Path, chosen: dict) -> None:
    rows = [*ROWS, {"instruction": "", "input": "7 and 8", "output": "15"}]
    _, written = formatted(tmp_path, rows, **chosen)
    prompts = {row["prompt"]: row["completion"] for row in written}
    source = (tmp_path / "val" / "chat_template.jinja").read_text()
    asked = read(tmp_path / "val")
    assert asked
    for question in asked:
        assert prompts[rendered(source, question.messages)] == question.reference


def test_rows_with_instruction_and_input(tmp_path: Path) -> None:
    formatted(tmp_path, ROWS)
    assert read(tmp_path / "val") == [
        Question([{"role": "system", "content": "Add"}, {"role": "user", "content": "1 and 2"}], "3"),
        Question([{"role": "user", "content": "Say {hi} \\n"}], '{"a": "{{ x }}"}'),
    ]


def test_the_first_short_rows_are_taken_and_long_ones_only_where_there_are_no_others(tmp_path: Path) -> None:
    def row(number: int, prompt: int, answer: int) -> dict:
        return {"instruction": f"{number} ".ljust(prompt, "x"), "input": "", "output": "y" * answer}

    rows = [row(0, 900, 5), row(1, 20, 900), row(2, 300, 20), row(2, 300, 20), row(3, 5, 1), row(4, 5, 1)]
    formatted(tmp_path, rows)
    assert [question.messages[0]["content"].split()[0] for question in read(tmp_path / "val")] == ["2", "3"]
    formatted(tmp_path / "long", [row(0, 20_000, 5), row(1, 900, 900), row(2, 900, 5), row(3, 900, 300)])
    assert [question.messages[0]["content"].split()[0] for question in read(tmp_path / "long" / "val")] == ["2", "3"]


def test_conversations_are_asked_up_to_their_last_answer_and_without_tools(tmp_path: Path) -> None:
    long = said(("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    formatted(tmp_path, [long, said(("user", "e"), ("assistant", "f"))], template="chat", chat_key="messages")
    assert read(tmp_path / "val") == [
        Question(long["messages"][:-1], "d"),
        Question([{"role": "user", "content": "e"}], "f"),
    ]
    call = {"name": "time", "arguments": {"zone": "UTC"}}
    messages = [
        {"role": "user", "content": "What time is it?", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "content": "noon", "tool_calls": None},
        {"role": "assistant", "content": "Noon.", "tool_calls": None},
    ]
    plain = [
        {"role": role, "content": text, "tool_calls": None} for role, text in (("user", "Hi"), ("assistant", "Ho"))
    ]
    rows = [
        {"messages": messages, "tools": json.dumps([{"type": "function", "function": {"name": "time"}}])},
        {"messages": plain, "tools": None},
    ]
    formatted(tmp_path / "tools", rows, template="chat", chat_key="messages")
    assert read(tmp_path / "tools" / "val") == [Question([{"role": "user", "content": "Hi"}], "Ho")]


def test_plain_text_is_begun(tmp_path: Path) -> None:
    text = "The sea was calm and the boats lay still."
    formatted(tmp_path, [{"text": text}, {"text": "word"}])
    [question] = read(tmp_path / "val")
    assert question == Question([{"role": "user", "content": "The sea was calm and"}], text)
    assert text.startswith(rendered((tmp_path / "val" / "chat_template.jinja").read_text(), question.messages))
    assert opening_text("one two") == "one" and opening_text("w" * 500) == ""
