"""Files that nobody should have: each ends in a count and its rows, or in one clear error, with little memory."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_finetune.components.data.load_dataset import step
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError

MOST_BYTES = 1_200 << 20
GOOD = b'{"a": "x", "b": 1}\n'
# The head of a zip archive whose one file is encrypted (bit 0 of the flags).
ENCRYPTED_ZIP = b"PK\x03\x04\x14\x00\x01\x00\x00\x00" + bytes(16) + b"\x0a\x00\x00\x00data.jsonl" + bytes(64)


def sparse(head: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(head)
        with path.open("r+b") as file:
            file.truncate(50 << 30)

    return write


def content(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None


def wide(rows: int) -> bytes:
    return b"".join(json.dumps({f"column {i}": row for i in range(10_000)}).encode() + b"\n" for row in range(rows))


# What must come out: a number of rows, or parts of the message.
NASTY: dict[str, tuple[Callable[[Path], None], int | list[str]]] = {
    "invalid-utf8.jsonl": (content(GOOD * 9 + b'{"a": "\xff\xfe", "b": 1}\n'), ["line 10", "not UTF-8"]),
    "overlong.jsonl": (content(b'{"a": "\xc0\xaf"}\n'), ["line 1", "not UTF-8"]),
    "bom.jsonl": (content(b"\xef\xbb\xbf" + GOOD * 3), 3),
    "bom-inside.jsonl": (content(GOOD + b"\xef\xbb\xbf" + GOOD), ["line 2", "not JSON"]),
    "nul.jsonl": (content(GOOD + b'{"a": "x\x00y", "b": 1}\n'), ["line 2", "not JSON"]),
    "nul-escaped.jsonl": (content(rb'{"a": "x\u0000y"}' + b"\n"), 1),
    "only-nul.jsonl": (content(bytes(5000)), ["nul.jsonl"]),
    "long-lines.jsonl": (content(b"".join(b'{"a": "%s"}\n' % (b"x" * (10 << 20)) for _ in range(6))), 6),
    "deep.jsonl": (content(b'{"a": ' + b"[" * 500_000 + b"]" * 500_000 + b"}\n"), ["line 1", "nested too deeply"]),
    "deep-objects.jsonl": (content(GOOD + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"\n"), ["line 2", "deeply"]),
    "blank-then-deep.jsonl": (content(b"\n" * 99_999 + b'{"a": ' + b"[" * 9000 + b"]" * 9000 + b"}"), ["nested too deeply"]),
    "nan.jsonl": (content(b'{"a": NaN}\n{"a": 1}\n'), 2),  # as Python writes it; counts as null where text is wanted
    "huge-number.jsonl": (content(b'{"a": 1}\n{"a": 1' + b"0" * 30 + b"}\n"), 2),
    "number-as-text.jsonl": (content(b'{"a": 1}\n{"a": "1"}\n'), ["line 2", "'a' is text here, but a number in earlier rows"]),
    "types-change.jsonl": (content(GOOD + b'{"a": ["x"], "b": 1}\n'), ["line 2", "a list here, but text in earlier rows"]),
    "types-change-late.jsonl": (content(GOOD * 200_000 + b'{"a": {"x": 1}, "b": 1}\n'), ["line 200001", "an object"]),
    "fraction-late.jsonl": (content(GOOD * 200_000 + b'{"a": "x", "b": 1.5}\n'), 200_001),
    "twice.jsonl": (content(b'{"a": 1, "b": 2, "a": 3}\n'), ["line 1", "'a' occurs twice"]),
    "twice-later.jsonl": (content(GOOD + b'{"a": "1", "b": 2, "a": "3"}\n'), ["line 2", "'a' occurs twice"]),
    "wide.jsonl": (content(wide(8)), 8),
    "wide.csv": (content((",".join(f"c{i}" for i in range(10_000)) + "\n" + ",".join("1" * 10_000)).encode()), 1),
    "right-to-left.jsonl": (content(json.dumps({"a": "مرحبا ‮ שלום", "b": 1}, ensure_ascii=False).encode()), 1),
    "emoji.jsonl": (content(json.dumps({"👩‍👩‍👧‍👦 ключ": "🏳️‍🌈 e\u0301 \U000e0041"}, ensure_ascii=False).encode()), 1),
    "surrogate.jsonl": (content(GOOD + rb'{"a": "\udc00", "b": 1}'), ["line 2", "surrogate"]),
    "encrypted.zip": (content(ENCRYPTED_ZIP), ["zip archive"]),
    "one-line.jsonl": (sparse(b'{"a": "'), ["line 1 is longer than 64 MiB"]),
    "one-line.json": (sparse(b'[{"a": "'), ["element 1", "not JSON"]),
    "one-line.csv": (sparse(b"a,b\n1,"), ["one-line.csv"]),
    "one-line.parquet": (sparse(b"PAR1"), ["one-line.parquet is damaged"]),
    "zeros.txt": (sparse(b""), ["zeros.txt"]),
    "bomb.jsonl.gz": (content(gzip.compress(b'{"a": "' + bytes(200 << 20))), ["line 1 is longer than 64 MiB"]),
    "bomb.jsonl.zst": (content(zstandard.compress(b" " * (300 << 20))), ["bomb.jsonl.zst"]),
    "ragged.csv": (content(b"a,b\n1,2\n3\n"), ["ragged.csv", "2 columns"]),
    "quote-open.csv": (content(b'a,b\n1,2\n3,"4\n' + b"5,6\n" * 9), ["quote in the last row"]),
}  # fmt: skip

SCRIPT = """
import json, sys
from pathlib import Path
from llm_finetune.components.data.load_dataset import step
from llm_finetune.components.shared.errors import UserError

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:")) * 1024

for name in sys.argv[2:]:
    Path("/proc/self/clear_refs").write_text("5")
    folder = Path(sys.argv[1])
    chosen = step.Settings(source_type="jsonl_path", jsonl_path=str(folder / name), max_samples=0)
    try:
        outcome = step.load_dataset(folder / "raw", folder / "raw.html", chosen).rows
    except UserError as error:
        outcome = str(error)
    print(json.dumps([name, outcome, peak()]), flush=True)
    left = sorted(path.name for path in folder.iterdir() if path.name not in sys.argv[2:])
    assert left == (["raw", "raw.html"] if isinstance(outcome, int) else []), (name, left)
    if isinstance(outcome, int):
        assert (folder / "raw.html").stat().st_size < 8 << 20, name
        (folder / "raw.html").unlink()
        for file in (folder / "raw").iterdir():
            file.unlink()
        (folder / "raw").rmdir()
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nasty")
    for name, (write, _) in NASTY.items():
        write(folder / name)
    command = [sys.executable, "-c", SCRIPT, str(folder), *NASTY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    for name in NASTY:
        (folder / name).unlink()
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: (outcome, peak) for name, outcome, peak in found}, done


def test_nasty_files_crash_nothing_and_leave_nothing(outcomes):
    found, done = outcomes
    assert done.returncode == 0, (list(found)[-1:], done.stderr[-2000:])
    assert list(found) == list(NASTY)


@pytest.mark.parametrize("name", NASTY)
def test_a_nasty_file_ends_in_rows_or_one_message(outcomes, name):
    outcome, peak = outcomes[0][name]
    expected = NASTY[name][1]
    if isinstance(expected, int):
        assert outcome == expected
    else:
        assert isinstance(outcome, str) and name.split(".")[0] in outcome and len(outcome) < 800
        for part in expected:
            assert part in outcome
    assert peak < MOST_BYTES


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.sampled_from([1, 1.5, "1", None, True, [1], ["x"], {"x": 1}, {"y": "z"}, [], {}]), min_size=1, max_size=8
    ),
    twice=st.booleans(),
)
def test_values_that_change_their_type_are_widened_or_named(tmp_path, rows, twice):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"a": value}) + "\n" for value in rows * (1 + twice)))
    chosen = step.Settings(source_type="jsonl_path", jsonl_path=str(path), max_samples=0)
    try:
        facts = step.load_dataset(tmp_path / "raw", tmp_path / "raw.html", chosen)
    except UserError as error:
        assert "data.jsonl" in str(error)
        return
    assert facts.rows == len(rows) * (1 + twice)
    loaded = [row["a"] for batch in tables.batches(tmp_path / "raw") for row in batch.to_pylist()]
    assert [value is None for value in loaded] == [value is None for value in rows * (1 + twice)]


SAME = """
import os, sys
os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: int(sys.argv[1])]))
from pathlib import Path
from llm_finetune.components.data.load_dataset import step as load
from llm_finetune.components.data.filter_clean import step as clean
from llm_finetune.components.data.train_val_split import step as split
from llm_finetune.components.shared.files import content_hash
folder, source = Path(sys.argv[2]), sys.argv[3]
load.load_dataset(folder / "raw", folder / "p", load.Settings(source_type="jsonl_path", jsonl_path=source, max_samples=900, seed=1))
clean.filter_clean(folder / "raw", folder / "clean", folder / "dropped", folder / "p", clean.Settings())
split.train_val_split(folder / "clean", folder / "train", folder / "val", folder / "p", split.Settings())
print(*(content_hash(folder / name) for name in ("raw", "clean", "dropped", "train", "val")))
"""


def test_the_same_bytes_on_any_number_of_cores(tmp_path):
    source = tmp_path / "data.jsonl.gz"
    rows = [
        {"instruction": f"Say {i % 950}", "input": "of " * (i % 7), "output": "word " * (i % 90)} for i in range(1000)
    ]
    source.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    hashes = set()
    for cores, threads in ((1, "1"), (2, "7")):
        folder = tmp_path / f"{cores}-{threads}"
        folder.mkdir()
        environment = {"OMP_NUM_THREADS": threads, "PYTHONHASHSEED": threads}  # pyarrow takes its pool's size from OMP
        command = [sys.executable, "-c", SAME, str(cores), str(folder), str(source)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        hashes.add(done.stdout)
    assert len(hashes) == 1
