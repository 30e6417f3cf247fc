import pyarrow as pa
import pytest
from tiny import tiny_tokenizer
from transformers import AutoTokenizer

from llm_finetune.components.shared import tables
from llm_finetune.components.shared.pages import write_page
from llm_finetune.components.tokens.tokenize import preview, step


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def test_each_token_shows_what_it_adds(tokenizer):
    text = "<|im_start|>user\nName a colour.\t<|im_end|>"
    ids = tokenizer(text)["input_ids"]
    texts = preview.token_texts(tokenizer, ids)
    assert len(texts) == len(ids) and "".join(texts) == text.replace("\n", "⏎\n").replace("\t", "⇥")
    assert texts[0] == "<|im_start|>" and texts[-1] == "<|im_end|>"


def test_a_character_of_several_tokens_shows_once(tokenizer):
    ids = tokenizer("a€😀b")["input_ids"]  # three and four bytes, a token each
    assert preview.token_texts(tokenizer, ids) == ["a", "·", "·", "€", "·", "·", "·", "😀", "b"]
    assert preview.token_texts(tokenizer, ids[:3])[-1] == "�"


def test_documents_of_a_packed_row_are_told_apart(tokenizer, tmp_path):
    first, second = tokenizer("one two")["input_ids"], tokenizer("<|im_start|><script>")["input_ids"]
    row = {
        "input_ids": first + second,
        "labels": [-100] * (len(first) - 2) + first[-2:] + [-100] * len(second),
        "seq_lengths": [len(first), len(second)],
    }
    table = pa.Table.from_pylist(
        [row, {**row, "input_ids": first * 200, "labels": first * 200, "seq_lengths": [len(first)] * 200}]
    )
    with tables.ShardWriter(tmp_path / "tokens", table.schema) as writer:
        writer.write(table)
    shown, long = preview.preview_rows(tokenizer, tmp_path / "tokens")
    assert [(document.length, document.trained) for document in shown.documents] == [(len(first), 2), (len(second), 0)]
    assert [token.trained for token in shown.documents[0].tokens] == [False] * (len(first) - 2) + [True] * 2
    assert shown.documents[1].tokens[0] == preview.PreviewToken("<|im_start|>", second[0], False, True)
    assert shown.tokens_omitted == 0 and long.tokens_omitted == 200 * len(first) - preview.TOKENS_SHOWN
    assert sum(len(document.tokens) for document in long.documents) == preview.TOKENS_SHOWN
    write_page(
        tmp_path / "page.html", step.__file__.replace("step.py", "preview.html.jinja"), title="x", model="m",
        settings=step.Settings(), facts={"train": step.SplitFacts()}, samples={"train": [shown]},
    )  # fmt: skip
    page = (tmp_path / "page.html").read_text()
    assert page.count('class="boundary"') == 2 and f"document 1: {len(first)} tokens, 2 trained" in page
    assert page.count('class="trained "') == 2 and "<script>" not in page
