"""Load Dataset: several files and patterns, read as one dataset."""

import gzip
import hashlib
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from load_dataset_sources import lines, load, refused

from llm_finetune.components.data.sources import locations, origins


@pytest.fixture
def folder(tmp_path):
    data = tmp_path / "data"
    (data / "deep").mkdir(parents=True)
    (data / "b.jsonl").write_bytes(lines(3, 3))
    (data / "a.jsonl.gz").write_bytes(gzip.compress(lines(0, 3)))
    (data / "deep" / "c.jsonl.zst").write_bytes(zstandard.compress(lines(6, 2)))
    (data / "_SUCCESS").write_bytes(b"")
    (data / ".hidden.jsonl").write_bytes(b"oops")
    return data


def test_files_and_patterns_come_in_order(tmp_path, folder):
    def numbers(path: str) -> list[int]:
        return [int(row["text"].split()[1]) for row in load(tmp_path, path)[1]]

    assert numbers(f"{folder}/*") == list(range(6))
    assert numbers(f"{folder}/**") == list(range(8))
    assert numbers(f"{folder}/b.jsonl, {folder}/a.jsonl.gz") == [3, 4, 5, 0, 1, 2]
    assert numbers(f"{folder}/[ab].jsonl*\nfile://{folder}/deep/c.jsonl.zst") == list(range(8))
    odd = folder / "x, [1]*.jsonl"
    odd.write_bytes(lines(9, 1))
    assert numbers(str(odd)) == [9]
    facts, _ = load(tmp_path, f"{folder}/[ab]*")
    assert facts.source == f"{folder}/a.jsonl.gz and 1 more" and facts.revision == ""
    page = (tmp_path / "raw.html").read_text()
    assert re.search(r"b\.jsonl</td>\s*<td[^>]*>3<", page)


def test_what_files_together_do_wrong(tmp_path, folder):
    assert "did you mean 'b.jsonl'" in refused(tmp_path, f"{folder}/bb.json*")
    assert "matches no file: folder" in refused(tmp_path, f"{folder}/none/*.jsonl")
    assert "named twice" in refused(tmp_path, f"{folder}/*, {folder}/b.jsonl")
    assert "needs jsonl_path" in refused(tmp_path, " , ")
    (folder / "z.jsonl").write_bytes(lines(0, 1, more=1))
    message = refused(tmp_path, f"{folder}/*")
    assert f"{folder}/z.jsonl, line 1 has a column 'more'" in message and "(columns: text)" in message
    (folder / "z.jsonl").write_bytes(b'{"text": 5}\n')
    assert "z.jsonl, line 1: column 'text' is a number here, but text in earlier rows" in refused(
        tmp_path, f"{folder}/*"
    )
    (folder / "z.jsonl").write_bytes(b'{"text": "a"}\n{"text": \n')
    assert f"{folder}/z.jsonl, line 2 is not JSON" in refused(tmp_path, f"{folder}/*")


def test_types_widen_and_formats_mix_across_files(tmp_path):
    (tmp_path / "1.jsonl").write_text('{"a": 1, "b": null, "c": "x"}\n')
    (tmp_path / "2.jsonl").write_text('{"c": "y", "a": 1.5, "b": ["z"]}\n')
    table = pa.table({"a": pa.array([7], pa.int32()), "b": [["w"]], "c": pa.array(["v"], pa.large_string())})
    pq.write_table(table, tmp_path / "3.parquet")
    _, rows = load(tmp_path, f"{tmp_path}/[123].*")
    assert rows == [
        {"a": "1", "b": None, "c": "x"},
        {"a": "1.5", "b": ["z"], "c": "y"},
        {"a": "7", "b": ["w"], "c": "v"},
    ]


def test_a_checksum_for_each_file(tmp_path, folder):
    sums = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("a.jsonl.gz", "b.jsonl")]
    facts, rows = load(tmp_path, f"{folder}/[ab]*", sha256=", ".join(sums))
    assert len(rows) == 6 and facts.revision.startswith("sha256:")
    assert f"{folder}/a.jsonl.gz has sha256 {sums[0]}" in refused(
        tmp_path, f"{folder}/[ab]*", sha256=",".join(sums[::-1])
    )
    assert "1 checksums for 2 files" in refused(tmp_path, f"{folder}/[ab]*", sha256=sums[0])


def test_urls_that_differ_in_the_query_alone_have_counts_of_their_own():
    files = origins.Files("https://host/x?part=1, https://host/x?part=2", "")
    assert files._names == ["https://host/x", "https://host/x (2)"]


def test_locations_of_any_text_are_files_or_refused():
    for text in ("https://host/a*b?c=[1]", "hf://datasets/org/name/x.jsonl", "a,b", "/a\n/b"):
        assert all(source.location for source in locations.find_files(text))
