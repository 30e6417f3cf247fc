"""Conversations: every answer is trained on the very tokens that the served model reads and writes."""

import json

import pyarrow as pa
import pytest
from conversation_rows import answers, talk, tokenized
from tokenizers_by_family import FAMILIES, family_tokenizer
from transformers import AutoTokenizer

from llm_finetune.components.data.format_sft import step as format_sft
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.rows.conversations import TOOL_MESSAGE
from llm_finetune.components.tokens.tokenize import step

TALK = [
    {"role": "user", "content": "one\n\ntwo"},
    {"role": "assistant", "content": "first answer"},
    {"role": "user", "content": "naïve café ☕?"},
    {"role": "assistant", "content": "日本語"},
    {"role": "user", "content": "and now"},
    {"role": "assistant", "content": "last\nanswer."},
]
TOOL_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{% for call in m.tool_calls or [] %}{{ '<call>' + call.function.name + ' ' + call.function.arguments.city + '</call>' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}{{ '<|im_start|>assistant\n(forgotten)<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("family", [name for name, traits in FAMILIES.items() if traits[5]])
def test_each_answer_stands_where_the_served_model_would_write_it(tmp_path, family):
    tokenizer = family_tokenizer(tmp_path / "tokenizer", family)
    _, (row,) = tokenized(tmp_path, tokenizer, talk(TALK))
    served = AutoTokenizer.from_pretrained(tmp_path / "val" / "tokenizer")
    end = served.convert_tokens_to_ids(FAMILIES[family][6])
    found = answers(row)
    assert len(found) == 3
    for turn, (start, ids) in zip((1, 3, 5), found, strict=True):
        asked = served.apply_chat_template(TALK[:turn], add_generation_prompt=True, tokenize=False)
        assert row["input_ids"][:start] == served(asked, add_special_tokens=False)["input_ids"]
        assert ids[-1] == end
        assert served.decode(ids[:-1]).strip() == TALK[turn]["content"]
    if FAMILIES[family][3]:
        assert row["input_ids"].count(served.bos_token_id) == 1


def test_the_last_answer_alone_is_trained_by_setting(tmp_path):
    tokenizer = family_tokenizer(tmp_path / "tokenizer", "qwen")
    every, (row,) = tokenized(tmp_path / "a", tokenizer, talk(TALK))
    last, (other,) = tokenized(tmp_path / "b", tokenizer, talk(TALK), train_on="last")
    assert row["input_ids"] == other["input_ids"]
    assert answers(other) == answers(row)[-1:]
    assert (every["train_on"], last["train_on"]) == ("all", "last")
    assert last["supervised_tokens"] == len(answers(row)[-1][1]) < every["supervised_tokens"]
    assert every["untrained_answers"] == last["untrained_answers"] == 0


def test_answers_that_the_template_rewrites_are_counted_and_shown(tmp_path):
    tokenizer = family_tokenizer(tmp_path / "tokenizer", "qwen")
    (tokenizer / "chat_template.jinja").write_text(FORGETFUL)
    facts, rows = tokenized(tmp_path, tokenizer, talk(TALK, TALK[:2]))
    assert [len(answers(row)) for row in rows] == [1, 1]
    assert facts["untrained_answers"] == 2
    assert "validation: 2 earlier answers are context only" in (tmp_path / "page.html").read_text()


def test_tools_and_their_calls_go_through_the_template_as_a_server_gives_them(tmp_path):
    tokenizer = family_tokenizer(tmp_path / "tokenizer", "qwen")
    (tokenizer / "chat_template.jinja").write_text(TOOL_TEMPLATE)
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": json.dumps({"city": "Oslo"})}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": json.dumps([call])},
        {"role": "tool", "content": "rain", "tool_call_id": "c1", "name": "weather"},
        {"role": "assistant", "content": "It rains."},
    ]
    offered = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    plain = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    table = talk(messages, plain, kind=pa.list_(TOOL_MESSAGE), tools=[json.dumps(offered), None])
    _, (row, second) = tokenized(tmp_path, tokenizer, table)
    served = AutoTokenizer.from_pretrained(tmp_path / "val" / "tokenizer")
    call["function"]["arguments"] = {"city": "Oslo"}
    request = [messages[0], {"role": "assistant", "content": "", "tool_calls": [call]}, messages[2]]
    asked = served.apply_chat_template(request, tools=offered, add_generation_prompt=True, tokenize=False)
    texts = [served.decode(ids) for _, ids in answers(row)]
    assert texts == ["<call>weather Oslo</call><|im_end|>", "It rains.<|im_end|>"]
    assert row["input_ids"][: answers(row)[-1][0]] == served(asked, add_special_tokens=False)["input_ids"]
    assert "weather" not in served.decode(second["input_ids"])


def test_what_format_sft_writes_of_tool_data_is_read(tmp_path):
    tokenizer = family_tokenizer(tmp_path / "tokenizer", "qwen")
    (tokenizer / "chat_template.jinja").write_text(TOOL_TEMPLATE)
    function = {"name": "weather", "arguments": {"city": "Oslo"}}
    row = {
        "messages": [
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": json.dumps(function)},
            {"from": "observation", "value": "rain"},
            {"from": "gpt", "value": "It rains."},
        ],
        "tools": json.dumps([{"type": "function", "function": {"name": "weather"}}]),
    }
    table = pa.Table.from_pylist([row])
    with tables.ShardWriter(tmp_path / "data", table.schema) as writer:
        writer.write(table)
    chosen = format_sft.Settings(template="chat", chat_key="messages")
    format_sft.format_sft(
        tmp_path / "data", tmp_path / "data", tmp_path / "a", tmp_path / "b", tmp_path / "f.html", chosen
    )
    out = [tmp_path / name for name in ("train", "val", "page.html")]
    step.tokenize(tmp_path / "a", tmp_path / "b", *out, step.Settings(packing=False), model=str(tokenizer))
    (found,) = tables.head(out[0], 10).to_pylist()
    served = AutoTokenizer.from_pretrained(tokenizer)
    assert [served.decode(ids) for _, ids in answers(found)] == [
        "<call>weather Oslo</call><|im_end|>", "It rains.<|im_end|>"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        ("{{ raise_exception('System role not supported') }}", TALK,
         "row 1 of the train split: the chat template does not accept the conversation: System role not supported"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}!{% endif %}", TALK,
         "row 1 of the train split: the chat template does not render a conversation as its prompt followed by"),
        (TOOL_TEMPLATE, [TALK[0], {"role": "assistant", "content": None, "tool_calls": "[{"}],
         r"row 1 of the train split: tool_calls is not JSON \(.*\): '\[\{'"),
    ],
)  # fmt: skip
def test_a_conversation_that_can_not_be_rendered_is_named(tmp_path, template, messages, message):
    tokenizer = family_tokenizer(tmp_path / "tokenizer", "qwen")
    guarded = "{% if messages[0].content == 'fine' %}{{ 'fine' }}{% if messages | length > 1 %}{{ messages[1].content }}{% endif %}{% else %}"
    (tokenizer / "chat_template.jinja").write_text(guarded + template + "{% endif %}")
    fine = [{"role": "user", "content": "fine"}, {"role": "assistant", "content": "x"}]
    with pytest.raises(UserError, match=message):
        tokenized(tmp_path, tokenizer, talk(fine, messages, kind=pa.list_(TOOL_MESSAGE)))
    assert not (tmp_path / "train").exists()
