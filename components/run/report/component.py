"""Report: says how a run ended, and why."""

from kfp import dsl

from llm_finetune.components.shared.images import control_component


@control_component()
def report(
    status: dsl.PipelineTaskFinalStatus,
    end_report: dsl.Output[dsl.Markdown],
    run_id: str = "",
    package_version: str = "",
):
    """Runs when everything else has ended, however it ended, and writes the outcome with its reason.

    Args:
        status: How the other cards ended, as the backend tells it.
        end_report: Outcome, reason, and the cards that failed.
        run_id: The run, whose pods are asked for what the cards recorded and for the error of the one that failed.
        package_version: Version that compiled the pipeline; the step refuses another one.
    """
    from llm_finetune.components.run.report import step
    from llm_finetune.components.shared.card import card, lineage
    from llm_finetune.components.shared.card_logs import record_outcome

    with card(package_version):
        ending = step.report(status.state, status.error_message or "", run_id, end_report.path)
        end_report.metadata.update(vars(ending) | lineage())
        print(f"run {ending.state}: {ending}")
        record_outcome("report", **vars(ending))
