"""The loss curve page."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from llm_finetune.components.shared.charts import line_chart
from llm_finetune.components.shared.pages import write_page
from llm_finetune.components.training.finetune_lora.job import TrainFacts
from llm_finetune.components.training.finetune_lora.settings import Settings


def write_curve(
    path: str | Path, history: Sequence[Mapping[str, float]], facts: TrainFacts, settings: Settings
) -> None:
    """Writes a page with losses, learning rate and speed over the optimizer steps.

    Args:
        path: HTML page to write.
        history: The trainer's log: entries with `step` and figures by name.
        facts: The training's facts.
        settings: The card's settings.
    """

    def points(name: str) -> list[tuple[float, float]]:
        return [(entry["step"], entry[name]) for entry in history if name in entry]

    write_page(
        path,
        Path(__file__).parent / "curve.html.jinja",
        title="Fine-Tune LoRA",
        facts=facts,
        settings=settings,
        loss=line_chart(
            {"training": points("loss"), "validation": points("eval_loss")},
            "optimizer step",
            f"Loss per trained token over the steps; validation ends at {facts.val_loss:.3f}",
        ),
        rate=line_chart({"learning rate": points("learning_rate")}, "optimizer step", "Learning rate by step"),
        speed=line_chart({"tokens per second": points("tokens_per_second")}, "optimizer step", "Speed by step"),
    )
