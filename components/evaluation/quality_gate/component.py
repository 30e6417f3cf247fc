"""Quality Gate: decides whether the tuned model is deployed."""

from kfp import dsl

from llm_finetune.components.shared.images import control_component


@control_component()
def quality_gate(
    eval_report: dsl.Input[dsl.Metrics],
    gate_report: dsl.Output[dsl.Markdown],
    rules: str = "loss_delta < 0",
    settings: dict = {},
    package_version: str = "",
) -> bool:
    """Compares the evaluation's figures with rules fixed before the run; a missing figure closes the gate.

    Args:
        eval_report: Report of Evaluate.
        gate_report: Each rule with its figure and outcome.
        rules: Comparisons separated by commas, such as 'loss_delta_ci_high < 0, stop_rate >= 0.99,
            task.mmlu.drop <= 2*stderr'. All must hold; empty sets no rule. What Evaluate was asked for and could not
            measure closes the gate in any case.
        settings: Settings by name that take precedence over the parameters above (the card's section of the recipe).
        package_version: Version that compiled the pipeline; the step refuses another one.

    Returns:
        Whether the gate is open.
    """
    arguments = locals()
    from llm_finetune.components.evaluation.quality_gate import step
    from llm_finetune.components.shared.card import card, lineage
    from llm_finetune.components.shared.card_logs import record

    with card(package_version):
        opened, reason = step.quality_gate(eval_report.path, gate_report.path, step.Settings.of(arguments))
        gate_report.metadata.update(lineage({"eval_report": eval_report}) | {"open": opened, "reason": reason})
        print(f"gate {'open' if opened else 'closed'}: {reason}")
        record("quality_gate", open=opened, reason=reason)
    return opened
