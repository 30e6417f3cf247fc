import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from kfp import dsl
from tokenizers_by_family import FAMILIES, family_tokenizer
from transformers import AutoTokenizer

from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.tokens.tokenize import step
from llm_finetune.components.tokens.tokenize.component import tokenize as card

TEMPLATE = (
    "{%- set ns = namespace(system='') -%}{%- for m in messages -%}{%- if m.role == 'system' -%}{%- set ns.system = m.content -%}"
    "{%- elif m.role == 'user' -%}{{- '### Instruction:\\n' + ns.system + '\\n\\n### Input:\\n' + m.content + '\\n\\n### Response:\\n' -}}"
    "{%- else -%}{{- m.content + eos_token -}}{%- endif -%}{%- endfor -%}"
)
ROWS = [
    ("Translate", "Good morning", "Bonjour"),
    ("Name a colour", "warm", "red\n"),
    ("Count", "0123", '{"number": "12"}'),
    ("  spaces ", "\n\nlines", " leading space"),
    ("Unicode", "naïve café ☕", "日本語"),
]


def sft(folder: Path, rows=ROWS, chat: bool = False) -> Path:
    prompts = [f"### Instruction:\n{i}\n\n### Input:\n{x}\n\n### Response:\n" for i, x, _ in rows]
    columns = {"prompt": prompts, "completion": [output for _, _, output in rows]}
    if chat:
        columns["messages"] = [
            [{"role": "user", "content": f"{i}\n\n{x}"}, {"role": "assistant", "content": output}]
            for i, x, output in rows
        ]
    table = pa.table(columns)
    with tables.ShardWriter(folder, table.schema) as writer:
        writer.write(table)
        if not chat:
            (writer.folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def run(tmp_path: Path, source: Path, tokenizer: Path, **settings):
    out = [tmp_path / name for name in ("train", "val", "page.html")]
    facts = step.tokenize(source, source, *out, step.Settings(**settings), model=str(tokenizer))
    return facts, *(tables.head(folder, 1000).to_pylist() for folder in out[:2])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_instruction_prompt_has_the_ids_that_the_served_model_gets(tmp_path, family):
    tokenizer = family_tokenizer(tmp_path / "tokenizer", family)
    _, _, rows = run(tmp_path, sft(tmp_path / "sft"), tokenizer, packing=False)
    served = AutoTokenizer.from_pretrained(tmp_path / "val" / "tokenizer")
    for row, (instruction, text, output) in zip(rows, ROWS, strict=True):
        request = [{"role": "system", "content": instruction}, {"role": "user", "content": text}]
        asked = served.apply_chat_template(request, add_generation_prompt=True, tokenize=False)
        prompt = served(asked, add_special_tokens=False)["input_ids"]
        assert row["input_ids"][: len(prompt)] == prompt
        assert row["labels"] == [-100] * len(prompt) + row["input_ids"][len(prompt) :]
        completion = row["input_ids"][len(prompt) :]
        assert completion[-1] == served.eos_token_id
        assert served.decode(row["input_ids"], skip_special_tokens=True).endswith(output)
        bos = 1 if FAMILIES[family][3] else 0
        if served.bos_token_id is not None:
            assert row["input_ids"].count(served.bos_token_id) == bos


@pytest.mark.parametrize("family", [name for name, traits in FAMILIES.items() if traits[5]])
def test_a_chat_prompt_has_the_ids_that_the_served_model_gets_and_the_end_of_turn_is_trained(tmp_path, family):
    tokenizer = family_tokenizer(tmp_path / "tokenizer", family)
    _, _, rows = run(tmp_path, sft(tmp_path / "sft", chat=True), tokenizer, packing=False)
    served = AutoTokenizer.from_pretrained(tmp_path / "val" / "tokenizer")
    end = served.convert_tokens_to_ids(FAMILIES[family][6])
    for row, (instruction, text, _) in zip(rows, ROWS, strict=True):
        asked = served.apply_chat_template(
            [{"role": "user", "content": f"{instruction}\n\n{text}"}], add_generation_prompt=True, tokenize=False
        )
        prompt = served(asked, add_special_tokens=False)["input_ids"]
        assert row["input_ids"][: len(prompt)] == prompt
        assert row["input_ids"][-1] == row["labels"][-1] == end
        assert row["labels"].count(end) == 1
        if FAMILIES[family][3]:
            assert row["input_ids"].count(served.bos_token_id) == 1


def test_every_answer_of_a_conversation_is_trained(tmp_path):
    tokenizer = family_tokenizer(tmp_path / "tokenizer", "qwen")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "first answer"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "second answer"},
    ]
    table = pa.table({"prompt": ["-"], "completion": ["second answer"], "messages": [messages]})
    with tables.ShardWriter(tmp_path / "sft", table.schema) as writer:
        writer.write(table)
    _, _, rows = run(tmp_path, tmp_path / "sft", tokenizer, packing=False)
    served = AutoTokenizer.from_pretrained(tokenizer)
    trained = [token for token, label in zip(rows[0]["input_ids"], rows[0]["labels"], strict=True) if label != -100]
    assert served.decode(trained) == "first answer<|im_end|>second answer<|im_end|>"
    assert all(label in (-100, token) for token, label in zip(rows[0]["input_ids"], rows[0]["labels"], strict=True))


def test_only_the_last_answer_is_trained_where_the_template_rewrites_earlier_ones(tmp_path):
    tokenizer = family_tokenizer(tmp_path / "tokenizer", "qwen")
    (tokenizer / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}{{ '<|im_start|>assistant\n(forgotten)<|im_end|>\n' }}"
        "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    messages = [
        {"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "x"), ("user", "b"), ("assistant", "y"))
    ]
    table = pa.table({"prompt": ["-"], "completion": ["y"], "messages": [messages]})
    with tables.ShardWriter(tmp_path / "sft", table.schema) as writer:
        writer.write(table)
    _, _, rows = run(tmp_path, tmp_path / "sft", tokenizer, packing=False)
    served = AutoTokenizer.from_pretrained(tokenizer)
    assert served.decode([label for label in rows[0]["labels"] if label != -100]) == "y<|im_end|>"


def test_packed_rows_hold_the_same_documents_as_unpacked_ones(tmp_path):
    tokenizer = family_tokenizer(tmp_path / "tokenizer", "llama")
    source = sft(tmp_path / "sft", ROWS * 7)
    packed, rows, single = run(tmp_path, source, tokenizer, packing=True, max_length=256)
    documents = []
    for row in rows:
        assert len(row["input_ids"]) == len(row["labels"]) == sum(row["seq_lengths"]) <= 256
        start = 0
        for length in row["seq_lengths"]:
            documents.append((row["input_ids"][start : start + length], row["labels"][start : start + length]))
            start += length
    assert sorted(documents) == sorted((row["input_ids"], row["labels"]) for row in single)
    assert packed[0]["documents"] == 35
    assert packed[0]["tokens"] == packed[1]["tokens"] == sum(len(row["input_ids"]) for row in single)
    assert packed[0]["supervised_tokens"] == sum(label != -100 for row in rows for label in row["labels"])
    assert packed[0]["fill"] == pytest.approx(packed[0]["tokens"] / (len(rows) * 256), abs=1e-4)
    assert [row["row"] for row in single] == list(range(35))


def long_rows(tmp_path):
    return sft(tmp_path / "sft", [*ROWS, ("Long", "x", "word " * 300), ("Long prompt", "word " * 300, "y")])


def test_long_documents_are_dropped_and_counted(tmp_path):
    facts, _, rows = run(
        tmp_path, long_rows(tmp_path), family_tokenizer(tmp_path / "t", "smollm"), max_length=128, packing=False
    )
    assert [row["row"] for row in rows] == [0, 1, 2, 3, 4]
    assert (facts[1]["documents"], facts[1]["dropped_overlength"], facts[1]["cut"]) == (7, 2, 0)


def test_long_completions_are_cut_and_rows_without_any_completion_left_are_dropped(tmp_path):
    facts, _, rows = run(
        tmp_path, long_rows(tmp_path), family_tokenizer(tmp_path / "t", "smollm"), max_length=128, overlength="truncate"
    )
    assert [row["row"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert len(rows[5]["input_ids"]) == 128
    assert rows[5]["labels"][-1] != -100
    assert (facts[1]["cut"], facts[1]["dropped_prompt_only"], facts[1]["dropped_overlength"]) == (1, 1, 0)
    assert "had their completion truncated" in (tmp_path / "page.html").read_text()


def test_long_documents_are_refused_by_setting(tmp_path):
    with pytest.raises(UserError, match=r"row 5 of the train split has \d+ tokens, more than max_length = 128"):
        run(
            tmp_path,
            long_rows(tmp_path),
            family_tokenizer(tmp_path / "t", "smollm"),
            max_length=128,
            overlength="error",
        )
    assert not (tmp_path / "train").exists()


def test_a_token_without_an_embedding_is_refused_before_training(tmp_path):
    model = family_tokenizer(tmp_path / "t", "smollm")
    served = AutoTokenizer.from_pretrained(model)
    served.add_tokens(["<street>"], special_tokens=True)
    served.save_pretrained(model)
    source = sft(tmp_path / "sft", [*ROWS, ("Where", "x", "<street>")])
    size = len(served)
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": size - 1}))
    with pytest.raises(UserError, match=rf"row 5 of the train split contains the token '<street>' \(id {size - 1}\)"):
        run(tmp_path, source, model)
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": size}))
    assert run(tmp_path, source, model)[0][0]["documents"] == 6


def test_nothing_left_is_an_error(tmp_path):
    with pytest.raises(UserError, match="none of the 5 documents of the train split fits into max_length = 8"):
        run(tmp_path, sft(tmp_path / "sft"), family_tokenizer(tmp_path / "t", "smollm"), max_length=8)


def test_chat_without_a_chat_template_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"has no chat template\. Use an instruct model, or an instruction template"):
        run(tmp_path, sft(tmp_path / "sft", chat=True), family_tokenizer(tmp_path / "t", "llama2"))


def test_the_same_input_gives_the_same_bytes(tmp_path):
    tokenizer = family_tokenizer(tmp_path / "t", "smollm")
    source = sft(tmp_path / "sft", ROWS * 20)
    hashes = []
    for name in ("a", "b"):
        facts = step.tokenize(
            source, source, tmp_path / name / "train", tmp_path / name / "val", tmp_path / name / "page.html",
            step.Settings(max_length=128), model=str(tokenizer),
        )  # fmt: skip
        hashes.append([split["content_hash"] for split in facts])
    assert hashes[0] == hashes[1]


def test_markup_in_the_data_stays_text_on_the_page(tmp_path):
    run(
        tmp_path,
        sft(tmp_path / "sft", [("<script>alert(1)</script>", "", "<b>")]),
        family_tokenizer(tmp_path / "t", "smollm"),
    )
    page = (tmp_path / "page.html").read_text()
    assert "<script>" not in page
    assert "<b>" not in page.replace("<b>1</b>", "")


def test_the_card_writes_its_facts_and_its_settings_win_from_the_recipe(tmp_path):
    source, tokenizer = sft(tmp_path / "sft"), family_tokenizer(tmp_path / "t", "smollm")
    artifact = {
        "train_sft": dsl.Dataset(uri=str(source), metadata={"content_hash": "sha256:1"}),
        "val_sft": dsl.Dataset(uri=str(source)),
        "train_tokens": dsl.Dataset(uri=str(tmp_path / "train")),
        "val_tokens": dsl.Dataset(uri=str(tmp_path / "val")),
        "preview": dsl.HTML(uri=str(tmp_path / "page.html")),
    }
    card.python_func(
        **artifact, model_name=str(tokenizer), packing=True, settings={"packing": False, "max_length": 64.0}
    )
    metadata = artifact["train_tokens"].metadata
    assert (metadata["packing"], metadata["max_length"], metadata["documents"]) == (False, 64, 5)
    assert metadata["inputs"]["train_sft"] == "sha256:1"
    assert json.dumps(metadata)


def test_the_card_needs_no_torch(tmp_path):
    """In a step's process torch is never imported, which takes seconds; the data image has none."""
    source, tokenizer = sft(tmp_path / "sft"), family_tokenizer(tmp_path / "t", "smollm")
    script = (
        "import sys\nfrom llm_finetune.components.tokens.tokenize import step, encoder\nencoder.block_torch_import()\n"
        f"step.tokenize({str(source)!r}, {str(source)!r}, {str(tmp_path / 'a')!r}, {str(tmp_path / 'b')!r}, "
        f"{str(tmp_path / 'p')!r}, step.Settings(max_length=64), model={str(tokenizer)!r})\n"
        "assert sys.modules['torch'] is None\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={"_KFP_RUNTIME": "true", "PATH": "/usr/bin:/bin"})
