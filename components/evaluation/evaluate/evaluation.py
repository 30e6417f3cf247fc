"""Result of an evaluation."""

import json
from dataclasses import asdict, dataclass

from llm_finetune.components.evaluation.evaluate.answers import Sample
from llm_finetune.components.evaluation.evaluate.comparison import Metrics, Slice
from llm_finetune.components.evaluation.metrics import dashboard_metrics
from llm_finetune.components.shared.questions import Question


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        metrics: Metrics by name, all finite. Losses are in nats per completion token; `loss_delta` is tuned minus base,
            with the 95 % interval of a paired bootstrap over rows.
        slices: Losses by length and by the columns of `slice_by`.
        samples: Prompts with their reference and all answers.
        notes: Harmless deviations from the settings.
        problems: Requested measurements that failed; any of them closes the gate.
        dtype: Precision of the weights.
        writer: Engine that generated the answers of base and tuned model, with the reason; empty without answers.
        questions: Validation rows as chat requests, which vLLM Serve sends to the deployed model.
    """

    metrics: Metrics
    slices: list[Slice]
    samples: list[Sample]
    notes: list[str]
    problems: list[str]
    dtype: str
    writer: str
    questions: list[Question]

    def dashboard_metrics(self) -> Metrics:
        """Returns the metrics for the dashboard's table."""
        return dashboard_metrics(self.metrics)

    def report(self) -> str:
        """Returns the content of the report file, as JSON."""
        content = asdict(self)
        content["metrics"] = dict(sorted(self.metrics.items()))
        content["samples"] = [sample.as_json() for sample in self.samples]
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
