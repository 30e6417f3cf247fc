"""What of a URL may be shown."""

import pytest

from llm_finetune.components.data.load_dataset.settings import Member
from llm_finetune.components.shared.urls import without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:p%40ss@x.org:8443/a/b.jsonl?X-Amz-Signature=ff#part", "https://x.org:8443/a/b.jsonl"),
        ("http://x.org/a@b.jsonl", "http://x.org/a@b.jsonl"),
        ("http://x.org?token=t,\nhttps://y.org/b?token=u", "http://x.org,\nhttps://y.org/b"),
        ("s3://key:secret@bucket/part-?.jsonl", "s3://bucket/part-?.jsonl"),
        ("simplecache::https://x.org/a.jsonl?sig=ff", "simplecache::https://x.org/a.jsonl"),
        ("hf://datasets/org/rows@main/a.jsonl", "hf://datasets/org/rows@main/a.jsonl"),
        ("/data/who?#me@home.jsonl", "/data/who?#me@home.jsonl"),
    ],
)
def test_users_and_signatures_are_left_out(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_a_source_of_a_mixture_is_not_called_by_its_password() -> None:
    assert Member(path="https://me:secret@x.org/a.jsonl?sig=ff").label == "https://x.org/a.jsonl"
