"""Format for SFT: prompts and completions from rows, the layouts that it takes, and what it refuses."""

import json
import shutil

import pytest
from format_sft_rows import ROWS, formatted, refused, rendered, request, said, write
from kfp import dsl

from llm_finetune.components.data.format_sft import component


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


def test_rows_without_an_answer_are_left_out_and_counted(tmp_path):
    rows = [*ROWS, {**ROWS[0], "output": None}, {**ROWS[0], "output": " \n"}]
    facts, kept = formatted(tmp_path, rows)
    assert (facts.rows, facts.skipped, len(kept)) == (2, {"no_output": 2}, 2)
    assert "2 skipped: no output" in (tmp_path / "page.html").read_text()


def test_other_mistakes(tmp_path):
    assert "did you mean 'output'?" in refused(tmp_path, ROWS, output_key="outputs")
    assert "all training rows were skipped: 1 no output" in refused(tmp_path, [{**ROWS[0], "output": ""}])
    assert "system_prompt needs template" in refused(tmp_path, ROWS, system_prompt="x")
    messages = [{"messages": [{"role": "user", "content": "x"}]}]
    assert "need template = 'chat'" in refused(tmp_path, messages, chat_key="messages")
    assert "need template = 'chat'" in refused(tmp_path, messages)
    assert "all training rows were skipped: 1 no output" in refused(tmp_path, messages, template="chat")


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
    assert "keep_columns = 'sorce': no such column; did you mean 'source'?" in found
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
    assert "1 rows have an input that the template does not contain" in (tmp_path / "page.html").read_text()


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
    assert "error: template: {instruction} and {input} are both missing" in capsys.readouterr().err
