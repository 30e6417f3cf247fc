"""Format for SFT: instruction templates, and the chat template that renders the same text."""

import jinja2
import pyarrow as pa
import pytest
from format_sft_rows import EOS, ROWS, formatted, refused, rendered, request, text
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_finetune.components.data.format_sft.chat_template import chat_template
from llm_finetune.components.data.format_sft.template import parse


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
        ("{output}{input}", "{output} comes before {input}"),
        ("{instruction}{output}{output}", "twice"),
        ("{instruction!r}{output}", "supports no format specification"),
        ("{instruction:>9}{output}", "supports no format specification"),
        ("{instruction.x}{output}", "unknown field {instruction.x}"),
        ("{}{output}", "unknown field {}"),
        ("{instruction} {output", "{{ and }}"),
        ("{output}", "are both missing"),
        ("", "template = ''"),
    ],
)
def test_wrong_templates(tmp_path, template, part):
    assert part in refused(tmp_path, ROWS, template=template)
