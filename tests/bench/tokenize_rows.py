"""Rows per second of the Tokenize card against the bare `tokenizers` batch encoder, and the card's memory by rows.

    python tests/bench/tokenize_rows.py --tokenizer FOLDER [--rows 10000,100000,1000000] [--rounds 3]
    python tests/bench/tokenize_rows.py --tiny          # a toy tokenizer, to see that the code runs

Both sides encode the same rows on the same cores, in turns, each time in a process of its own. The bare side has all
texts in memory and throws its encodings away; the card reads Parquet, encodes, labels, packs and writes Parquet. Rows
are as long as Alpaca's (log-normal), drawn from the words of this repository's pages. The goals: at the last number of rows
the card reaches 80 % of the bare rate, and its peak memory has grown by less than a tenth since the first.
"""

import argparse
import json
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

ROOT = Path(__file__).parents[2]
GOAL_RATE, GOAL_GROWTH = 0.8, 1.1
BATCH = 2048


def texts(rows: int) -> Iterator[tuple[str, str]]:
    """Draws prompts and completions, about 40 and 60 % of each row's words."""
    generator = random.Random(0)
    words = " ".join(path.read_text() for path in (ROOT / "README.md", ROOT / "docs/benchmarks.md")).split()
    for _ in range(rows):
        count = min(max(round(generator.lognormvariate(4.0, 0.75)), 12), 700)
        chosen = generator.choices(words, k=count)
        yield " ".join(chosen[: count * 2 // 5]) + "\n", " ".join(chosen[count * 2 // 5 :])


def write_rows(folder: Path, rows: int) -> None:
    """Writes rows as Format for SFT does."""
    from llm_finetune.components.shared import tables

    schema = pa.schema([("prompt", pa.string()), ("completion", pa.string())])
    with tables.ShardWriter(folder, schema) as writer:
        batch: list[tuple[str, str]] = []
        for position, row in enumerate(texts(rows), 1):
            batch.append(row)
            if len(batch) == tables.ROWS_PER_GROUP or position == rows:
                columns = [pa.array(column) for column in zip(*batch, strict=True)]
                writer.write(pa.RecordBatch.from_arrays(columns, schema=schema))
                batch = []
        (writer.folder / "chat_template.jinja").write_text("{{ messages[0].content }}")


def card(source: Path, tokenizer: Path, out: Path) -> dict[str, Any]:
    """Tokenises a folder with the card's step."""
    os.environ["_KFP_RUNTIME"] = "true"  # as in a pipeline, where the card keeps torch out
    from llm_finetune.components.tokens.tokenize import encoder, step

    encoder.block_torch_import()
    import transformers  # noqa: F401

    few = source.parent / "few"
    begun, used = time.perf_counter(), time.process_time()
    train, _ = step.tokenize(
        source, few, out / "train", out / "val", out / "page.html", step.Settings(), model=str(tokenizer)
    )
    return {"tokens": train["tokens"], **_cost(begun, used)}


def bare(source: Path, tokenizer: Path) -> dict[str, Any]:
    """Encodes the same texts with nothing around."""
    from tokenizers import Tokenizer

    from llm_finetune.components.shared import tables

    rows = [row for batch in tables.batches(source) for row in batch.to_pylist()]
    whole = [row["prompt"] + row["completion"] for row in rows]
    encoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    begun, used, tokens = time.perf_counter(), time.process_time(), 0
    for first in range(0, len(whole), BATCH):
        encodings = encoder.encode_batch_fast(whole[first : first + BATCH], add_special_tokens=False)
        tokens += sum(len(row) for row in encodings)
    return {"tokens": tokens, **_cost(begun, used)}


def _cost(begun: float, used: float) -> dict[str, float]:
    return {
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time() - used,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measured(function: Any, *arguments: Any) -> dict[str, Any]:
    """Runs one side in a fresh process."""
    from train_gpu import in_process

    found: dict[str, Any] = in_process(function, *arguments)
    if "error" in found:
        raise SystemExit(found["error"])
    return found


def main() -> int:
    """Runs both sides, prints the table and the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json and tokenizer_config.json")
    parser.add_argument("--rows", default="10000,100000", help="numbers of rows, separated by commas")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; above 100,000 rows always one")
    parser.add_argument("--tiny", action="store_true")
    chosen = parser.parse_args()
    sizes = [200] if chosen.tiny else [int(rows) for rows in chosen.rows.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if chosen.tiny:
            from tiny import tiny_tokenizer

            chosen.tokenizer = tiny_tokenizer(folder / "tokenizer")
        elif chosen.tokenizer is None:
            parser.error("give --tokenizer FOLDER, or --tiny")
        write_rows(folder / "few", 64)
        results = [compare(folder, chosen.tokenizer, rows, chosen.rounds if rows <= 100_000 else 1) for rows in sizes]
    return report(results, chosen.tiny)


def compare(folder: Path, tokenizer: Path, rows: int, rounds: int) -> dict[str, Any]:
    """Measures both sides on so many rows, in turns."""
    write_rows(folder / "rows", rows)
    sides: dict[str, list[dict[str, Any]]] = {"bare": [], "card": []}
    sides["bare"].append(measured(bare, folder / "rows", tokenizer))
    for _ in range(rounds):  # the bare side before and after the card, since the machine's speed drifts
        sides["card"].append(measured(card, folder / "rows", tokenizer, folder))
        sides["bare"].append(measured(bare, folder / "rows", tokenizer))
    medians = {
        f"{side}_{name}": statistics.median(found[name] for found in runs)
        for side, runs in sides.items()
        for name in ("tokens", "seconds", "cpu_seconds", "peak_mib")
    }
    rates = {side: medians[f"{side}_tokens"] / medians[f"{side}_seconds"] for side in sides}
    return {"rows": rows, **medians, "rate": rates["card"] / rates["bare"]}


def report(results: list[dict[str, Any]], tiny: bool) -> int:
    """Prints the table and the JSON line; returns the exit code."""
    print(f"{'rows':>10}{'side':>7}{'tokens/s':>13}{'seconds':>10}{'CPU seconds':>13}{'peak MiB':>10}")
    for found in results:
        for side in ("bare", "card"):
            rate = found[f"{side}_tokens"] / found[f"{side}_seconds"]
            print(
                f"{found['rows']:10,}{side:>7}{rate:13,.0f}{found[f'{side}_seconds']:10.1f}"
                f"{found[f'{side}_cpu_seconds']:13.1f}{found[f'{side}_peak_mib']:10.0f}"
            )
    growth = results[-1]["card_peak_mib"] / results[0]["card_peak_mib"]
    # On a toy, starting and ending outweigh the encoding.
    reached = {"rate": tiny or results[-1]["rate"] >= GOAL_RATE, "memory": growth < GOAL_GROWTH}
    ratios = {"rate": results[-1]["rate"], "memory_growth": growth}
    print(json.dumps({"sizes": results, "ratios": ratios, "reached": reached, "ok": all(reached.values())}))
    return 0 if all(reached.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
