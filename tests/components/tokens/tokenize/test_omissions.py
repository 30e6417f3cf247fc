"""What a row says survives the chat template, or the run is refused: nothing is trained in silence without it."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pytest
from conversation_rows import OFFERED, answers, calls, said, talk, tokenized
from kfp import dsl
from tiny import CHAT_TEMPLATE, tiny_tokenizer
from tokenizers_by_family import family_tokenizer
from transformers import AutoTokenizer

from llm_finetune.components.data.filter_clean.component import filter_clean
from llm_finetune.components.data.format_sft.component import format_sft
from llm_finetune.components.data.load_dataset.component import load_dataset
from llm_finetune.components.data.train_val_split.component import train_val_split
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.rows.conversations import TOOL_MESSAGE
from llm_finetune.components.tokens.tokenize.component import tokenize
from llm_finetune.components.tokens.tokenize.conversation import Conversation
from llm_finetune.components.tokens.tokenize.shapes import distinct_messages

PARTS = {
    "tools": "{% if tools %}{{ '<|im_start|>system\n' }}{% for t in tools %}{{ t | tojson + '\n' }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}",
    "system": "{% if m.role == 'system' %}{{ '<|im_start|>system\n' + m.content + '<|im_end|>\n' }}{% endif %}",
    "user": "{% if m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}{% endif %}",
    "result": "{% if m.role == 'tool' %}{{ '<|im_start|>tool\n' + (m.content | tojson) + '<|im_end|>\n' }}{% endif %}",
    "thought": "{% if m.reasoning_content and loop.last %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}",
    "text": "{{ m.content }}",
    "calls": "{% for c in m.tool_calls or [] %}{{ '<tool_call>' + (c.function | tojson) + '</tool_call>' }}{% endfor %}",
}
"""A template in the manner of Hermes and Qwen2.5, by what each part renders."""


def template(**others: str) -> str:
    """Returns the template with other parts."""
    part = PARTS | others
    answer = "{{ '<|im_start|>assistant\n' }}" + part["thought"] + part["text"] + part["calls"] + "{{ '<|im_end|>\n' }}"
    return (
        part["tools"] + "{% for m in messages %}" + part["system"] + part["user"] + part["result"]
        + "{% if m.role == 'assistant' %}" + answer + "{% endif %}{% endfor %}"
        + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )  # fmt: skip


OSLO = ("weather", {"city": "Oslo", "days": 2, "at": ["noon"]})
PLAIN = [said("user", "hi"), said("assistant", "hello")]
ASKED = [said("user", "Weather in Oslo?"), calls(OSLO)]
ANSWERED = [*ASKED, said("tool", '{"sky": "grey"}', tool_call_id="call00000"), said("assistant", "weather: Oslo, grey")]
TWO = [said("user", "Both?"), calls(OSLO, OSLO)]
BESIDE = [said("user", "Well?"), calls(OSLO, content="I look outside.")]
SYSTEM = [said("system", "Be brief."), *PLAIN]
LATE = [*PLAIN * 4, said("user", "Both?"), calls(OSLO, ("sea", {})), *ANSWERED[2:], *PLAIN]


def run(tmp_path: Path, chat_template: str, *conversations: list[dict], **settings: object) -> tuple[dict, list[str]]:
    """Tokenizes conversations that may have tools; returns the facts, and what is trained of each, as text."""
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer", chat_template=chat_template)
    offered = [json.dumps(OFFERED) if any("tool_calls" in m for m in talked) else None for talked in conversations]
    table = talk(*conversations, kind=pa.list_(TOOL_MESSAGE), tools=pa.array(offered, pa.string()))
    facts, rows = tokenized(tmp_path, tokenizer, table, **settings)
    decode = AutoTokenizer.from_pretrained(tokenizer).decode
    return facts, ["".join(decode(ids) for _, ids in answers(row)) for row in rows]


def refused(tmp_path: Path, chat_template: str, *conversations: list[dict], **settings: object) -> list[str]:
    """Returns what the refusal lists."""
    with pytest.raises(UserError, match=r"the chat template of .* drops content of rows of the train split") as caught:
        run(tmp_path, chat_template, *conversations, **settings)
    assert not (tmp_path / "train").exists()
    return [line.removeprefix("- ") for line in str(caught.value).split("\n") if line.startswith("- ")]


def test_a_template_with_tools_trains_the_name_and_the_arguments_of_every_call(tmp_path):
    _, trained = run(tmp_path, template(), PLAIN, ASKED, ANSWERED, TWO, BESIDE, SYSTEM)
    call = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo", "days": 2, "at": ["noon"]}}</tool_call>'
    end = "<|im_end|>"
    assert trained == [
        f"hello{end}", f"{call}{end}", f"{call}{end}weather: Oslo, grey{end}", f"{call}{call}{end}",
        f"I look outside.{call}{end}", f"hello{end}",
    ]  # fmt: skip


NAME, CITY, DAYS = (f"messages[1].tool_calls[0].function.{x}" for x in ("name", "arguments.city", "arguments.days"))
TOOLS = "offered tools: in {} rows, first in row {}: tools[0].function.name, tools[0].function.description"


@pytest.mark.parametrize(
    ("chat_template", "conversations", "expected"),
    [
        (CHAT_TEMPLATE, [PLAIN, ASKED, PLAIN, ASKED], [
            TOOLS.format("2 of 4", 1), f"tool calls: in 2 of 4 rows, first in row 1: {NAME}, {CITY}, {DAYS} and 1 more"]),
        # The name and the argument stand in a later message, too: words of the row itself would be found there.
        (template(calls=""), [ANSWERED],
         [f"tool calls: in 1 of 1 rows, first in row 0: {NAME}, {CITY}, {DAYS} and 1 more"]),
        (template(tools=""), [ASKED], [TOOLS.format("1 of 1", 0)]),
        (template(calls="{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}"), [ASKED],
         [f"tool calls: in 1 of 1 rows, first in row 0: {CITY}, {DAYS}, messages[1].tool_calls[0].function.arguments.at[0]"]),
        (template(result=""), [PLAIN, ANSWERED], ["tool results: in 1 of 2 rows, first in row 1: messages[2].content"]),
        (template(calls="{% for c in (m.tool_calls or [])[:1] %}{{ c.function | tojson }}{% endfor %}"), [ASKED, TWO], [
            "the second and further tool calls of an answer: in 1 of 2 rows, first in row 1: "
            "messages[1].tool_calls[1].function.name, messages[1].tool_calls[1].function.arguments.city, "
            "messages[1].tool_calls[1].function.arguments.days and 1 more"]),
        (template(calls="{% for c in (m.tool_calls or [])[:1] %}{{ c.function | tojson }}{% endfor %}"), [LATE],
         ["the second and further tool calls of an answer: in 1 of 1 rows, first in row 0: "
          "messages[9].tool_calls[1].function.name"]),
        (template(text="{% if not m.tool_calls %}{{ m.content }}{% endif %}"), [ASKED, BESIDE],
         ["text beside a tool call: in 1 of 2 rows, first in row 1: messages[1].content"]),
        (template(system=""), [PLAIN, SYSTEM], ["system messages: in 1 of 2 rows, first in row 1: messages[0].content"]),
        (template(user="{% if loop.first %}{{ m.content }}{% endif %}"), [[*PLAIN, *PLAIN]],
         ["user messages: in 1 of 1 rows, first in row 0: messages[2].content"]),
    ],
    ids=["ChatML", "calls", "tools", "arguments", "results", "second", "late", "beside", "system", "user"],
)  # fmt: skip
def test_what_a_template_drops_is_named_with_the_rows_that_have_it(tmp_path, chat_template, conversations, expected):
    assert refused(tmp_path, chat_template, *conversations) == expected


def test_reasoning_that_is_cut_off_the_answer_to_train_is_refused(tmp_path):
    thought = [said("user", "two dogs' legs?"), said("assistant", "<think>\nfour each\n</think>\n\neight")]
    cuts = "{{ m.content.split('</think>')[-1].lstrip('\n') }}"
    found = ["answers: in 1 of 2 rows, first in row 1: messages[1].content"]
    assert refused(tmp_path / "a", template(text=cuts), PLAIN, thought) == found
    assert refused(tmp_path / "b", template(text=cuts), PLAIN, [*thought, *PLAIN]) == found
    _, trained = run(tmp_path / "c", template(text=cuts), [*thought, *PLAIN], train_on="last")
    assert trained == ["hello<|im_end|>"]


def test_reasoning_that_a_template_drops_of_earlier_answers_alone_is_context_as_before(tmp_path):
    thought = [said("user", "legs?"), said("assistant", "<think>\n\nfour each </think>eight\n")]
    cuts = "{% if loop.last %}{{ m.content | replace('\n', '') }}{% else %}{{ m.content.split('</think>')[-1] }}{% endif %}"
    facts, trained = run(tmp_path, template(text=cuts), [*thought, *PLAIN], thought)
    assert trained == ["hello<|im_end|>", "<think>four each </think>eight<|im_end|>"]
    assert facts["untrained_answers"] == 1


def test_reasoning_in_a_field_of_its_own_is_trained_or_refused(tmp_path):
    row = [said("user", "legs?"), said("assistant", "eight", reasoning_content="four each")]
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer", chat_template=template())
    _, (found,) = tokenized(tmp_path / "a", tokenizer, talk(row))
    decode = AutoTokenizer.from_pretrained(tokenizer).decode
    assert [decode(ids) for _, ids in answers(found)] == ["<think>four each</think>eight<|im_end|>"]
    tokenizer = tiny_tokenizer(tmp_path / "other", chat_template=CHAT_TEMPLATE)
    with pytest.raises(UserError, match=r"reasoning \(reasoning_content\): in 1 of 1 rows, first in row 0"):
        tokenized(tmp_path / "b", tokenizer, talk(row))


def test_rows_are_counted_up_to_a_bound(tmp_path, monkeypatch):
    documents = "llm_finetune.components.tokens.tokenize.documents"
    monkeypatch.setattr(f"{documents}.ROWS_PER_BATCH", 2)
    monkeypatch.setattr(f"{documents}.MAX_ROWS_COUNTED", 3)
    found = refused(tmp_path, template(tools=""), *[PLAIN] * 4, *[ASKED] * 9)
    assert found == [TOOLS.format("2 of 6", 4)]


@pytest.mark.parametrize("answer", ["\u200b", "<|pad|>"])
def test_an_answer_without_a_token_of_its_own_is_refused_and_one_that_is_a_special_token_is_not(tmp_path, answer):
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    file = tokenizer / "tokenizer.json"
    normalizer = {"type": "Replace", "pattern": {"String": "\u200b"}, "content": ""}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normalizer": normalizer}))
    table = talk(PLAIN, [said("user", "hi"), said("assistant", answer)])
    if answer == "<|pad|>":
        assert len(tokenized(tmp_path, tokenizer, table)[1]) == 2
    else:
        message = r"row 1 of the train split: of its answer only '<\|im_end\|>' would be trained"
        with pytest.raises(UserError, match=message):
            tokenized(tmp_path, tokenizer, table)


def test_of_several_templates_the_one_for_tools_renders_the_rows_that_have_tools(tmp_path):
    tokenizer = family_tokenizer(
        tmp_path / "tokenizer", "tinyllama"
    )  # adds a beginning token, which no template writes
    (tokenizer / "chat_template.jinja").unlink()
    file = tokenizer / "tokenizer_config.json"
    tools = template().replace("<|im_start|>", "<s>").replace("<|im_end|>", "</s>").replace("<s>", "")
    both = [{"name": "default", "template": CHAT_TEMPLATE.replace("<|im_start|>", "").replace("<|im_end|>", "</s>")}]
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"chat_template": [*both, {"name": "tool_use", "template": tools}]})
    )
    offered = pa.array([None, json.dumps(OFFERED)], pa.string())
    _, rows = tokenized(tmp_path, tokenizer, talk(PLAIN, ASKED, kind=pa.list_(TOOL_MESSAGE), tools=offered))
    served = AutoTokenizer.from_pretrained(tokenizer)
    assert [row["input_ids"].count(served.bos_token_id) for row in rows] == [1, 1]
    assert '"city": "Oslo"' in served.decode(answers(rows[1])[0][1])


@pytest.mark.parametrize(
    ("tools", "message"),
    [('{"name": "weather"}', r"tools is not a list of objects: '\{\"name\": \"weather\"\}'"),
     ('["weather"]', r"tools is not a list of objects: '\[\"weather\"\]'")],
)  # fmt: skip
def test_tools_of_another_form_are_one_error_with_the_row(tmp_path, tools, message):
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer", chat_template=template())
    with pytest.raises(UserError, match=f"row 1 of the train split: {message}"):
        tokenized(tmp_path, tokenizer, talk(PLAIN, PLAIN, tools=[None, tools]))


def test_a_long_conversation_is_tried_by_its_first_exchange_of_each_form_and_its_last():
    steps = [calls(OSLO), said("tool", "grey")] * 3
    turns = [said("system", "s"), *PLAIN * 5, said("user", "?"), *steps, said("assistant", "grey"), *PLAIN * 3]
    kept, _ = distinct_messages(Conversation.from_row(turns))
    assert kept == [0, 1, 2, 11, 12, 13, 18, 23, 24]
    assert (
        distinct_messages(Conversation.from_row(PLAIN * 9))[1] == distinct_messages(Conversation.from_row(PLAIN * 3))[1]
    )


def through_the_cards(tmp_path: Path, rows: list[dict], chat_template: str) -> Path:
    """Runs the cards from Load Dataset to Tokenize; returns the folder of the training tokens."""
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = ("raw", "clean", "dropped", "train", "val", "train_sft", "val_sft", "train_tokens", "val_tokens")
    at = {name: dsl.Dataset(uri=str(tmp_path / name)) for name in names}
    page = dsl.HTML(uri=str(tmp_path / "page.html"))
    load_dataset.python_func(
        raw_dataset=at["raw"], preview=page, source_type="jsonl_path", jsonl_path=str(tmp_path / "rows.jsonl")
    )
    filter_clean.python_func(
        raw_dataset=at["raw"], clean_dataset=at["clean"], dropped_rows=at["dropped"], preview=page, min_chars=1
    )
    train_val_split.python_func(
        clean_dataset=at["clean"], train_dataset=at["train"], val_dataset=at["val"], preview=page, val_ratio=0.5,
        near_threshold=0.0,
    )  # fmt: skip
    format_sft.python_func(
        train_dataset=at["train"], val_dataset=at["val"], train_sft=at["train_sft"], val_sft=at["val_sft"],
        preview=page, template="chat",
    )  # fmt: skip
    tokenize.python_func(
        train_sft=at["train_sft"], val_sft=at["val_sft"], train_tokens=at["train_tokens"], val_tokens=at["val_tokens"],
        preview=page, model_name=str(tiny_tokenizer(tmp_path / "tokenizer", chat_template=chat_template)),
        packing=False,
    )  # fmt: skip
    return tmp_path / "train_tokens"


CITIES = ("Oslo", "Rome", "Paris", "Bern", "Lima", "Cairo")


def test_tool_calls_from_the_file_to_the_tokens(tmp_path, capsys):
    function = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "type": "function", "function": function}]}
    rows = [{"messages": [said("user", f"Weather in {city} today?"), call], "tools": OFFERED} for city in CITIES]
    with pytest.raises(SystemExit):
        through_the_cards(tmp_path / "a", rows, CHAT_TEMPLATE)
    said_so = capsys.readouterr().err
    assert re.search(
        r"^error: the chat template of '.*tokenizer' drops content of rows of the train split", said_so, re.M
    )
    assert f"tool calls: in 3 of 3 rows, first in row 0: {NAME}, {CITY}" in said_so
    assert "Use a base model whose chat template renders it" in said_so
    assert "Traceback" not in said_so
    tokens = through_the_cards(tmp_path / "b", rows, template())
    decode = AutoTokenizer.from_pretrained(tmp_path / "b" / "tokenizer").decode
    texts = {decode(ids) for row in tables.head(tokens, 9).to_pylist() for _, ids in answers(row)}
    assert texts == {'<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call><|im_end|>'}


def test_plain_conversations_from_the_file_to_the_tokens(tmp_path):
    rows = [
        {"messages": [said("user", f"{city}?"), said("assistant", "A city."), said("user", "Where?"), said("assistant", f"{city}!")]}
        for city in CITIES
    ]  # fmt: skip
    tokens = through_the_cards(tmp_path, rows, CHAT_TEMPLATE)
    served = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    found = tables.head(tokens, 9).to_pylist()
    assert len(found) == 3
    for row in found:
        city = served.decode(row["input_ids"]).split("\n")[1].removesuffix("?<|im_end|>")
        text = (
            f"<|im_start|>user\n{city}?<|im_end|>\n<|im_start|>assistant\nA city.<|im_end|>\n"
            f"<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n{city}!<|im_end|>"
        )
        assert city in CITIES
        assert row["input_ids"] == served(text, add_special_tokens=False)["input_ids"]
        assert [served.decode(ids) for _, ids in answers(row)] == ["A city.<|im_end|>", f"{city}!<|im_end|>"]
