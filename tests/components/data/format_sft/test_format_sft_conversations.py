"""Format for SFT: conversations, with tools and without."""

import json
import re

import pyarrow as pa
from format_sft_rows import ROWS, formatted, refused, said, text, write
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from llm_finetune.components.data.format_sft import step
from llm_finetune.components.shared import tables


def test_chat_from_fields(tmp_path):
    facts, rows = formatted(tmp_path, ROWS, template="chat", system_prompt="Be short")
    assert rows[0]["messages"] == [
        {"role": "system", "content": "Be short"},
        {"role": "user", "content": "Add\n\n1 and 2"},
        {"role": "assistant", "content": "3"},
    ]
    assert rows[1]["messages"][1:] == [
        {"role": "user", "content": "Say {hi} \\n"},
        {"role": "assistant", "content": '{"a": "{{ x }}"}'},
    ]
    assert rows[0]["prompt"] == "system: Be short\n\nuser: Add\n\n1 and 2" and rows[0]["completion"] == "3"
    assert facts.template == "chat" and not (tmp_path / "train" / "chat_template.jinja").exists()


def test_conversations_pass_through(tmp_path):
    long = said(("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    rows = [
        long,
        said(("user", "a"), ("assistant", "b")),
        said(("user", "a")),
        said(("user", "a"), ("assistant", " ")),
        said(("user", "a"), ("tool", "b"), ("assistant", "c")),
        said(("user", "a"), ("system", "b"), ("assistant", "c")),
        said(("assistant", "b")),
        {"messages": []},
        {"messages": None},
        said(("user", None), ("assistant", "c")),
    ]
    facts, kept = formatted(tmp_path, rows, template="chat", chat_key="messages", system_prompt="Own")
    assert facts.skipped == {"no_output": 2, "bad_conversation": 6}
    assert kept[0]["messages"] == long["messages"]
    assert kept[0]["prompt"] == "system: S\n\nuser: a\n\nassistant: b\n\nuser: c" and kept[0]["completion"] == "d"
    assert [turn["content"] for turn in kept[1]["messages"]] == ["Own", "a", "b"]


def test_messages_of_another_shape_are_refused(tmp_path):
    def why(messages):
        return refused(tmp_path, [{"messages": messages}], template="chat", chat_key="messages")

    assert "found messages with who, says" in why([{"who": "human", "says": "x"}])
    assert "found list<element: string>" in why(["x"])
    assert "content of the messages is a list of parts" in why([{"role": "user", "content": [{"type": "text"}]}])
    assert "mixes two layouts" in why([{"role": "user", "content": "x"}, {"from": "human", "value": "x"}])
    assert "1 bad conversation" in why("no JSON")


CALL = [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]
OTHER = [{"id": "c2", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}]
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def test_tool_calls_and_tools_pass_through_as_they_came(tmp_path):
    def conversation(calls, *more):
        return [
            {"role": "user", "content": "Q"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": calls[0]["id"], "name": "weather", "content": "cold"},
            *more,
        ]

    adder = {
        "type": "function",
        "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
    }
    answer = {"role": "assistant", "content": "A"}
    rows = [
        {"messages": conversation(CALL, answer), "tools": [TOOL]},
        {
            "messages": conversation(OTHER, {"role": "assistant", "content": "", "tool_calls": CALL}),
            "tools": [adder, TOOL],
        },
        {"messages": conversation(CALL), "tools": None},
        {"messages": conversation(CALL, {"role": "user", "content": "and?"}, answer), "tools": []},
        {"messages": [{"role": "user", "content": "Q"}, {"role": "tool", "content": "x"}, answer], "tools": None},
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": None}, answer], "tools": None},
    ]
    facts, kept = formatted(tmp_path, rows, template="chat", system_prompt="Own")
    assert facts.skipped == {"no_output": 1, "bad_conversation": 3} and facts.columns[-1] == "tools"
    assert [json.loads(row["tools"]) for row in kept] == [[TOOL], [adder, TOOL]]
    first, second = (row["messages"] for row in kept)
    assert [turn["role"] for turn in first] == ["system", "user", "assistant", "tool", "assistant"]
    assert json.loads(first[2]["tool_calls"]) == CALL and first[2]["content"] is None
    assert (first[3]["tool_call_id"], first[3]["name"], first[4]["content"]) == ("c1", "weather", "A")
    assert json.loads(second[2]["tool_calls"]) == OTHER
    assert json.loads(kept[1]["completion"]) == CALL and kept[0]["completion"] == "A"
    assert first[0] == {"role": "system", "content": "Own", "tool_calls": None, "tool_call_id": None, "name": None}


def test_function_calls_of_sharegpt(tmp_path):
    turns = [
        {"from": "human", "value": "Q"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
        {"from": "observation", "value": "cold"},
        {"from": "gpt", "value": "A"},
    ]
    broken = [{"from": "human", "value": "Q"}, {"from": "function_call", "value": "{"}, *turns[2:]]
    rows = [{"conversations": turns, "tools": json.dumps([TOOL])}, {"conversations": broken, "tools": None}]
    facts, kept = formatted(tmp_path, rows, template="chat")
    assert facts.skipped == {"bad_conversation": 1}
    function = {"name": "weather", "arguments": {"city": "Oslo"}}
    assert json.loads(kept[0]["messages"][1]["tool_calls"]) == [{"type": "function", "function": function}]
    assert json.loads(kept[0]["tools"]) == [TOOL]
    without = refused(tmp_path / "none", [{"conversations": turns}], template="chat")
    assert "1 bad conversation" in without


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "x"]), text), max_size=5), min_size=1
    )
)
def test_any_conversations_are_counted(tmp_path, rows):
    def usable(turns):
        shape = " ".join(role for role, _ in turns)
        return re.fullmatch("(system )?(user assistant ?)+", shape) and turns[-1][1].strip()

    rows = [*rows, [("user", "a"), ("assistant", "b")]]
    good = [turns for turns in rows if usable(turns)]
    assume(
        all(turns[-1][1].strip() == pa.compute.utf8_trim_whitespace(turns[-1][1]).as_py() for turns in rows if turns)
    )
    schema = pa.schema([("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])))])
    dataset = write(tmp_path / "rows", [said(*turns) for turns in rows], schema)
    chosen = step.Settings(template="chat", chat_key="messages")
    facts, _ = step.format_sft(dataset, dataset, tmp_path / "t", tmp_path / "v", tmp_path / "p.html", chosen)
    assert facts.rows == len(good) and sum(facts.skipped.values()) == len(rows) - len(good)
    kept = tables.head(tmp_path / "t", len(rows)).to_pylist()
    assert [[(turn["role"], turn["content"]) for turn in row["messages"]] for row in kept] == good
