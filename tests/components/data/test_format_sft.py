import json
import re
import shutil
from pathlib import Path

import jinja2
import jinja2.ext
import jinja2.sandbox
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from kfp import dsl

from llm_finetune.components.data.format_sft import component, step
from llm_finetune.components.data.format_sft.chat_template import chat_template
from llm_finetune.components.data.format_sft.template import parse
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


def test_the_default_format(tmp_path):
    facts, rows = formatted(tmp_path, ROWS)
    assert rows[0] == {
        "prompt": "### Instruction:\nAdd\n\n### Input:\n1 and 2\n\n### Response:\n",
        "completion": "3",
    }
    assert rows[1] == {
        "prompt": "### Instruction:\nSay {hi} \\n\n\n### Input:\n\n\n### Response:\n",
        "completion": '{"a": "{{ x }}"}',
    }
    form = json.loads((tmp_path / "train" / "format.json").read_text())
    assert form.keys() == {"template", "system_prompt", "drop_empty_sections", "template_hash"}
    assert form["template_hash"] == facts.template_hash and "\n{instruction}\n" in form["template"]
    source = (tmp_path / "val" / "chat_template.jinja").read_text()
    assert rendered(source, request("Add", "1 and 2")) == rows[0]["prompt"]
    assert rendered(source, request("Say {hi} \\n", None)) == rows[1]["prompt"]


def test_empty_sections_are_dropped_on_request(tmp_path):
    _, rows = formatted(tmp_path, ROWS, drop_empty_sections=True)
    assert [row["prompt"] for row in rows] == [
        "### Instruction:\nAdd\n\n### Input:\n1 and 2\n\n### Response:\n",
        "### Instruction:\nSay {hi} \\n\n\n### Response:\n",
    ]
    source = (tmp_path / "train" / "chat_template.jinja").read_text()
    assert rendered(source, request("Say {hi} \\n", None)) == rows[1]["prompt"]


def test_text_after_the_output_belongs_to_the_completion(tmp_path):
    _, rows = formatted(
        tmp_path, ROWS[:1], template="[INST] {instruction} {{{input}}} [/INST]{output} </s>\\n\\nend {{}}"
    )
    assert rows == [{"prompt": "[INST] Add {1 and 2} [/INST]", "completion": "3 </s>\n\nend {}"}]
    source = (tmp_path / "train" / "chat_template.jinja").read_text()
    answered = [*request("Add", "1 and 2"), {"role": "assistant", "content": "3"}]
    assert rendered(source, answered) == rows[0]["prompt"] + rows[0]["completion"] + EOS


def test_a_long_conversation_repeats_the_form():
    source = chat_template(parse("{instruction}|{input}>{output}.", False))
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert rendered(source, turns) == f"S|a>b.{EOS}S|c>"
    assert rendered(source, turns[1:]) == f"a|>b.{EOS}c|>"


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ([], "needs a user message"),
        ([{"role": "system", "content": "S"}], "needs a user message"),
        ([{"role": "tool", "content": "x"}], "take turns"),
        ([{"role": "assistant", "content": "x"}], "take turns"),
        ([{"role": "user", "content": "x"}, {"role": "user", "content": "x"}], "take turns"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "must be text"),
    ],
)
def test_impossible_requests_are_refused_politely(messages, part):
    source = chat_template(parse("{instruction}|{input}>{output}", False))
    with pytest.raises(jinja2.exceptions.TemplateError, match=part):
        rendered(source, messages)


def test_templates_with_one_field():
    for field in ("instruction", "input"):
        source = chat_template(parse(f"Q: {{{field}}}\\nA: {{output}}", True))
        assert rendered(source, request("why?", None)) == "Q: why?\nA: "
        with pytest.raises(jinja2.exceptions.TemplateError, match="no system message"):
            rendered(source, request("be", "why?"))
    with pytest.raises(jinja2.exceptions.TemplateError, match="without tools"):
        rendered(source, request("why?", None), tools=[{"name": "f"}])


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
literal = text.map(lambda value: value.replace("{", "{{").replace("}", "}}"))


@st.composite
def templates(draw):
    fields = draw(
        st.sampled_from([["instruction", "input"], ["instruction"], ["input"], ["input", "instruction", "input"]])
    )
    parts = [draw(literal)]
    for field in [*fields, "output"]:
        parts += ["{" + field + "}", draw(st.sampled_from(["", "\n\n", "\n", "\\n\\n"])), draw(literal)]
    return "".join(parts)


@settings(max_examples=150, deadline=None)
@given(template=templates(), drop=st.booleans(), instruction=text, input=text, output=text)
def test_the_chat_template_renders_the_training_text(template, drop, instruction, input, output):
    parsed = parse(template, drop)
    row = [pa.array([value]) for value in (instruction, input, output)]
    prompt = parsed.prompts(row[0], row[1])[0].as_py()
    completion = parsed.completions(row[2])[0].as_py()
    source = chat_template(parsed)
    if len(parsed.fields) == 2:
        asked = request(instruction, input)
    else:
        asked = request(instruction if "instruction" in parsed.fields else input, None)
    assert rendered(source, asked) == prompt
    assert rendered(source, [*asked, {"role": "assistant", "content": output}]) == prompt + completion + EOS
    if len(parsed.fields) == 2 and not input:
        assert rendered(source, request(instruction, None)) == prompt
    if not drop:
        whole = template.replace("\\n", "\n").format(instruction=instruction, input=input, output=output)
        assert prompt + completion == whole


@pytest.mark.parametrize(
    ("template", "part"),
    [
        ("{instruction}", "{output} is missing"),
        ("{instrution}{output}", "unknown field {instrution}; did you mean 'instruction'?"),
        ("{output}{input}", "{output} stands before {input}"),
        ("{instruction}{output}{output}", "twice"),
        ("{instruction!r}{output}", "takes no format"),
        ("{instruction:>9}{output}", "takes no format"),
        ("{instruction.x}{output}", "unknown field {instruction.x}"),
        ("{}{output}", "unknown field {}"),
        ("{instruction} {output", "{{ and }}"),
        ("{output}", "neither"),
        ("", "template = ''"),
    ],
)
def test_wrong_templates(tmp_path, template, part):
    assert part in refused(tmp_path, ROWS, template=template)


def test_rows_without_an_answer_are_left_out_and_counted(tmp_path):
    rows = [*ROWS, {**ROWS[0], "output": None}, {**ROWS[0], "output": " \n"}]
    facts, kept = formatted(tmp_path, rows)
    assert (facts.rows, facts.skipped, len(kept)) == (2, {"no_output": 2}, 2)
    assert "2 left out: no output" in (tmp_path / "page.html").read_text()


def test_other_mistakes(tmp_path):
    assert "did you mean 'output'?" in refused(tmp_path, ROWS, output_key="outputs")
    assert "no training row can be used: 1 no output" in refused(tmp_path, [{**ROWS[0], "output": ""}])
    assert "system_prompt belongs to" in refused(tmp_path, ROWS, system_prompt="x")
    messages = [{"messages": [{"role": "user", "content": "x"}]}]
    assert "need template = 'chat'" in refused(tmp_path, messages, chat_key="messages")
    assert "need template = 'chat'" in refused(tmp_path, messages)
    assert "no training row can be used: 1 no output" in refused(tmp_path, messages, template="chat")


def test_columns_are_kept_beside_for_slices(tmp_path):
    rows = [
        {**row, "source": name, "year": year} for row, name, year in zip(ROWS, ("web", None), (1999, 2000), strict=True)
    ]
    facts, kept = formatted(tmp_path, rows, keep_columns="year, source,year")
    assert facts.columns == ["prompt", "completion", "year", "source"]
    assert [(row["completion"], row["year"], row["source"]) for row in kept] == [
        (ROWS[0]["output"], 1999, "web"),
        (ROWS[1]["output"], 2000, None),
    ]
    rows[0]["output"] = None
    assert formatted(tmp_path, rows, keep_columns="year")[1][0]["year"] == 2000
    shutil.rmtree(tmp_path / "train")
    found = refused(tmp_path, rows, keep_columns="sorce")
    assert "keep_columns = 'sorce': the rows have no such column; did you mean 'source'?" in found
    assert "completion is a column that this card writes" in refused(tmp_path, rows, keep_columns="completion")


def test_numbers_and_lists_become_text(tmp_path):
    rows = [{"instruction": 5, "input": ["a", "ü"], "output": 1.5}, {"instruction": None, "input": None, "output": 2.0}]
    assert formatted(tmp_path, rows, template="{instruction}|{input}|{output}")[1] == [
        {"prompt": '5|["a", "ü"]|', "completion": "1.5"},
        {"prompt": "||", "completion": "2.0"},
    ]


def test_an_input_that_the_template_does_not_show_is_counted(tmp_path):
    facts, _ = formatted(tmp_path, ROWS, template="{instruction}>{output}")
    assert facts.unused_input == 1
    assert "1 rows have an input that the template does not show" in (tmp_path / "page.html").read_text()


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


def said(*turns: tuple[str, str | None]) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


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
    assert "content of its messages is a list of parts" in why([{"role": "user", "content": [{"type": "text"}]}])
    assert "mixes two layouts" in why([{"role": "user", "content": "x"}, {"from": "human", "value": "x"}])
    assert "1 bad conversation" in why("no JSON")


def test_layouts_are_recognised(tmp_path):
    facts, rows = formatted(
        tmp_path, [{"prompt": "Q", "completion": "A", "text": "x"}], template="{instruction}>{output}"
    )
    assert (facts.layout, rows) == ("prompt and completion", [{"prompt": "Q>", "completion": "A"}])
    facts, rows = formatted(tmp_path, [{"text": "Once {upon}"}, {"text": " "}])
    assert (facts.layout, facts.template, facts.skipped) == ("plain text", "{output}", {"no_output": 1})
    assert rows == [{"prompt": "", "completion": "Once {upon}"}]
    template = (tmp_path / "train" / "chat_template.jinja").read_text()
    assert rendered(template, [{"role": "user", "content": "Once {"}], add_generation_prompt=True) == "Once {"
    sharegpt = {
        "conversations": [
            {"from": "system", "value": "S"},
            {"from": "human", "value": "Q"},
            {"from": "gpt", "value": "A"},
        ]
    }
    facts, rows = formatted(tmp_path, [sharegpt], template="chat")
    assert facts.layout == "ShareGPT"
    assert rows[0]["messages"] == said(("system", "S"), ("user", "Q"), ("assistant", "A"))["messages"]
    as_json = [{"messages": json.dumps(said(("developer", "S"), ("user", "Q"), ("assistant", "A"))["messages"])}]
    _, rows = formatted(tmp_path, as_json, template="chat", chat_key="messages")
    assert [(turn["role"], turn["content"]) for turn in rows[0]["messages"]] == [
        ("system", "S"),
        ("user", "Q"),
        ("assistant", "A"),
    ]


def test_two_layouts_at_once_and_templates_that_do_not_fit_are_refused(tmp_path):
    both = [{**said(("user", "Q"), ("assistant", "A")), "prompt": "Q", "completion": "A"}]
    message = refused(tmp_path, both, template="chat")
    assert "two layouts" in message and "chat_key = 'messages' or instruction_key = 'prompt'" in message
    assert formatted(tmp_path, both, template="chat", chat_key="messages")[0].rows == 1
    assert "the data is plain text" in refused(tmp_path / "a", [{"text": "x"}], template="chat")
    assert "the data is plain text" in refused(tmp_path / "b", [{"text": "x"}], template="{instruction}{output}")


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


def test_preview_shows_five_samples_of_each_split(tmp_path):
    rows = [{"instruction": f"<b>{i}</b>", "input": "x" * 300, "output": "y" * 300} for i in range(9)]
    formatted(tmp_path, rows)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<mark>" + "y" * 199 + "…</mark>") == 10
    assert "&lt;b&gt;4" in page and "<b>4</b>" not in page and "x" * 200 not in page


def test_card(tmp_path, capsys):
    write(tmp_path / "a", ROWS)
    artifacts = [dsl.Dataset(uri=str(tmp_path / name), metadata={"content_hash": "sha256:in"}) for name in "aacd"]
    run = component.format_sft.python_func
    run(*artifacts, dsl.HTML(uri=str(tmp_path / "p.html")), settings={"drop_empty_sections": True})
    metadata = artifacts[2].metadata
    assert metadata["rows"] == 2 and metadata["inputs"] == {"train_dataset": "sha256:in"}
    assert metadata["template_hash"].startswith("sha256:") and artifacts[3].metadata["skipped"] == {}
    json.dumps(metadata, allow_nan=False)
    with pytest.raises(SystemExit):
        run(*artifacts, dsl.HTML(uri=str(tmp_path / "p.html")), template="{output}")
    assert "error: template: neither" in capsys.readouterr().err
