import pytest
from markdown_it import MarkdownIt

from llm_finetune.components.shared.markdown import Markdown, code, table


def rendered(lines):
    return MarkdownIt("commonmark").enable("table").render("\n".join(lines))


@pytest.mark.parametrize("text", ["a|b", "*a* _b_ `c`", "<b>x</b>", r"a\|b", "[a](b)", "line one\nline two"])
def test_a_plain_value_is_shown_as_it_is_in_one_cell(text):
    html = rendered(table(("name", "value"), [(text, 1)]))
    shown = " ".join(text.split()).replace("<", "&lt;").replace(">", "&gt;")
    assert f"<td>{shown}</td>\n<td>1</td>" in html


def test_markdown_keeps_its_markup_and_its_column():
    html = rendered(table(("rule", ""), [(code("a | b"), Markdown("**no** | *x*\nand more"))]))
    assert "<td><code>a | b</code></td>\n<td><strong>no</strong> | <em>x</em> and more</td>" in html


@pytest.mark.parametrize("text", ["a", "a`b", "``a`", "`a`"])
def test_code_is_shown_with_its_backticks(text):
    assert rendered([code(text)]) == f"<p><code>{text}</code></p>\n"


def test_numbers_are_shown_as_people_read_them():
    assert table(("", ""), [(True, 125248), (0.123456, "x")]) == [
        "|  |  |", "|---|---|", "| yes | 125,248 |", "| 0.1235 | x |"
    ]  # fmt: skip
