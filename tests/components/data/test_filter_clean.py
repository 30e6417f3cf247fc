import json
import re
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kfp import dsl

from llm_finetune.components.data.filter_clean import component, contamination, step
from llm_finetune.components.data.filter_clean.worker import LONGEST_COUNTED
from llm_finetune.components.shared import pii, tables
from llm_finetune.components.shared.charts import histogram
from llm_finetune.components.shared.duplicates import NearDuplicates, SeenHashes, hashes, normalised
from llm_finetune.components.shared.errors import UserError


def row(instruction="Say something long enough", input="", output="something", **more) -> dict:
    return {"instruction": instruction, "input": input, "output": output, **more}


def write(path: Path, rows: list[dict] | pa.Table) -> Path:
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    with tables.ShardWriter(path, table.schema) as writer:
        for batch in table.to_batches():
            writer.write(batch)
    return path


def clean(tmp_path: Path, rows: list[dict] | pa.Table, **chosen) -> tuple[step.Facts, list[dict], list[dict]]:
    outputs = (tmp_path / "clean", tmp_path / "dropped", tmp_path / "page.html")
    facts = step.filter_clean(write(tmp_path / "raw", rows), *outputs, step.Settings.of(chosen))
    kept, dropped = ([row for batch in tables.batches(folder) for row in batch.to_pylist()] for folder in outputs[:2])
    assert (facts.rows, facts.rows_in) == (len(kept), len(kept) + len(dropped))
    assert facts.dropped == {r: n for r, n in Counter(r["reason"] for r in dropped).items()}
    return facts, kept, dropped


def refused(tmp_path: Path, rows: list[dict], **chosen) -> str:
    with pytest.raises(UserError) as caught:
        clean(tmp_path, rows, **chosen)
    assert not (tmp_path / "clean").exists() and not (tmp_path / "dropped").exists()
    return str(caught.value)


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
    assert "Made text" in (tmp_path / "page.html").read_text()


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
    with pytest.raises(UserError, match="holds bytes"):
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
    assert "all 3 rows were filtered away: 2 missing output, 1 too short" in message
    assert "the dataset has no rows" in refused(tmp_path, pa.Table.from_pylist([row()]).slice(1))


def test_a_reason_column_of_the_data_is_kept(tmp_path):
    _, kept, dropped = clean(tmp_path, [row(reason="mine"), row(output="", reason="theirs")])
    assert kept[0]["reason"] == "mine"
    assert (dropped[0]["source_reason"], dropped[0]["reason"]) == ("theirs", "missing_output")


def test_near_duplicates(tmp_path):
    words = [f"word{i}" for i in range(200)]
    rng = np.random.default_rng(0)
    originals = [" ".join(rng.choice(words, 40)) for _ in range(100)]
    copies = [text + " and one more" for text in originals[:30]]
    rows = [row("The same task in every row", text, "done") for text in originals + copies]
    exact, _, _ = clean(tmp_path, rows)
    assert exact.rows == 130
    facts, _, dropped = clean(tmp_path, rows, dedup="near")
    assert facts.dropped == {"near_duplicate": 30}
    assert [r["input"] for r in dropped] == copies
    assert clean(tmp_path, rows, dedup="near", near_threshold=1.0)[0].rows == 130


def planted_pairs(count: int) -> tuple[list[str], dict[tuple[int, int], float]]:
    """Returns texts, the second half variants of the first, and how alike each pair truly is."""
    rng = np.random.default_rng(1)
    vocabulary = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(3, 9))) for _ in range(2000)]
    originals = [list(rng.choice(vocabulary, 60)) for _ in range(count)]
    variants = [list(words) for words in originals]
    for words in variants:
        for place in rng.choice(60, rng.integers(0, 12), replace=False):
            words[place] = rng.choice(vocabulary)
    texts = [" ".join(words) for words in originals + variants]
    shingles = [{text[i : i + 5] for i in range(len(text) - 4)} for text in texts]
    return texts, {
        (i, i + count): len(shingles[i] & shingles[i + count]) / len(shingles[i] | shingles[i + count])
        for i in range(count)
    }


def test_near_duplicates_are_found_and_nothing_else():
    texts, similarity = planted_pairs(150)
    wanted = {pair for pair, true in similarity.items() if true >= 0.8}
    assert 40 < len(wanted) < 110  # the set has pairs on both sides of the threshold
    near, found = NearDuplicates(0.8), {}
    for row, sketch in enumerate(near.signatures(normalised(pa.array(texts)))):
        found |= {(other, row): alike for other, alike in near.similar(sketch, 0.8)}
        near.insert(row, sketch)
    recall, precision = len(wanted & set(found)) / len(wanted), len(wanted & set(found)) / len(found)
    print(f"recall {recall:.3f}, precision {precision:.3f} at Jaccard 0.8")
    assert recall >= 0.95 and precision >= 0.98
    assert all(alike == pytest.approx(similarity[pair]) for pair, alike in found.items())


def test_near_pairs_are_shown(tmp_path):
    text = "a text that is long enough to be compared with others of its kind"
    clean(tmp_path, [row(text, "", "yes"), row(text + "s", "", "yes")], dedup="near")
    page = (tmp_path / "page.html").read_text()
    assert "what stays in its stead" in page and f"{text}s → yes" in page


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


def test_languages(tmp_path):
    rows = [
        row("What is the capital of this country?", "", "It is a large city in the north."),
        row("Was ist die Hauptstadt dieses Landes?", "", "Es ist eine große Stadt im Norden."),
        row("¿Cuál es la capital de este país?", "", "Es una gran ciudad en el norte."),
        row("12 + 34 = 46, 5 + 6 = 11", "", "46, 11"),
    ]
    facts, kept, _ = clean(tmp_path, rows, languages="en, DE")
    assert kept == [rows[0], rows[1], rows[3]] and facts.dropped == {"language": 1}
    assert "'xx' is no language" in refused(tmp_path / "none", rows, languages="en,xx")


QUESTION = "A train leaves the station at nine and travels at sixty miles per hour; when does it arrive in the city?"


def test_rows_of_evaluation_sets_are_dropped(tmp_path):
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(r) + "\n" for r in (
        {"question": QUESTION, "choices": ["at ten", "one two three four five six seven eight nine ten eleven twelve thirteen"]},
        {"question": "Too short to tell", "choices": ["yes"]},
    )))  # fmt: skip
    rows = [
        row("Solve this: " + QUESTION.upper().replace(" ", " , "), "", "noon"),
        row("A train leaves the station at nine and travels at sixty miles", "", "noon"),
        row("Count:", "", "One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen!"),
        row("Something else altogether", "", "yes"),
    ]
    facts, kept, _ = clean(tmp_path, rows, eval_sets=[str(held_out)])
    assert kept == [rows[1], rows[3]] and facts.dropped == {"contaminated": 2}
    named = {"source_type": "jsonl_path", "jsonl_path": str(held_out)}
    assert clean(tmp_path, rows, eval_sets=[named], eval_words=8)[0].rows == 1
    message = refused(tmp_path / "none", rows, eval_sets=[str(held_out)], eval_words=50)
    assert "has 50 words" in message and "lower eval_words" in message
    assert "nowhere.jsonl" in refused(tmp_path / "none", rows, eval_sets=["./nowhere.jsonl"])
    with pytest.raises(UserError, match="jsonl_pathh"):
        step.Settings.of({"eval_sets": [{"jsonl_pathh": "x"}]})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("abc .,Ä", max_size=20), max_size=8), st.integers(2, 4))
def test_runs_of_words_are_those_of_python(texts, length):
    _, row = contamination.runs_of_words(pa.array(texts, pa.string()), length)
    words = [re.findall(r"\w+", unicodedata.normalize("NFKC", text)) for text in texts]
    assert np.bincount(row, minlength=len(texts)).tolist() == [max(len(w) - length + 1, 0) for w in words]


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
    assert "row 1 has nothing in 'instruction', 'input', 'output' but has 'messages'" in message
    assert clean(tmp_path, rows[:1])[0].rows == 1
    both = [{"messages": said, "prompt": "a", "completion": "b"}]
    assert "columns of two layouts, 'messages' and 'prompt + completion'" in refused(tmp_path / "b", both)


PERSONAL = (
    "Write to jane.doe+x@mail.example.co.uk, call (312) 555-0142 or +49 30 901820; card 4111 1111 1111 1111, "
    "IBAN DE89 3704 0044 0532 0130 00 END, hosts 192.168.0.17 and 2001:db8::8a2e:370:7334; "
    f"tokens ghp_{'a1B2' * 9} and hf_{'abcdEFGH' * 4}zz."
)
REDACTED = (
    "Write to [EMAIL], call [PHONE] or [PHONE]; card [CARD], IBAN [IBAN] END, hosts [IP] and [IP]; "
    "tokens [SECRET] and [SECRET]."
)
FOUND = {"secret": 2, "email": 1, "iban": 1, "card": 1, "ip": 2, "phone": 2}
# One of each service, put together here so that no scanner takes this file for a leak.
SECRETS = [
    "AKIA" + "IOSFODNN7EXAMPLE",
    "aws_secret_key = '" + "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY" + "'",
    "AccountKey=" + "a" * 86 + "==",
    "https://user:" + "hunter2@host.example/x",
    "M" + "TAw" * 8 + ".Gabcde." + "x" * 27,
    "gho_" + "a1B2" * 9,
    "glpat-" + "a1B2" * 5,
    "eyJ" + "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dozjgNryP4J3jVmNHl0w5N",
    "0123456789abcdef" * 2 + "-us12",
    "//registry.example/:_authToken=" + "npm_" + "a" * 36,
    "sk-" + "a" * 20 + "T3BlbkFJ" + "b" * 20,
    "pypi-AgEIcHlwaS5vcmc" + "a" * 70,
    "SG." + "a" * 22 + "." + "b" * 43,
    "xoxb-" + "123-456-abc",
    "https://hooks.slack.com/services/" + "T0AAA/B0BBB/ccc",
    "sq0csp-" + "a" * 43,
    "sk_live_" + "a1B2" * 6,
    "12345678:" + "a" * 35,
    "AC" + "a1" * 16,
    "hf_" + "aB" * 17,
    "AIza" + "a" * 35,
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE+/=\nabc\n-----END RSA PRIVATE KEY-----",
]


@pytest.mark.parametrize("secret", SECRETS, ids=lambda secret: secret[:8])
def test_secrets_of_every_service_are_found_whole(secret):
    text, counts = f"see {secret} .", Counter()
    redacted = pii.PersonalData().redacted(text, counts)
    assert counts == {"secret": 1} and redacted in (
        "see [SECRET] .",
        "see https[SECRET]host.example/x .",
        "see [SECRET]' .",
        "see [SECRET]",
    )
    assert pii.PersonalData().count(pa.array([text])) == {"secret": 1}


HARMLESS = [
    "Chicago, IL 60657-1234, 1817 W. Oakdale",
    "4111 1111 1111 1112",
    "DE89 3704 0044 0532 0130 01",
    "version 1.2.3, 300.1.1.1 and 1.2.3.4.5",
    "std::vector at 12:30:45 on 2024-01-02",
    "user@host and a @ b",
    "3.14159265358979 and 123456789012",
    "400 401 402 403 404 405 406 407 408 409",
    "+1 999 999 9999 and (123) 456-7890 are in no numbering plan",
    "999.10.10.10 and 1:2:3:4:5:6:7:8:9",
    "desk-top, task-list, risk-free",
    "password = os.environ['PASSWORD']",
]


def test_personal_data_is_counted_and_redacted(tmp_path):
    rows = [row(PERSONAL, note=PERSONAL, nested=[{"deep": PERSONAL}]), row(output="", note="a@b.com")]
    facts, kept, _ = clean(tmp_path, rows)
    assert facts.personal_data == FOUND and kept[0]["instruction"] == PERSONAL
    facts, kept, dropped = clean(tmp_path, rows, pii="redact")
    assert facts.personal_data == FOUND
    assert kept == [row(REDACTED, note=REDACTED, nested=[{"deep": REDACTED}])]
    assert dropped[0]["note"] == "[EMAIL]"
    assert "555-0142" not in (tmp_path / "page.html").read_text()
    assert clean(tmp_path, rows, pii="off")[0].personal_data == {}


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_not_personal_data(text):
    counts = Counter()
    assert pii.PersonalData().redacted(text, counts) == text and not counts


def test_phone_numbers_of_another_country():
    german, counts = pii.PersonalData("DE"), Counter()
    assert german.redacted("Tel. 030 901820 und 030/901821, am 12.03.2024", counts).startswith(
        "Tel. [PHONE] und [PHONE]"
    )
    assert german.count(pa.array(["Tel. 030 901820"])) == {"phone": 1} and not pii.PersonalData().count(
        pa.array(["030 901820"])
    )


def test_a_country_that_does_not_exist_is_refused(tmp_path):
    assert "phone_region = 'XX'" in refused(tmp_path, [row()], phone_region="XX")


def test_quick_search_misses_nothing():
    texts = PERSONAL.split(",") + PERSONAL.split(" ")
    slow = Counter()
    for text in texts:
        pii.PersonalData().redacted(text, slow)
    assert pii.PersonalData().count(pa.array(texts)) == slow


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


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=20))
def test_normalisation_is_that_of_python(texts):
    got = normalised(pa.array(texts, pa.string())).to_pylist()
    for text, value in zip(texts, got, strict=True):
        assert re.sub("[\t\n\x0b\x0c\r ]+", " ", value) == value
        if text.isascii():
            assert value == re.sub("[\t\n\x0b\x0c\r ]+", " ", text.lower())
        else:
            folded = unicodedata.normalize("NFKC", text)
            assert value == normalised(pa.array([folded])).to_pylist()[0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdefghij"), max_size=8), max_size=12))
def test_seen_hashes_is_a_set(batches):
    seen, known = SeenHashes(), set()
    for batch in batches:
        again = seen.add(hashes(pa.array(batch, pa.string())))
        for text, was in zip(batch, again, strict=True):
            assert was == (text in known)
            known.add(text)


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
    lengths = np.zeros(LONGEST_COUNTED + 1, np.int64)
    assert histogram(lengths, "characters").bars == []
    lengths[[17, 18, 400]] = [5, 6, 7]
    drawn = histogram(lengths, "characters")
    assert (drawn.least, drawn.most, drawn.middle, drawn.highest, drawn.last, drawn.rows) == (17, 400, 18, 11, 0, 18)
    assert drawn.bars[0]["label"] == "17 to 26 characters: 11 rows" and drawn.bars[0]["height"] == 100
    lengths[[17, LONGEST_COUNTED]] = [5000, 1]
    drawn = histogram(lengths, "characters")
    assert drawn.most == LONGEST_COUNTED and drawn.bars[-1]["label"] == "18 to 65,536 characters: 14 rows"
    assert drawn.last == 18


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
