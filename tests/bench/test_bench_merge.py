"""The merge's bench runs on a toy."""

import json

from bench import merge


def test_the_bench_prints_its_table_and_its_ratios(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["merge.py", "--tiny"])
    merge.main()
    *table, ratios = capsys.readouterr().out.splitlines()
    assert [line.rsplit(maxsplit=4)[0] for line in table[-3:]] == ["plain copy", "from files", "merge_and_unload"]
    assert json.loads(ratios).keys() == {"seconds_of_copy", "memory_of_peft", "ok"}
