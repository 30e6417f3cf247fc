"""Filter & Clean: why rows are dropped, what is repaired in the others, and the layouts that it takes."""

import json

import numpy as np
import pyarrow as pa
import pytest
from filter_clean_rows import clean, refused, row, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kfp import dsl

from llm_finetune.components.data.filter_clean import component, repair, step
from llm_finetune.components.shared.charts import histogram
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.rows.text import MAX_COUNTED_LENGTH


def test_every_reason(tmp_path):
    rows = [
        row("Keep this one, please"),
        row(output=None),
        row(output=" \n\t"),
        row("a", "b", "c"),
        row(output="x" * 5000),
        row("keep  THIS one,\nplease "),
        row("12345", "67890", "123456"),
        row("12345", "67890", "12345  "),
        row("x" * 4000, "y" * 90, "z" * 6),
        row("x" * 4000, "y" * 90, "z" * 7),
    ]
    facts, kept, dropped = clean(tmp_path, rows)
    assert kept == [rows[0], rows[6], rows[8]]
    reasons = ["missing_output", "missing_output", "too_short", "too_long", "duplicate", "too_short", "too_long"]
    assert [r["reason"] for r in dropped] == reasons
    assert dropped[3]["output"] == "x" * 5000
    assert facts.dropped == {"missing_output": 2, "too_short": 2, "too_long": 2, "duplicate": 1}


def test_settings_turn_rules_off(tmp_path):
    rows = [row(output=None), row("a", "b", "c"), row(output="x" * 5000), row("a", "b", "c")]
    facts, kept, _ = clean(tmp_path, rows, min_chars=0, max_chars=0, drop_if_missing_output=False, dedup="none")
    assert facts.rows == 4 and kept[0]["output"] == ""


def test_text_is_trimmed_and_other_columns_stay(tmp_path):
    rows = [row("  A question that is long\n", "\u3000x ", "\ty ", label=3, tags=["a"], note=" as it is ")]
    _, kept, _ = clean(tmp_path, rows)
    assert kept == [row("A question that is long", "x", "y", label=3, tags=["a"], note=" as it is ")]


def test_values_that_are_no_text(tmp_path):
    schema = pa.schema([("instruction", pa.list_(pa.string())), ("input", pa.float64()), ("output", pa.int64())])
    rows = [
        {"instruction": ["a list of words", "ü"], "input": 1.5, "output": 42},
        {"instruction": ["another list of words"], "input": float("nan"), "output": 7},
        {"instruction": None, "input": None, "output": None},
    ]
    facts, kept, dropped = clean(tmp_path, pa.Table.from_pylist(rows, schema))
    assert kept == [row('["a list of words", "ü"]', "1.5", "42"), row('["another list of words"]', "", "7")]
    assert facts.converted == {"instruction": 2, "input": 2, "output": 2}
    assert [r["reason"] for r in dropped] == ["missing_output"]
    assert "Converted to text" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_every_layout_of_text(tmp_path, kind):
    table = pa.table(
        {name: pa.array([f"{name} one two three"]).cast(kind) for name in ("instruction", "input", "output")}
    )
    facts, kept, _ = clean(tmp_path, table, pii="redact")
    assert kept == [{name: f"{name} one two three" for name in ("instruction", "input", "output")}]
    assert facts.converted == {}


def test_structures_become_json_and_bytes_are_refused(tmp_path):
    rows = [row(output={"a": [1, None], "b": "ü"})]
    assert clean(tmp_path, rows)[1][0]["output"] == '{"a": [1, null], "b": "ü"}'
    with pytest.raises(UserError, match="contains bytes"):
        clean(tmp_path, [row(output=b"bytes")])


def test_wrong_keys_name_the_nearest_column(tmp_path):
    message = refused(tmp_path, [row()], output_key="outputs")
    assert "did you mean 'output'?" in message and "instruction, input, output" in message
    assert "set input_key to ''" in refused(tmp_path, [{"instruction": "a", "output": "b"}])
    assert clean(tmp_path, [{"instruction": "a" * 20, "output": "b"}], input_key="")[0].rows == 1
    with pytest.raises(UserError, match="below min_chars"):
        step.Settings.of({"min_chars": 20, "max_chars": 10})


def test_nothing_left_is_an_error_with_the_reasons(tmp_path):
    message = refused(tmp_path, [row(output=None), row(output=None), row("a", "", "b")])
    assert "all 3 rows were dropped: 2 missing output, 1 too short" in message
    assert "the dataset has no rows" in refused(tmp_path, pa.Table.from_pylist([row()]).slice(1))


def test_a_reason_column_of_the_data_is_kept(tmp_path):
    _, kept, dropped = clean(tmp_path, [row(reason="mine"), row(output="", reason="theirs")])
    assert kept[0]["reason"] == "mine"
    assert (dropped[0]["source_reason"], dropped[0]["reason"]) == ("theirs", "missing_output")


def test_control_characters_and_broken_unicode_are_repaired(tmp_path):
    broken = "schÃ¶n \x00\x1b[31mred\x1b[0m \uff21\uff22\ufeff “a &amp; b”\r\nend \x7f"
    mended = "schÃ¶n red \uff21\uff22 “a &amp; b”\r\nend"
    facts, kept, _ = clean(tmp_path, [row(broken), row("Nothing to repair here, \tis there?")])
    assert kept[0]["instruction"] == mended and facts.repaired == 1
    facts, kept, _ = clean(tmp_path, [row(broken, "cafe\u0301")], repair="unicode")
    assert kept == [row("schön red AB “a &amp; b”\nend", "café")] and facts.repaired == 2
    facts, kept, _ = clean(tmp_path, [row(broken)], repair="off")
    assert kept[0]["instruction"] == broken.strip() and facts.repaired == 0
    said = {"messages": [{"role": "user", "content": broken}, {"role": "assistant", "content": "yes\x00"}]}
    facts, kept, _ = clean(tmp_path, [said])
    assert [turn["content"] for turn in kept[0]["messages"]] == [mended + " ", "yes"] and facts.repaired == 2


def test_a_slice_of_conversations_is_repaired_alone():
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    said = ["a\x07", None, "b\x07", "c\x07"]
    rows = [text and [{"role": "user", "content": text}] for text in said]
    column, changed = repair.repair_messages(pa.array(rows, pa.list_(message)).slice(1, 2), "control")
    column.validate(full=True)
    assert column.to_pylist() == [None, [{"role": "user", "content": "b"}]] and changed == 1


def test_languages(tmp_path):
    rows = [
        row("What is the capital of this country?", "", "It is a large city in the north."),
        row("Was ist die Hauptstadt dieses Landes?", "", "Es ist eine große Stadt im Norden."),
        row("¿Cuál es la capital de este país?", "", "Es una gran ciudad en el norte."),
        row("12 + 34 = 46, 5 + 6 = 11", "", "46, 11"),
    ]
    facts, kept, _ = clean(tmp_path, rows, languages="en, DE")
    assert kept == [rows[0], rows[1], rows[3]] and facts.dropped == {"language": 1}
    assert "'xx' is not supported" in refused(tmp_path / "none", rows, languages="en,xx")


def test_layouts_are_recognised_and_sharegpt_becomes_messages(tmp_path):
    def turns(*said):
        return [{"from": who, "value": what} for who, what in said]

    rows = [
        {
            "conversations": turns(
                ("human", "A long enough question"), ("gpt", "Answer one"), ("human", "and"), ("gpt", "two")
            )
        },
        {"conversations": turns(("human", "A long enough question"), ("function_call", "{}"), ("gpt", "x"))},
    ]
    facts, kept, _ = clean(tmp_path, rows)
    assert facts.layout == "ShareGPT" and facts.dropped == {"bad_conversation": 1}
    assert [(m["role"], m["content"]) for m in kept[0]["conversations"]][-1] == ("assistant", "two")
    facts, kept, _ = clean(tmp_path, [{"text": " A text that is long enough\x00"}])
    assert facts.layout == "plain text" and kept == [{"text": "A text that is long enough"}]
    facts, kept, _ = clean(tmp_path, [{"prompt": "A long enough question", "completion": " Answer"}])
    assert facts.layout == "prompt and completion" and kept[0]["completion"] == "Answer"


def test_rows_of_another_layout_are_refused(tmp_path):
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{**row(), "messages": None}, {"instruction": None, "input": None, "output": None, "messages": said}]
    message = refused(tmp_path, rows)
    assert "row 1 has no value in 'instruction', 'input', 'output', but in 'messages'" in message
    assert clean(tmp_path, rows[:1])[0].rows == 1
    both = [{"messages": said, "prompt": "a", "completion": "b"}]
    assert "columns of two layouts, 'messages' and 'prompt + completion'" in refused(tmp_path / "b", both)


def test_conversations(tmp_path):
    def said(*turns):
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    rows = [
        said(("system", "Be kind"), ("user", "  Hello there, you "), ("assistant", "Hi")),
        said(("user", "Hello there, you"), ("assistant", "Hi, a@b.com")),
        said(("system", "be kind"), ("user", "hello  there, you"), ("assistant", "hi")),
        said(("user", "Hello there, you of no answer")),
        said(("user", "Hi"), ("assistant", "Yo")),
        said(("assistant", "Hello there, you"), ("assistant", "Hi")),
        {"messages": None},
    ]
    facts, kept, _ = clean(tmp_path, rows, chat_key="messages", pii="redact")
    assert kept == [rows[0], said(("user", "Hello there, you"), ("assistant", "Hi, [EMAIL]"))]
    assert facts.dropped == {"missing_output": 2, "bad_conversation": 1, "too_short": 1, "duplicate": 1}
    assert facts.personal_data == {"email": 1}


values = (
    st.none()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
    | st.sampled_from(["", " ", "a@b.com", "\x00", "x" * 5000, "\u2028", "é" * 20, "4111 1111 1111 1111"])
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(values, values, values), max_size=8), redact=st.booleans())
def test_any_text_is_kept_or_dropped(tmp_path, rows, redact):
    whole = [row(), *(row(*fields) for fields in rows)]
    facts, kept, dropped = clean(tmp_path, whole, pii="redact" if redact else "report", dedup="near")
    assert facts.rows_in == len(whole) and len(kept) + len(dropped) == len(whole)


def test_histogram_adds_up():
    lengths = np.zeros(MAX_COUNTED_LENGTH + 1, np.int64)
    assert histogram(lengths, "characters").bars == []
    lengths[[17, 18, 400]] = [5, 6, 7]
    drawn = histogram(lengths, "characters")
    assert (drawn.minimum, drawn.maximum, drawn.median, drawn.highest, drawn.overflow_start, drawn.rows) == (
        17,
        400,
        18,
        11,
        0,
        18,
    )
    assert drawn.bars[0]["label"] == "17 to 26 characters: 11 rows" and drawn.bars[0]["height"] == 100
    lengths[[17, MAX_COUNTED_LENGTH]] = [5000, 1]
    drawn = histogram(lengths, "characters")
    assert drawn.maximum == MAX_COUNTED_LENGTH and drawn.bars[-1]["label"] == "18 to 65,536 characters: 14 rows"
    assert drawn.overflow_start == 18


def test_preview(tmp_path):
    rows = [row(f"<i>{i}</i>\nsecond line" + "x" * 200) for i in range(30)] + [row(output=None)]
    clean(tmp_path, rows)
    page = (tmp_path / "page.html").read_text()
    assert page.count("&lt;i&gt;") == 20 and "<i>" not in page
    assert "&lt;i&gt;0&lt;/i&gt; second line" in page and "x" * 150 not in page
    assert "missing_output" in page and '<rect class="bar"' in page


def test_card(tmp_path, capsys):
    write(tmp_path / "raw", [row(), row(output=None)])
    raw = dsl.Dataset(
        uri=str(tmp_path / "raw"), metadata={"content_hash": "sha256:in", "source": "here", "revision": "1"}
    )
    outputs = [dsl.Dataset(uri=str(tmp_path / name)) for name in ("clean", "dropped")]
    run = component.filter_clean.python_func
    run(raw, *outputs, dsl.HTML(uri=str(tmp_path / "p.html")))
    metadata = outputs[0].metadata
    assert (metadata["rows"], metadata["source"], metadata["inputs"]) == (1, "here", {"raw_dataset": "sha256:in"})
    assert outputs[1].metadata["rows"] == 1 and outputs[1].metadata["columns"][-1] == "reason"
    json.dumps([metadata, outputs[1].metadata], allow_nan=False)
    with pytest.raises(SystemExit):
        run(raw, *outputs, dsl.HTML(uri=str(tmp_path / "p.html")), instruction_key="instructions")
    assert "did you mean 'instruction'?" in capsys.readouterr().err
