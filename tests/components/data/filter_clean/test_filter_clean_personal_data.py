"""Filter & Clean: personal data and secrets, counted and redacted."""

from collections import Counter

import pyarrow as pa
import pytest
from filter_clean_rows import clean, refused, row

from llm_finetune.components.shared.rows import pii

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
    redacted = pii.PersonalData().redact(text, counts)
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
    assert pii.PersonalData().redact(text, counts) == text and not counts


def test_phone_numbers_of_another_country():
    german, counts = pii.PersonalData("DE"), Counter()
    assert german.redact("Tel. 030 901820 und 030/901821, am 12.03.2024", counts).startswith("Tel. [PHONE] und [PHONE]")
    assert german.count(pa.array(["Tel. 030 901820"])) == {"phone": 1} and not pii.PersonalData().count(
        pa.array(["030 901820"])
    )


def test_a_country_that_does_not_exist_is_refused(tmp_path):
    assert "phone_region = 'XX'" in refused(tmp_path, [row()], phone_region="XX")


def test_quick_search_misses_nothing():
    texts = PERSONAL.split(",") + PERSONAL.split(" ")
    slow = Counter()
    for text in texts:
        pii.PersonalData().redact(text, slow)
    assert pii.PersonalData().count(pa.array(texts)) == slow
