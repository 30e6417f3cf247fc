"""Fields of messages that no card reads are refused where rows have something in them, and only there."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from llm_finetune.components.data.filter_clean import step as filter_clean
from llm_finetune.components.data.format_sft import step as format_sft
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.rows.unread_fields import refuse_unread_fields

ASKED = {"role": "user", "content": "How many legs have two dogs?"}
ANSWER = {"role": "assistant", "content": "Eight, as it happens."}
OLD_CALL = {"name": "count", "arguments": '{"dogs": 2}'}


def dataset(folder: Path, *conversations: list[dict], as_json: bool = False) -> Path:
    rows = [json.dumps(talk) if as_json else talk for talk in conversations]
    table = pa.table({"messages": rows})
    with tables.ShardWriter(folder, table.schema, rows_per_shard=2) as writer:
        writer.write(table)
    return folder


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("field", "value", "instead"),
    [
        ("reasoning_content", "Four each.", "Move it to content, before the answer"),
        ("reasoning", "Four each.", "Move it to content, before the answer"),
        ("thinking", "Four each.", "Move it to content, before the answer"),
        ("function_call", OLD_CALL, "Convert the call to tool_calls"),
    ],
)
def test_a_field_that_is_not_read_is_refused_with_its_rows(tmp_path, field, value, instead, as_json):
    plain, other = [ASKED, ANSWER], [ASKED, {**ANSWER, field: value}]
    rows = dataset(tmp_path / "rows", plain, [ASKED, {**ANSWER, field: None}], plain, other, other, as_json=as_json)
    message = f"chat_key = 'messages': messages in 2 rows have '{field}', first in row 3. .*{instead}"
    with pytest.raises(UserError, match=message):
        refuse_unread_fields(rows, "messages")


@pytest.mark.parametrize("as_json", [False, True])
def test_fields_that_are_there_and_empty_are_no_matter(tmp_path, as_json):
    empty = [ASKED, {**ANSWER, "reasoning_content": " ", "thinking": None, "function_call": None, "refusal": "no"}]
    refuse_unread_fields(dataset(tmp_path / "rows", empty, empty, as_json=as_json), "messages")


def test_a_field_that_is_only_spoken_of_is_no_matter(tmp_path):
    message_texts = [{**ASKED, "content": 'What is "thinking"?'}, ANSWER]
    refuse_unread_fields(dataset(tmp_path / "rows", message_texts, as_json=True), "messages")


def test_sharegpt_messages_are_looked_at_too(tmp_path):
    talk = [{"from": "human", "value": "Legs?"}, {"from": "gpt", "value": "Eight.", "reasoning": "Four each."}]
    with pytest.raises(UserError, match="messages in 1 rows have 'reasoning', first in row 0"):
        refuse_unread_fields(dataset(tmp_path / "rows", talk), "messages")


def test_both_cards_that_make_messages_of_rows_refuse(tmp_path):
    rows = dataset(tmp_path / "rows", [ASKED, {**ANSWER, "reasoning_content": "Four each."}])
    out = [tmp_path / name for name in ("a", "b", "page.html")]
    with pytest.raises(UserError, match="messages in 1 rows have 'reasoning_content'"):
        filter_clean.filter_clean(rows, *out, filter_clean.Settings())
    with pytest.raises(UserError, match="messages in 1 rows have 'reasoning_content'"):
        format_sft.format_sft(rows, rows, *out, format_sft.Settings(template="chat"))
    assert not any(path.exists() for path in out)
