"""Report: result of a run, and its reason."""

from kfp import dsl

from llm_finetune.components.shared.images import control_component


@control_component()
def report(
    status: dsl.PipelineTaskFinalStatus,
    end_report: dsl.Output[dsl.Markdown],
    run_id: str = "",
    package_version: str = "",
):
    """Reports the result of a run and its reason, after all other cards have ended, also after failures.

    Args:
        status: Status of the other cards, from the backend.
        end_report: Result, reason, and failed cards.
        run_id: ID of the run; the card reads outcomes and errors of the other cards from its pods.
        package_version: Version that compiled the pipeline; the step fails if it has another version.
    """
    from llm_finetune.components.run.report import step
    from llm_finetune.components.shared.card import card, lineage
    from llm_finetune.components.shared.card_logs import record_outcome

    with card(package_version):
        result = step.report(status.state, status.error_message or "", run_id, end_report.path)
        end_report.metadata.update(vars(result) | lineage())
        print(f"run {result.state}: {result}")
        record_outcome("report", **vars(result))
