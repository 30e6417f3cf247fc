"""What data.py measures: each card's work, and the same by hand with bare pyarrow, a run in a process of its own."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

MIN_CHARS, MAX_CHARS = 16, 4096
KEYS = ("instruction", "input", "output")


@dataclass(frozen=True)
class Run:
    """What one run took.

    Attributes:
        seconds: Wall clock, without starting Python and importing.
        cpu_seconds: Of all threads.
        peak_gib: Highest resident memory of the process.
        rows: Rows that came out.
    """

    seconds: float
    cpu_seconds: float
    peak_gib: float
    rows: int


def write_jsonl(path: Path, rows: int, seed: int = 0) -> None:
    """Writes rows of about a kilobyte: 2 % repeat an earlier row, 1 % have no answer, 1 % are too long."""
    generator = random.Random(seed)
    words = ["".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=generator.randint(2, 9))) for _ in range(5000)]
    texts = [" ".join(generator.choices(words, k=70)) for _ in range(4000)]
    with path.open("w") as file:
        for start in range(0, rows, 10_000):
            lines = []
            for i in range(start, min(start + 10_000, rows)):
                n = max(i - 49, 0) if i % 50 == 49 else i
                output = "" if n % 100 == 7 else texts[n * 31 % 4000] * (10 if n % 100 == 8 else 1)
                lines.append(
                    f'{{"instruction": "Task {n}: {texts[n % 4000][:60]}", "input": "{texts[n * 7 % 4000]}", '
                    f'"output": "{output}"}}\n'
                )
            file.write("".join(lines))


def load_card(source: Path, folder: Path) -> int:
    """Load Dataset."""
    from llm_finetune.components.data.load_dataset import step

    settings = step.Settings(source_type="jsonl_path", jsonl_path=str(source), max_samples=0)
    return step.load_dataset(folder / "out", folder / "page.html", settings).rows


def load_hand(source: Path, folder: Path) -> int:
    """pyarrow's JSON reader over the whole file, with all cores, then its Parquet writer."""
    table = pyarrow.json.read_json(source, read_options=pyarrow.json.ReadOptions(block_size=8 << 20))
    pq.write_table(table, folder / "out.parquet", compression="zstd")
    return table.num_rows


def filter_card(source: Path, folder: Path) -> int:
    """Filter & Clean, with limits of length and exact deduplication alone."""
    from llm_finetune.components.data.filter_clean import step

    settings = step.Settings.of(FILTER_ONLY)
    return step.filter_clean(source, folder / "out", folder / "dropped", folder / "page.html", settings).rows


FILTER_ONLY = {"min_chars": MIN_CHARS, "max_chars": MAX_CHARS, "dedup": "exact", "pii": "off"}


def filter_hand(source: Path, folder: Path) -> int:
    """The same filter by hand: trim, lengths, no empty answer, the first of equal rows but for case and white space."""
    table = pq.read_table(source)
    trimmed = [pc.utf8_trim_whitespace(table[key]) for key in KEYS]
    lengths = pc.add(pc.add(pc.utf8_length(trimmed[0]), pc.utf8_length(trimmed[1])), pc.utf8_length(trimmed[2]))
    good = pc.and_(pc.greater_equal(lengths, MIN_CHARS), pc.less_equal(lengths, MAX_CHARS))
    good = pc.and_(good, pc.not_equal(trimmed[2], ""))
    for key, values in zip(KEYS, trimmed, strict=True):
        table = table.set_column(table.schema.get_field_index(key), key, values)
    table = table.filter(good)
    joined = pc.binary_join_element_wise(*(table[key] for key in KEYS), "\x1f")
    is_ascii = pc.all(pc.string_is_ascii(joined)).as_py()
    joined = pc.ascii_lower(joined) if is_ascii else pc.utf8_lower(pc.utf8_normalize(joined, "NFKC"))
    same = pc.replace_substring_regex(joined, r"\s+", " ")
    first = pa.table({"same": same, "row": pa.array(range(len(same)))}).group_by("same").aggregate([("row", "min")])
    table = table.take(first["row_min"].sort())
    pq.write_table(table, folder / "out.parquet", compression="zstd")
    return table.num_rows


def split_card(source: Path, folder: Path) -> int:
    """Train/Val Split."""
    from llm_finetune.components.data.train_val_split import step

    facts = step.train_val_split(source, folder / "train", folder / "val", folder / "page.html", step.Settings())
    return facts.train_rows + facts.val_rows


def split_hand(source: Path, folder: Path) -> int:
    """A plain copy of the Parquet file, decoded and encoded again."""
    table = pq.read_table(source)
    pq.write_table(table, folder / "out.parquet", compression="zstd")
    return table.num_rows


WAYS: dict[str, dict[str, Callable[[Path, Path], int]]] = {
    "load": {"card": load_card, "hand": load_hand},
    "filter": {"card": filter_card, "hand": filter_hand},
    "split": {"card": split_card, "hand": split_hand},
}


def measure(step: str, way: str, source: Path, folder: Path) -> Run:
    """Runs one way once and returns its figures; to be called in a fresh process."""
    work = WAYS[step][way]
    warm_up(step, folder)
    begun, cpu = time.perf_counter(), time.process_time()
    rows = work(source, folder)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    return Run(seconds, cpu, peak_bytes() / 2**30, rows)


def warm_up(step: str, folder: Path) -> None:
    """Imports what the card needs: a run has seconds, an import is paid once whatever the rows."""
    import importlib

    names = {"load": "load_dataset", "filter": "filter_clean", "split": "train_val_split"}
    importlib.import_module(f"llm_finetune.components.data.{names[step]}.step")


def peak_bytes() -> int:
    """Returns the highest resident memory of this process; getrusage would count that of its parent before the fork."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
