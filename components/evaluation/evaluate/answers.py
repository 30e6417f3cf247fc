"""Prompts with the answers of all candidates, their scores and the judge's verdicts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from llm_finetune.components.evaluation.evaluate.generation import Answer
from llm_finetune.components.evaluation.evaluate.judge import Verdict
from llm_finetune.components.evaluation.evaluate.rows import Prompt
from llm_finetune.components.evaluation.evaluate.scores import Scores


@dataclass(frozen=True)
class Sample:
    """One prompt with all its answers, for report and page.

    Attributes:
        row: Index in `val_sft`.
        prompt: The prompt as text.
        reference: Expected answer.
        answers: Answer by candidate.
        verdict: The judge's verdict; None if no judge was asked.
    """

    row: int
    prompt: str
    reference: str
    answers: dict[str, Answer]
    verdict: Verdict | None = None

    def as_json(self, scores: Mapping[str, Scores] | None = None) -> dict[str, object]:
        """Returns the sample with one key per candidate, for JSON and Parquet.

        Args:
            scores: Scores of the answers by candidate, to add to them.
        """
        answers = {name: asdict(answer) | (scores or {}).get(name, {}) for name, answer in self.answers.items()}
        judge = {"judge": self.verdict.as_json()} if self.verdict else {}
        return {"row": self.row, "prompt": self.prompt, "reference": self.reference} | answers | judge


@dataclass
class AnswerSet:
    """All prompts and what is known about their answers; lists are in the order of the prompts.

    Attributes:
        prompts: The prompts as tokens.
        texts: The prompts as text.
        answers: Answers by candidate.
        scores: Scores of the answers by candidate.
        verdicts: The judge's verdicts; empty if no judge was asked.
    """

    prompts: list[Prompt]
    texts: list[str]
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    scores: dict[str, list[Scores]] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)

    def samples(self) -> list[Sample]:
        """Returns one sample per prompt."""
        return [
            Sample(
                prompt.row,
                self.texts[i],
                prompt.reference,
                {name: answers[i] for name, answers in self.answers.items()},
                self.verdicts[i] if self.verdicts else None,
            )
            for i, prompt in enumerate(self.prompts)
        ]

    def records(self) -> list[dict[str, object]]:
        """Returns the samples with their scores, as rows of `eval_examples`."""
        return [
            sample.as_json({name: scores[i] for name, scores in self.scores.items()})
            for i, sample in enumerate(self.samples())
        ]
