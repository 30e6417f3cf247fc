"""Rates of the data cards against bare pyarrow on the same rows, in one run, and their cost per row at several sizes.

    python tests/bench/data.py [--rows 1000000] [--rounds 3] [--sizes 10000 100000 1000000] [--steps load filter split]
    python tests/bench/data.py --rows 2000 --rounds 1 --sizes 1000 2000     # to see that the code runs

Rows have about a kilobyte of text. Card and hand-written way run in turns, each run in a process of its own, and a rate
is the median of its rounds; both write Parquet with zstd. By hand means: pyarrow's JSON reader and Parquet writer over
the whole file in memory; the same filter with pyarrow.compute; a copy of the Parquet file, decoded and encoded again.
The goals: load and filter reach 70 % of the hand-written rate and split 50 % of the copy's, no run holds more than
1.5 GiB, and a row costs no more than 1.5 times as much at the largest size as at 100,000 rows.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import data_ways
from data_ways import Run

GOALS = {"load": 0.7, "filter": 0.7, "split": 0.5}
MOST_GIB = 1.5
MOST_GROWTH = 1.5
LINEAR_FROM = 100_000  # below, what a run costs whatever its rows shows


def run(step: str, way: str, source: Path) -> Run:
    """Runs one way in a fresh process, on a disk that the next one finds empty."""
    with (
        tempfile.TemporaryDirectory(dir=source.parent) as folder,
        multiprocessing.get_context("spawn").Pool(1) as pool,
    ):
        return pool.apply(data_ways.measure, (step, way, source, Path(folder)))


def sources(folder: Path, rows: int) -> dict[str, Path]:
    """Writes rows once for each step: JSON Lines, the same as Parquet, and the Parquet without what a filter drops."""
    folder.mkdir()
    lines = folder / "rows.jsonl"
    data_ways.write_jsonl(lines, rows)
    made = {"load": lines}
    for step, source, card in (("filter", lines, data_ways.load_card), ("split", None, data_ways.filter_card)):
        (folder / step).mkdir()
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # leaves this process, the parent of all, small
            pool.apply(card, (source or made["filter"], folder / step))
        made[step] = folder / step / "out"
    return made


def compare(made: dict[str, Path], steps: list[str], rounds: int) -> tuple[dict[str, float], float]:
    """Runs card and hand in turns, prints the table; returns the card's parts of the hand-written rates and its memory."""
    print(
        f"{'step':>8} {'card rows/s':>14} {'hand rows/s':>14} {'ratio':>7} {'card CPU s':>11} {'hand CPU s':>11} "
        f"{'card GiB':>9} {'hand GiB':>9}"
    )
    ratios, highest = {}, 0.0
    for step in steps:
        seen: dict[str, list[Run]] = {"card": [], "hand": []}
        for _ in range(rounds):
            for way, runs in seen.items():
                runs.append(run(step, way, made[step]))
        card_rows, hand_rows = (seen[way][0].rows for way in ("card", "hand"))
        if card_rows != hand_rows:
            raise SystemExit(f"error: {step}: the card gave {card_rows:,} rows, the hand-written way {hand_rows:,}")
        seconds = {way: statistics.median(one.seconds for one in runs) for way, runs in seen.items()}
        cpu = {way: statistics.median(one.cpu_seconds for one in runs) for way, runs in seen.items()}
        ratios[step] = seconds["hand"] / seconds["card"]
        rates = {way: card_rows / seconds[way] for way in seen}
        peaks = {way: max(one.peak_gib for one in runs) for way, runs in seen.items()}
        highest = max(highest, peaks["card"])
        print(
            f"{step:>8} {rates['card']:>14,.0f} {rates['hand']:>14,.0f} {ratios[step]:>7.2f} {cpu['card']:>11.2f} "
            f"{cpu['hand']:>11.2f} {peaks['card']:>9.2f} {peaks['hand']:>9.2f}",
            flush=True,
        )
    return ratios, highest


def grow(scratch: Path, steps: list[str], sizes: list[int]) -> dict[str, dict[int, Run]]:
    """Runs the cards once at each size, prints cost per row and memory, and returns the runs."""
    print(f"\n{'step':>8} {'rows':>11} {'µs per row':>11} {'CPU µs per row':>15} {'peak GiB':>9}")
    runs: dict[str, dict[int, Run]] = {step: {} for step in steps}
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            made = sources(Path(folder) / "data", size)
            for step in steps:
                runs[step][size] = one = run(step, "card", made[step])
                print(
                    f"{step:>8} {size:>11,} {1e6 * one.seconds / size:>11.2f} {1e6 * one.cpu_seconds / size:>15.2f} "
                    f"{one.peak_gib:>9.2f}",
                    flush=True,
                )
    return runs


def verdict(ratios: dict[str, float], highest: float, runs: dict[str, dict[int, Run]]) -> dict[str, Any]:
    """Returns the figures that count and whether the goals hold."""
    peak = max([highest, *(one.peak_gib for by_size in runs.values() for one in by_size.values())])
    growth = {}
    for step, by_size in runs.items():
        large = sorted(size for size in by_size if size >= LINEAR_FROM)
        if len(large) > 1:
            cost = {size: by_size[size].cpu_seconds / size for size in (large[0], large[-1])}
            growth[step] = cost[large[-1]] / cost[large[0]]
    reached = all(ratio >= GOALS[step] for step, ratio in ratios.items())
    return {
        "bench": "data",
        "ratio_of_hand": {step: round(ratio, 3) for step, ratio in ratios.items()},
        "ratio_cost_per_row": {step: round(value, 3) for step, value in growth.items()},
        "peak_gib": round(peak, 3),
        "ok": reached and peak <= MOST_GIB and all(value <= MOST_GROWTH for value in growth.values()),
    }


def main() -> None:
    """Runs the bench; the last line printed is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the comparison; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000], help="rows of the growth")
    parser.add_argument("--steps", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--scratch", type=Path, help="folder on a disk with about four times the data's size free")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        ratios, highest = {}, 0.0
        if options.rows:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                ratios, highest = compare(sources(Path(folder) / "data", options.rows), options.steps, options.rounds)
        print(json.dumps(verdict(ratios, highest, grow(Path(scratch), options.steps, options.sizes))))


if __name__ == "__main__":
    main()
