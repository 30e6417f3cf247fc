"""Every measured row with its losses, answers and scores: what all figures can be computed from again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from llm_finetune.components.evaluation.evaluate.generation import Answer
from llm_finetune.components.evaluation.evaluate.judge import Verdict
from llm_finetune.components.evaluation.evaluate.loss import Losses
from llm_finetune.components.evaluation.evaluate.rows import Prompt
from llm_finetune.components.evaluation.evaluate.scores import Scored
from llm_finetune.components.shared import tables

ROWS_AT_ONCE = 8192


@dataclass
class Answers:
    """The answers to the prompts and what is known of them; lists are in the order of the prompts.

    Attributes:
        prompts: What was asked.
        texts: The prompts as text.
        given: Answers by contender.
        scored: Their scores by contender.
        verdicts: The judge's, or none.
    """

    prompts: list[Prompt]
    texts: list[str]
    given: dict[str, list[Answer]] = field(default_factory=dict)
    scored: dict[str, list[Scored]] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)

    def samples(self) -> list[dict[str, Any]]:
        """Returns prompt, reference and every contender's answer, for the report and the page."""
        return [
            {"row": prompt.row, "prompt": self.texts[i], "reference": prompt.reference}
            | {name: vars(answers[i]) for name, answers in self.given.items()}
            | ({"judge": _verdict(self.verdicts[i])} if self.verdicts else {})
            for i, prompt in enumerate(self.prompts)
        ]

    def records(self) -> list[dict[str, Any]]:
        """Returns the samples with their scores, as rows of the dataset."""
        rows = self.samples()
        for i, row in enumerate(rows):
            for name, scored in self.scored.items():
                row[name] = row[name] | scored[i]
        return rows


def write_examples(path: str | Path, losses: Losses, labels: Mapping[str, Sequence[str]], answers: Answers) -> int:
    """Writes the rows.

    Columns: `row` (index in val_sft), `tokens`, `completion_tokens`, `base_nll` and `tuned_nll` (nats, summed over
    the completion's tokens), `slice_<by>` for every way of slicing; for rows whose prompt was answered also `prompt`,
    `reference`, a struct per contender (`text`, `tokens`, `stopped` and its scores) and `judge`. Where a score has a
    weight (`field_f1_weight`), its figure is Σ score · weight / Σ weight, else the mean.

    Args:
        path: Folder to write.
        losses: Losses of every row.
        labels: Slices of every row.
        answers: Answers to some of the rows.

    Returns:
        Rows written.
    """
    records = {record["row"]: record for record in answers.records()}
    answered = pa.Table.from_pylist(list(records.values())).schema if records else pa.schema([])
    fields = [one for one in answered if one.name != "row"]
    numbers = {
        "row": pa.array(losses.rows, pa.int64()),
        "tokens": pa.array(losses.lengths, pa.int32()),
        "completion_tokens": pa.array(losses.tokens, pa.int32()),
        **{f"{name}_nll": pa.array(nll, pa.float64()) for name, nll in losses.nll.items()},
        **{f"slice_{by}": pa.array(names, pa.string()) for by, names in labels.items()},
    }
    whole = pa.table(numbers)
    with tables.ShardWriter(path, pa.schema([*whole.schema, *fields])) as writer:
        for part in whole.to_batches(max_chunksize=ROWS_AT_ONCE):
            own = [records.get(row, {}) for row in part["row"].to_pylist()]
            columns = [pa.array([record.get(one.name) for record in own], one.type) for one in fields]
            writer.write(pa.RecordBatch.from_arrays([*part.columns, *columns], schema=writer.schema))
    return int(whole.num_rows)


def _verdict(verdict: Verdict) -> dict[str, str]:
    return {"tuned_first": verdict.tuned_first, "tuned_second": verdict.tuned_second, "outcome": verdict.outcome}
